//! Texts of 64 KiB that are made to take long.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vhostd::vhost::TlsMode;
use vhostd::vhost::parse::parse;
use vhostd::vhost::source::MAX_BYTES;

/// A debug build takes up to twenty times as long.
pub const LIMIT: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1_000 } else { 50 });

#[test]
fn no_text_of_64_kib_takes_longer_than_50_ms_to_be_judged() {
    let (app, roots) = ("slow".parse().unwrap(), [PathBuf::from("/srv")]);
    for (name, text) in texts() {
        let size = text.len() as u64;
        assert!(
            (MAX_BYTES / 2..=MAX_BYTES).contains(&size),
            "{name}: {size}"
        );
        // the machine is busy with other tests: what counts is the cost, not the wait
        let took = (0..8)
            .map(|_| {
                let begin = Instant::now();
                let _ = parse(
                    &app,
                    Path::new("slow.yml"),
                    &text,
                    &roots,
                    &TlsMode::Auto.into(),
                );
                begin.elapsed()
            })
            .find(|took| *took <= LIMIT);
        assert!(took.is_some(), "{name}: never below {LIMIT:?}");
    }
}

fn texts() -> Vec<(&'static str, String)> {
    const NAMED: &str = "proxy_pass_url: http://127.0.0.1:1\ntls: off\nserver_name: ";
    const VHOST: &str = "server_name: a.example\nproxy_pass_url: http://127.0.0.1:1\ntls: off\n";
    let assets = format!("{VHOST}cache_assets: {{paths: [");
    let mut texts: Vec<(&'static str, String)> =
        ["[", "{", "- ", "? ", ": ", "!", "%", "#\n", "\t"]
            .into_iter()
            .map(|unit| (unit, filled("", |_| unit.to_owned(), "")))
            .collect();
    let same = |head: &str, unit: &str, tail: &str| filled(head, |_| unit.to_owned(), tail);
    texts.extend([
        ("nested flow mappings", same("", "{a: ", "")),
        ("anchors", filled("a: [", |n| format!("&a{n} x,"), "x]")),
        ("aliases", same("a: [&a x,", "*a,", "x]")),
        ("escapes", same("a: \"", "\\\"", "\"")),
        ("literal lines", same("a: |\n", " x\n", "")),
        ("folded lines", same("a: >\n", " x\n\n", "")),
        ("unknown keys", filled(VHOST, |n| format!("k{n}: 1\n"), "")),
        ("misspelt keys", filled(VHOST, |n| format!("server_name{n}: 1\n"), "")),
        ("one long key", same("", "k", ": 1\n")),
        ("number keys", filled("a: {", |n| format!("{n}: ,"), "x: 1}")),
        ("names", filled(&format!("{NAMED}["), |n| format!("{n}.a.eu,"), "a.example]")),
        ("wrong names", same(&format!("{NAMED}["), "a,", "a.example]")),
        ("IDNA names", filled(&format!("{NAMED}["), |n| format!("ü{n}.eu,"), "a.eu]")),
        ("one long name", same(NAMED, "ü", ".example")),
        ("one name of many labels", same(NAMED, "a.", "example")),
        ("upstreams", filled(
            "server_name: a.example\ntls: off\nproxy_pass_url: [",
            |n| format!("http://127.0.0.1:{},", n + 1),
            "http://127.0.0.2:1]",
        )),
        ("asset paths", filled(&assets, |n| format!("/{n}/,"), "/a/]}")),
        ("one long asset path", same(&assets, "/a", "/]}")),
        ("one long root", same(&format!("{VHOST}root: /srv"), "/a", "")),
        ("vhosts", filled("", |n| format!("- {{server_name: {n}.a.eu, root: /srv/a}}\n"), "")),
        ("empty vhosts", same("", "- {}\n", "")),
        ("domains of nobody", filled(
            "nginx__vhosts: [{server_name: a.example, root: /srv/a}]\npki__realms:\n",
            |n| format!("- domains: {n}.a.eu\n"),
            "",
        )),
        ("one large realm", realms(|names| {
            let all = names.join(",");
            format!("nginx__vhosts: [{{server_name: [{all}], root: /srv/a}}]\npki__realms: [{{domains: [{all}]}}]\n")
        })),
        ("many realms", realms(|names| {
            let vhosts = names.iter().map(|name| format!("- {{server_name: {name}, root: /srv/a}}\n"));
            let realms = names.iter().map(|name| format!("- domains: {name}\n"));
            let (vhosts, realms) = (vhosts.collect::<String>(), realms.collect::<String>());
            format!("nginx__vhosts:\n{vhosts}pki__realms:\n{realms}")
        })),
        ("plain lines", same("a: ", "x\n  ", "")),
    ]);
    texts
}

/// As many units as fit between `head` and `tail`.
fn filled(head: &str, unit: impl Fn(usize) -> String, tail: &str) -> String {
    let mut text = head.to_owned();
    for number in 0.. {
        let unit = unit(number);
        if (text.len() + unit.len() + tail.len()) as u64 > MAX_BYTES {
            break;
        }
        text.push_str(&unit);
    }
    text + tail
}

/// With as many names as fit.
fn realms(text: impl Fn(&[String]) -> String) -> String {
    let names: Vec<String> = (0..5_000).map(|number| format!("{number}.a.eu")).collect();
    let (mut low, mut high) = (1, names.len());
    while low + 1 < high {
        let middle = (low + high) / 2;
        let fits = text(&names[..middle]).len() as u64 <= MAX_BYTES;
        (low, high) = if fits { (middle, high) } else { (low, middle) };
    }
    text(&names[..low])
}
