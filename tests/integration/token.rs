//! The quoter against the real tokenizer.

use std::io::BufReader;
use std::net::{Ipv4Addr, SocketAddr};

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
        text.push_str(&format!(
            "location = /{number} {{ return 200 {quoted}; }}\n"
        ));
    }
    text.push_str("}\n");
    host.site("tokens", &text);
    host.start();

    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, host.http_port));
    let mut stream = client::connect(address).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    for (number, value) in tokens.iter().enumerate() {
        client::send(&mut stream, "GET", "x", &format!("/{number}"), &[]).unwrap();
        let answer = client::response(&mut reader, "GET").unwrap();
        assert_eq!(answer.text(), value, "{value:?}");
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
    let mut seed: u64 = 0x2545_f491_4f6c_dd1d;
    let mut random = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
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
