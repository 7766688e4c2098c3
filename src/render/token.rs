//! P: the one place that turns a value into an nginx token.
//!
//! nginx's words are interpreted twice: by the configuration tokenizer (quotes, backslashes,
//! `;{}#`, spaces), and, in about a hundred directives, by the script engine, for which `$` begins
//! a variable. The first can be quoted exactly; `$` cannot be escaped at all, so a value that has
//! one is refused, and only texts of our own source code may name variables.
//!
//! How the two reach the quoter through Tera, which hands over bare strings: a [`Token`] is
//! checked when it is made, and one with variables is serialized behind a mark of ours.
//! [`escape`] quotes whatever arrives, and refuses `$` unless that mark is there. No value can
//! carry the mark, because [`Token::literal`] and [`escape`] refuse it inside.

use std::fmt;
use std::io::{self, Write};

use serde::{Serialize, Serializer};

/// nginx refuses a token of 4,094 bytes ("too long parameter"); nothing of ours is near that.
pub const MAX_BYTES: usize = 1024;

/// A private-use character (U+F0000): the rest may contain nginx variables.
const EXPRESSION_MARK: char = '\u{F0000}';

/// Why a text cannot be a token. Retrying is useless.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TokenError {
    /// nginx would read on: `$name` followed by `x` is the variable `$namex`.
    #[error("a variable runs into the text after it")]
    Ambiguous,
    /// NUL cuts nginx's C strings, CR and LF split headers, and the mark is ours.
    #[error("the character {0:?} cannot be in nginx configuration")]
    Character(char),
    #[error("a path is not absolute")]
    NotAbsolute,
    #[error("a path is not UTF-8")]
    NotUtf8,
    /// In bytes.
    #[error("{0} bytes are more than nginx configuration should carry in one word (1024)")]
    TooLong(usize),
}

/// One whole word of nginx configuration, without its quotes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Token {
    text: String,
    has_variables: bool,
}

/// What an expression is made of.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// Our own text; `$name` in it is an nginx variable.
    Ours(&'static str),
    /// Someone's text, literal.
    Value(&'a str),
}

impl Token {
    /// A word that means exactly `text`. Refuses `$`.
    pub fn literal(text: &str) -> Result<Self, TokenError> {
        check_literal(text)?;
        check_length(text)?;
        Ok(Self {
            text: text.to_owned(),
            has_variables: false,
        })
    }

    /// A word with nginx variables, which can only come from our own source code.
    pub fn expression(parts: &[Part<'_>]) -> Result<Self, TokenError> {
        let mut text = String::new();
        let mut open_variable = false;
        for part in parts {
            match part {
                Part::Ours(ours) => {
                    check_characters(ours)?;
                    text.push_str(ours);
                    open_variable = ends_in_variable(ours);
                }
                Part::Value(value) => {
                    check_literal(value)?;
                    if open_variable && value.starts_with(is_variable_character) {
                        return Err(TokenError::Ambiguous);
                    }
                    open_variable &= value.is_empty();
                    text.push_str(value);
                }
            }
        }
        check_length(&text)?;
        Ok(Self {
            text,
            has_variables: true,
        })
    }

    /// `$NAME`, for a variable of ours: lower-case letters, digits and `_`, beginning `vhostd_`.
    pub fn variable(name: &str) -> Result<Self, TokenError> {
        let allowed = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_';
        if let Some(odd) = name.chars().find(|character| !allowed(character)) {
            return Err(TokenError::Character(odd));
        }
        if !name.starts_with("vhostd_") {
            return Err(TokenError::Ambiguous);
        }
        check_length(name)?;
        Ok(Self {
            text: format!("${name}"),
            has_variables: true,
        })
    }

    /// The text that nginx sees when it has removed the quotes.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.has_variables {
            serializer.collect_str(&format_args!("{EXPRESSION_MARK}{}", self.text))
        } else {
            serializer.serialize_str(&self.text)
        }
    }
}

/// Tera's escape function for our templates: every placeholder becomes one quoted token.
pub fn escape(text: &str, out: &mut dyn Write) -> io::Result<()> {
    match text.strip_prefix(EXPRESSION_MARK) {
        Some(expression) => quote_checked(expression, check_characters, out),
        None => quote(text, out),
    }
}

/// Writes `text` as one double-quoted token that nginx reads back as exactly `text`.
///
/// Refuses what [`Token::literal`] refuses, as [`io::ErrorKind::InvalidData`].
pub fn quote(text: &str, out: &mut dyn Write) -> io::Result<()> {
    quote_checked(text, check_literal, out)
}

fn quote_checked(
    text: &str,
    check: fn(&str) -> Result<(), TokenError>,
    out: &mut dyn Write,
) -> io::Result<()> {
    check(text)
        .and_then(|()| check_length(text))
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    // `\` and `"` are all that ngx_conf_read_token interprets between double quotes
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        if matches!(character, '\\' | '"') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted.push('"');
    out.write_all(quoted.as_bytes())
}

fn check_literal(text: &str) -> Result<(), TokenError> {
    if text.contains('$') {
        return Err(TokenError::Character('$'));
    }
    check_characters(text)
}

fn check_characters(text: &str) -> Result<(), TokenError> {
    match text
        .chars()
        .find(|character| character.is_control() || *character == EXPRESSION_MARK)
    {
        Some(character) => Err(TokenError::Character(character)),
        None => Ok(()),
    }
}

fn check_length(text: &str) -> Result<(), TokenError> {
    if text.len() > MAX_BYTES {
        return Err(TokenError::TooLong(text.len()));
    }
    Ok(())
}

fn ends_in_variable(ours: &str) -> bool {
    ours.rfind('$')
        .is_some_and(|dollar| ours[dollar + 1..].chars().all(is_variable_character))
}

fn is_variable_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '{')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nginx::syntax;

    fn quoted(text: &str) -> String {
        let mut out = Vec::new();
        quote(text, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_token_is_always_double_quoted() {
        for (text, expected) in [
            ("", r#""""#),
            ("plain", r#""plain""#),
            ("two words;}{#", r#""two words;}{#""#),
            (r#"a"b"#, r#""a\"b""#),
            (r"back\", r#""back\\""#),
            (r"\n", r#""\\n""#),
            ("it's", r#""it's""#),
        ] {
            assert_eq!(quoted(text), expected);
        }
    }

    #[test]
    fn every_special_string_is_read_back_as_it_was() {
        for text in syntax::tests::special_strings(3_000) {
            let parsed = syntax::parse(format!("name {};", quoted(&text)).as_bytes()).unwrap();
            assert_eq!(parsed.len(), 1, "{text:?}");
            assert_eq!(parsed[0].args, [text.as_str()], "{text:?}");
        }
    }

    #[test]
    fn what_nginx_would_interpret_or_cut_is_refused() {
        for (text, character) in [
            ("a$b", '$'),
            ("a\0b", '\0'),
            ("a\nb", '\n'),
            ("a\rb", '\r'),
            ("a\tb", '\t'),
            ("a\u{7f}b", '\u{7f}'),
            ("a\u{85}b", '\u{85}'),
            ("\u{F0000}$host", '$'),
            ("\u{F0000}host", '\u{F0000}'),
        ] {
            assert_eq!(Token::literal(text), Err(TokenError::Character(character)));
            assert!(quote(text, &mut Vec::new()).is_err());
        }
    }

    #[test]
    fn the_escape_function_lets_variables_pass_only_behind_the_mark_of_an_expression() {
        let mut out = Vec::new();
        assert!(escape("$host", &mut out).is_err());
        assert!(escape("x\u{F0000}$host", &mut out).is_err());
        assert!(escape("\u{F0000}\u{F0000}$host", &mut out).is_err());
        assert!(out.is_empty());
        escape("\u{F0000}$host\"", &mut out).unwrap();
        assert_eq!(out, br#""$host\"""#);
    }

    #[test]
    fn an_expression_keeps_its_values_literal() {
        let token = Token::expression(&[Part::Ours("$1."), Part::Value("abc")]).unwrap();
        assert_eq!(token.as_str(), "$1.abc");
        let value = Token::expression(&[Part::Ours("$host "), Part::Value("$uri")]);
        assert_eq!(value, Err(TokenError::Character('$')));
    }

    #[test]
    fn a_variable_never_runs_into_a_value() {
        for (ours, value) in [("$host", "a"), ("$", "host"), ("$host", "_"), ("$", "{a}")] {
            let token = Token::expression(&[Part::Ours(ours), Part::Value(value)]);
            assert_eq!(token, Err(TokenError::Ambiguous), "{ours} {value}");
        }
        let split = [Part::Ours("$host"), Part::Value(""), Part::Value("a")];
        assert_eq!(Token::expression(&split), Err(TokenError::Ambiguous));
        assert!(Token::expression(&[Part::Ours("$host"), Part::Value(":1")]).is_ok());
        assert!(Token::expression(&[Part::Ours("$host "), Part::Value("a")]).is_ok());
    }

    #[test]
    fn the_length_is_limited_in_bytes() {
        assert!(Token::literal(&"é".repeat(512)).is_ok());
        assert_eq!(
            Token::literal(&"é".repeat(513)),
            Err(TokenError::TooLong(1026))
        );
        assert!(quote(&"x".repeat(1025), &mut Vec::new()).is_err());
    }
}
