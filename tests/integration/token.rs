//! The quoter against the real tokenizer.

use std::io::BufReader;
use std::net::{Ipv4Addr, SocketAddr};

use vhostd::nginx::syntax::{self, Directive};
use vhostd::render::token;

use crate::support::client;
use crate::support::nginx::NginxHost;

#[test]
fn nginx_reads_every_quoted_token_as_it_was_meant() {
    let tokens = tokens();
    assert!(tokens.len() >= 2_500);
    let host = NginxHost::new();
    let mut text = format!(
        "server {{ listen 127.0.0.1:{}; keepalive_requests 10000; default_type text/plain;\n",
        host.http_port
    );
    for (number, value) in tokens.iter().enumerate() {
        let mut quoted = Vec::new();
        token::quote(value, &mut quoted).unwrap();
        let quoted = String::from_utf8(quoted).unwrap();
        text.push_str(&location(number, &quoted));
    }
    text.push_str("}\n");
    host.site("tokens", &text);
    host.start();
    assert_answers(&host, &tokens);
}

/// The auditor's grammar is a second implementation: it must be nginx's, also where the quoter
/// never goes.
#[test]
fn the_auditor_reads_words_in_any_spelling_as_nginx_does_and_refuses_what_nginx_refuses() {
    let host = NginxHost::new();
    let (mut values, mut refused) = (Vec::new(), Vec::new());
    let mut text = String::new();
    for spelling in spellings() {
        let location = location(values.len(), &spelling);
        match syntax::parse(location.as_bytes()) {
            // one location that answers one word, and nothing beside it
            Ok(tree) if tree.len() == 1 && tree[0].args.len() == 2 => {
                if let [
                    Directive {
                        name,
                        args,
                        block: None,
                        ..
                    },
                ] = tree[0].children()
                    && name == "return"
                    && let [_, value] = &args[..]
                {
                    values.push(value.clone());
                    text.push_str(&location);
                }
            }
            Ok(_) => {}
            Err(_) => refused.push(location),
        }
    }
    assert!(values.len() > 2_500, "{}", values.len());
    let server = |text: &str| {
        format!(
            "server {{ listen 127.0.0.1:{}; keepalive_requests 10000; default_type text/plain;\n{text}}}\n",
            host.http_port
        )
    };
    for location in refused.iter().take(40) {
        host.site("tokens", &server(location));
        assert!(!host.test().status.success(), "{location:?}");
    }
    assert!(refused.len() >= 40, "{}", refused.len());
    host.site("tokens", &server(&text));
    host.start();
    assert_answers(&host, &values);
}

fn location(number: usize, word: &str) -> String {
    format!("location = /{number} {{ return 200 {word}; }}\n")
}

/// Each location answers its value.
fn assert_answers(host: &NginxHost, values: &[String]) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, host.http_port));
    let mut stream = client::connect(address).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    for (number, value) in values.iter().enumerate() {
        client::send(&mut stream, "GET", "x", &format!("/{number}"), &[]).unwrap();
        let answer = client::response(&mut reader, "GET").unwrap();
        assert_eq!(answer.text(), value, "{value:?}");
    }
}

/// Words as somebody could write them: bare, in quotes of both kinds, with escapes and comments,
/// and with much that is none of these.
fn spellings() -> Vec<String> {
    let mut random = random(0x1234_5678_9abc_def1);
    let mut spellings = Vec::new();
    for _ in 0..6_000 {
        let length = 1 + random(8);
        let inner: String = (0..length).map(|_| RAW[random(RAW.len())]).collect();
        spellings.push(match random(4) {
            0 => format!("\"{inner}\""),
            1 => format!("'{inner}'"),
            2 => format!("# {inner}\n x{inner}"),
            _ => format!("y{inner}"),
        });
    }
    spellings
}

/// Numbers below a limit, the same in every run (xorshift64).
fn random(mut seed: u64) -> impl FnMut(usize) -> usize {
    move |below| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    }
}

/// Every printable ASCII character alone, doubled and in company, then random ones of the special.
fn tokens() -> Vec<String> {
    let printable = (' '..='~').filter(|character| *character != '$');
    let mut tokens: Vec<String> = printable
        .flat_map(|c| {
            [
                format!("{c}"),
                format!("{c}{c}"),
                format!("a{c}"),
                format!("{c}\"b\\"),
            ]
        })
        .collect();
    let mut random = random(0x2545_f491_4f6c_dd1d);
    tokens.extend((0..2_500).map(|_| {
        let length = 1 + random(14);
        (0..length)
            .map(|_| SPECIAL[random(SPECIAL.len())])
            .collect::<String>()
    }));
    tokens.push("x".repeat(token::MAX_BYTES));
    tokens.push("\\".repeat(token::MAX_BYTES));
    tokens
}

const SPECIAL: [char; 22] = [
    '\\', '"', '\'', ';', '{', '}', '#', ' ', '(', ')', 'n', 't', 'r', 'a', '=', '~', '*', '/',
    'é', '%', '<', '€',
];

/// Without `$`, which `return` would interpret.
const RAW: [&str; 24] = [
    "\\", "\\\"", "\\'", "\\n", "\\t", "\\;", "\\ ", "\"", "'", ";", "{", "}", "#", " ", "\t",
    "\n", "\r", "a", "b", "(", ")", "é", "/", "\\\\",
];
