//! What the quoter writes, nginx's grammar reads back as it was; and any bytes have a tree or an
//! error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vhostd::nginx::syntax;
use vhostd::render::token;

fuzz_target!(|bytes: &[u8]| {
    let _ = syntax::parse(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let mut quoted = Vec::new();
    let literal = token::quote(text, &mut quoted);
    if literal.is_ok() {
        assert!(!text.contains('$') && !text.contains(char::is_control));
        reads_back(&quoted, text);
    } else {
        assert!(quoted.is_empty());
    }
    // the way through a template: with variables only behind the mark, which no value can carry
    let mut escaped = Vec::new();
    if token::escape(text, &mut escaped).is_ok() {
        let marked = text.strip_prefix(MARK);
        assert_eq!(literal.is_ok(), marked.is_none());
        reads_back(&escaped, marked.unwrap_or(text));
    }
});

/// Alone, and with the same beside it, inside a block, before another directive.
fn reads_back(quoted: &[u8], text: &str) {
    let mut file = b"block ".to_vec();
    for part in [
        quoted,
        b" ",
        quoted,
        b" { name ",
        quoted,
        b"; } end ",
        quoted,
        b";",
    ] {
        file.extend_from_slice(part);
    }
    let tree = syntax::parse(&file).expect("nginx's grammar");
    assert_eq!(tree.len(), 2);
    assert_eq!(
        (tree[0].name.as_str(), &tree[0].args[..]),
        ("block", &[text.to_owned(), text.to_owned()][..])
    );
    assert_eq!(tree[0].children().len(), 1);
    assert_eq!(tree[0].children()[0].args, [text]);
    assert_eq!(
        (tree[1].name.as_str(), &tree[1].args[..]),
        ("end", &[text.to_owned()][..])
    );
}

const MARK: char = '\u{F0000}';
