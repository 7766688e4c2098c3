//! P: text → nodes with positions. The only user of the YAML parser.
//!
//! What a configuration file needs of YAML and nothing else: no tags, no merge keys, one document,
//! aliases only as long as they do not multiply. YAML 1.1's booleans (`yes`, `off`) are booleans,
//! as Ansible's users expect; a quoted scalar is always a string.

mod fields; // P a mapping's keys, taken one by one; every error of a file is collected

mod place; // P the parser's locations → positions
mod raw; // P what the deserializer yields

pub use fields::{Fields, Problems, nearest, quoted, string, strings};

use std::path::Path;

use serde_saphyr::granit_parser::{Event, Parser};
use serde_saphyr::{DuplicateKeyPolicy, Error, MergeKeyPolicy, Spanned};

use self::place::{locate, position, position_of, tag_position, word_length};
use self::raw::Raw;
use crate::diagnostic::{Diagnostic, Located, Position, is_unprintable};

/// A value and where it is written. An alias stands where it is used, not where its anchor is.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub at: Position,
    pub value: Value,
}

/// What YAML's core schema knows, with the booleans of YAML 1.1.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    String(String),
    Sequence(Vec<Node>),
    /// In the order of the file; no key twice.
    Mapping(Vec<(Located<String>, Node)>),
}

impl Value {
    /// For "expected a string, found …".
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::String(_) => "a string",
            Self::Sequence(_) => "a list",
            Self::Mapping(_) => "a mapping",
        }
    }
}

/// Parses one document. An empty text, or one of comments only, is [`Value::Null`].
///
/// The work is bounded (events, depth, aliases) whatever the text. The diagnostic names a position
/// and never quotes more of the text than one key.
pub fn parse(file: &Path, text: &str) -> Result<Node, Diagnostic> {
    refuse_unprintable(file, text)?;
    if !survey(file, text)? {
        return Ok(Node {
            at: position_of(text, 0, 0),
            value: Value::Null,
        });
    }
    let raw: Spanned<Raw> = serde_saphyr::from_str_with_options(text, options())
        .map_err(|error| explain(file, text, error.without_snippet()))?;
    node(file, text, raw)
}

/// Tab and line feed are the only control characters; a byte order mark, the interlinear and the
/// bidirectional controls can make a file look different from what it says. YAML takes a carriage
/// return for the end of a line, where most editors and `grep` see none.
fn refuse_unprintable(file: &Path, text: &str) -> Result<(), Diagnostic> {
    let Some((offset, found)) = text.char_indices().find(|(_, c)| is_unprintable(*c)) else {
        return Ok(());
    };
    let at = position_of(text, offset, found.len_utf8());
    let diagnostic = match found {
        '\u{feff}' => Diagnostic::new(file, "the file has a byte order mark")
            .hint("save it as UTF-8 without a byte order mark"),
        '\r' => Diagnostic::new(file, "the line ends with a carriage return")
            .hint("save it with Unix line ends (LF), for example with dos2unix"),
        _ => Diagnostic::new(
            file,
            format!("control character U+{:04X}", u32::from(found)),
        )
        .hint("remove it; it cannot be seen in most editors"),
    };
    Err(diagnostic.at(at))
}

/// Walks the events once for what the deserializer would let pass: tags, merge keys, further
/// documents. Returns whether there is any node.
fn survey(file: &Path, text: &str) -> Result<bool, Diagnostic> {
    let mut documents = 0;
    let mut nodes = 0;
    for (event, span) in Parser::new_from_str(text).map_while(Result::ok) {
        let tagged = match &event {
            Event::DocumentStart(..) => {
                documents += 1;
                if documents > 1 {
                    let reason = "a second document begins here";
                    return Err(Diagnostic::new(file, reason)
                        .at(position(text, &span))
                        .hint("write a list of vhosts instead of several documents"));
                }
                false
            }
            Event::Scalar(_, _, _, tag) => tag.is_some(),
            Event::SequenceStart(_, _, tag) | Event::MappingStart(_, _, tag) => tag.is_some(),
            _ => false,
        };
        if tagged {
            return Err(Diagnostic::new(file, "a YAML tag is not supported here")
                .at(tag_position(text, &span))
                .hint("remove the word that begins with `!`"));
        }
        nodes += usize::from(matches!(
            event,
            Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..)
        ));
    }
    // a syntax error is left to the deserializer, which reports it with its place
    Ok(nodes > 0 || !text.lines().all(is_blank))
}

fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#') || line == "---" || line == "..."
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: MAX_EVENTS,
            max_nodes: MAX_EVENTS,
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_anchors: 64,
            max_aliases: 256,
            max_documents: 1,
        },
        alias_limits: alias_limits(),
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: false,
        with_snippet: false,
    }
}

fn alias_limits() -> serde_saphyr::options::AliasLimits {
    let mut limits = serde_saphyr::options::AliasLimits::default();
    limits.max_total_replayed_events = MAX_REPLAYED_EVENTS;
    limits.max_replay_stack_depth = 4;
    limits
}

/// One sentence of ours for every error that a text can provoke.
fn explain(file: &Path, text: &str, error: &Error) -> Diagnostic {
    let at = error
        .location()
        .and_then(|location| locate(text, &location));
    let diagnostic = match error {
        Error::AliasError { error, .. } => return explain(file, text, error.without_snippet()),
        Error::UnknownAnchor { .. } => {
            Diagnostic::new(file, "`*` begins a YAML alias, and nothing has that anchor")
                .hint("quote wildcard names: \"*.example.org\"")
        }
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            Diagnostic::new(file, format!("duplicate key {}", quoted(key)))
                .hint("a key may appear once in a mapping")
        }
        Error::DuplicateMappingKey { .. } => Diagnostic::new(file, "duplicate key"),
        Error::MergeKeyNotAllowed { .. } => {
            Diagnostic::new(file, "the merge key `<<` is not supported")
        }
        Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            Diagnostic::new(file, "aliases multiply beyond the limit")
        }
        Error::RecursiveReferencesRequireWeakTypes { .. } => {
            Diagnostic::new(file, "an alias inside its own anchor")
        }
        Error::NonFiniteFloat { .. } => Diagnostic::new(file, "not a finite number"),
        Error::Budget { .. } => {
            Diagnostic::new(file, "too deeply nested, or too many nodes or aliases")
        }
        // the scanner's own limit, which it meets before the budget is charged
        Error::ExternalMessage { msg, .. } if msg.contains("recursion limit") => {
            Diagnostic::new(file, "too deeply nested, or too many nodes or aliases")
        }
        // the scanner's messages are fixed sentences with at most one character of the text
        Error::ExternalMessage { msg, .. } => {
            Diagnostic::new(file, format!("not valid YAML: {msg}"))
                .hint("quote values that contain `: `, ` #` or begin with a special character")
        }
        Error::Eof { .. } => Diagnostic::new(file, "not valid YAML: the text ends too early"),
        _ => Diagnostic::new(file, "not valid YAML here"),
    };
    match at {
        Some(mut at) => {
            if at.length == 0 {
                at.length = word_length(text, at.offset);
            }
            diagnostic.at(at)
        }
        None => diagnostic,
    }
}

/// Gives the tree its positions and refuses what only the whole tree shows: keys that are no
/// strings, control characters that an escape (`"\0"`) brought in.
fn node(file: &Path, text: &str, raw: Spanned<Raw>) -> Result<Node, Diagnostic> {
    let at = locate(text, &raw.referenced).unwrap_or_default();
    let value = match raw.value {
        Raw::Scalar(Value::String(string)) if string.chars().any(is_unprintable) => {
            return Err(Diagnostic::new(file, "the string contains a control character").at(at));
        }
        Raw::Scalar(value) => value,
        Raw::Sequence(items) => Value::Sequence(
            items
                .into_iter()
                .map(|item| node(file, text, item))
                .collect::<Result<_, _>>()?,
        ),
        Raw::Mapping(entries) => Value::Mapping(
            entries
                .into_iter()
                .map(|(key, value)| Ok((string_key(file, text, key)?, node(file, text, value)?)))
                .collect::<Result<_, _>>()?,
        ),
    };
    Ok(Node { at, value })
}

fn string_key(file: &Path, text: &str, raw: Spanned<Raw>) -> Result<Located<String>, Diagnostic> {
    let Node { at, value } = node(file, text, raw)?;
    match value {
        Value::String(value) => Ok(Located { value, at }),
        other => {
            Err(Diagnostic::new(file, format!("expected a key, found {}", other.kind())).at(at))
        }
    }
}

/// A file of 64 KiB of one-letter items has fewer.
const MAX_EVENTS: usize = 100_000;
const MAX_REPLAYED_EVENTS: usize = 5_000;
const MAX_DEPTH: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Node {
        parse(Path::new("t.yml"), text).unwrap()
    }

    fn refused(text: &str) -> String {
        let diagnostic = parse(Path::new("t.yml"), text).unwrap_err();
        let hint = diagnostic.hint.clone().unwrap_or_default();
        format!("{diagnostic} | {hint}")
    }

    fn entry(text: &str, key: &str) -> Node {
        let Value::Mapping(entries) = parsed(text).value else {
            panic!("no mapping: {text}");
        };
        let found = entries.into_iter().find(|(have, _)| have.value == key);
        found.unwrap().1
    }

    #[test]
    fn plain_scalars_have_the_types_of_yaml_1_1_and_quoted_ones_are_strings() {
        let text = "a: off\nb: 'off'\nc: \"1\"\nd: 1.10\ne:\nf: 8000\ng: yes\nh: 12:30\n";
        for (key, value) in [
            ("a", Value::Bool(false)),
            ("b", Value::String("off".into())),
            ("c", Value::String("1".into())),
            ("d", Value::Float(1.1)),
            ("e", Value::Null),
            ("f", Value::Integer(8000)),
            ("g", Value::Bool(true)),
            ("h", Value::String("12:30".into())),
        ] {
            assert_eq!(entry(text, key).value, value, "{key}");
        }
    }

    #[test]
    fn nested_nodes_know_their_line_column_and_bytes() {
        let text = "é: 1\nb: [ü, \"ß x\", plain  ]\n";
        let Value::Sequence(items) = entry(text, "b").value else {
            panic!("no list");
        };
        for (item, written) in items.iter().zip(["ü", "\"ß x\"", "plain"]) {
            let Position { offset, length, .. } = item.at;
            assert_eq!(&text[offset..offset + length], written);
        }
        assert_eq!((items[1].at.line, items[1].at.column), (2, 8));
    }

    #[test]
    fn an_alias_stands_where_it_is_used() {
        let node = entry("a: &x q\nb: *x\n", "b");
        assert_eq!(node.value, Value::String("q".into()));
        assert_eq!((node.at.line, node.at.column, node.at.length), (2, 4, 2));
    }

    #[test]
    fn an_empty_text_or_one_of_comments_is_nothing() {
        for text in ["", "\n", "# a comment\n", "---\n", "---\n# x\n...\n"] {
            assert_eq!(parsed(text).value, Value::Null, "{text:?}");
        }
    }

    #[test]
    fn an_unquoted_wildcard_is_refused_with_the_hint_to_quote_it() {
        assert_eq!(
            refused("server_name:\n- *.example.org\n"),
            "t.yml:2:3: `*` begins a YAML alias, and nothing has that anchor \
             | quote wildcard names: \"*.example.org\""
        );
    }

    #[test]
    fn a_duplicate_key_is_refused_at_its_second_place() {
        assert!(refused("a: 1\nb: 2\na: 3\n").starts_with("t.yml:3:1: duplicate key `a`"));
        assert!(refused("x: {a: 1, a: 2}").starts_with("t.yml:1:11: duplicate key `a`"));
    }

    #[test]
    fn tags_merge_keys_and_further_documents_are_refused_where_they_are() {
        for (text, place) in [
            ("a: !!str x\n", "t.yml:1:4: a YAML tag"),
            ("a: !x\n  b: c\n", "t.yml:1:4: a YAML tag"),
            ("a: 1\nb: !!binary aGk=\n", "t.yml:2:4: a YAML tag"),
            ("a: 1\n<<: {b: 1}\n", "t.yml:2:1: the merge key"),
            ("a: 1\n---\nb: 2\n", "t.yml:2:1: a second document"),
            ("1: 2\n", "t.yml:1:1: expected a key, found a number"),
            ("? [a]\n: 2\n", "t.yml:1:3: expected a key, found a list"),
        ] {
            assert!(
                refused(text).starts_with(place),
                "{text:?}: {}",
                refused(text)
            );
        }
    }

    #[test]
    fn characters_that_cannot_be_seen_are_refused_even_when_escaped() {
        for (text, place) in [
            (
                "\u{feff}a: 1\n",
                "t.yml:1:1: the file has a byte order mark",
            ),
            (
                "a: 1\r\nb: 2\r\n",
                "t.yml:1:5: the line ends with a carriage return",
            ),
            (
                "a: 1 # x\rb: 2\n",
                "t.yml:1:9: the line ends with a carriage return",
            ),
            (
                "a: \"\\r\"\n",
                "t.yml:1:4: the string contains a control character",
            ),
            ("a: \u{7}\n", "t.yml:1:4: control character U+0007"),
            ("a: x\0\n", "t.yml:1:5: control character U+0000"),
            (
                "a: 1\nb: \u{202e}x\n",
                "t.yml:2:4: control character U+202E",
            ),
            (
                "a: \"\\0\"\n",
                "t.yml:1:4: the string contains a control character",
            ),
            (
                "a: [\"\\u202e\"]\n",
                "t.yml:1:5: the string contains a control character",
            ),
            (
                "\"\\x01\": 1\n",
                "t.yml:1:1: the string contains a control character",
            ),
        ] {
            assert!(
                refused(text).starts_with(place),
                "{text:?}: {}",
                refused(text)
            );
        }
    }

    #[test]
    fn depth_and_aliases_are_bounded() {
        let deep = format!("a: {}{}\n", "[".repeat(300), "]".repeat(300));
        assert!(refused(&deep).contains("too deeply nested"));
        let deep: String = (0..40)
            .map(|depth| format!("{}a:\n", " ".repeat(depth)))
            .collect();
        assert!(refused(&deep).contains("too deeply nested"));
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..9 {
            let below = format!("*a{},", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
        }
        assert!(
            refused(&bomb).contains("aliases multiply"),
            "{}",
            refused(&bomb)
        );
        assert!(refused("a: &a [*a]\n").starts_with("t.yml:1:8: an alias inside its own anchor"));
    }

    #[test]
    fn a_syntax_error_has_a_place_and_never_quotes_the_text() {
        for text in [
            "s3cret: b: c\n",
            "a: [s3cret\n",
            "a: \"s3cret\n",
            "a:\n\tb: s3cret\n",
            "s3cret\na: 1\n",
            "%s3cret\n",
            "a: @s3cret\n",
        ] {
            let said = refused(text);
            assert!(
                said.starts_with("t.yml:") && !said.contains("s3cret"),
                "{text:?}: {said}"
            );
            assert!(
                !said.starts_with("t.yml: "),
                "{text:?} has no place: {said}"
            );
        }
    }

    #[test]
    fn a_file_of_64_kib_of_the_smallest_nodes_is_read() {
        let text = format!("a: [{}1]\n", "1,".repeat(32_000));
        assert!(matches!(entry(&text, "a").value, Value::Sequence(items) if items.len() == 32_001));
    }
}
