//! P: what is wrong with a file, where, and what to do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::string::FromUtf8Error;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// One thing that is wrong with a vhost file or with the settings.
///
/// `reason` is a lowercase fragment without a final full stop; it never quotes bytes of another
/// file, and neither it nor `hint` has a character that a terminal or a log could take for more than
/// text, whatever was quoted: see [`printable`]. The pictures (source line, caret, colours) are drawn in `cli`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Diagnostic {
    /// The file as the user knows it; `-` for standard input.
    pub file: PathBuf,
    pub at: Option<Position>,
    pub reason: String,
    /// What to do: a corrected spelling, the next command.
    pub hint: Option<String>,
    /// What nginx said, word for word, where `reason` is a translation of it. (In a box: rare, and
    /// diagnostics are passed by value.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nginx: Option<Box<String>>,
    /// The settings or the file's owner do not permit it, so no text that says the same serves on.
    /// Otherwise the text is malformed, and the last good one serves on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not_permitted: bool,
}

impl Diagnostic {
    pub fn new(file: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            at: None,
            reason: printable(&reason.into()),
            hint: None,
            nginx: None,
            not_permitted: false,
        }
    }

    pub fn at(mut self, position: Position) -> Self {
        self.at = Some(position);
        self
    }

    pub fn in_nginxs_words(mut self, words: impl Into<String>) -> Self {
        self.nginx = Some(Box::new(words.into()));
        self
    }

    pub fn not_permitted(mut self) -> Self {
        self.not_permitted = true;
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(printable(&hint.into()));
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(at) = &self.at {
            write!(f, ":{}:{}", at.line, at.column)?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// `text` on one line, with U+FFFD for what cannot be seen.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => ' ',
            c if is_unprintable(c) => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// What went wrong with a file, in the system's words and as a fragment: `permission denied`.
pub fn fault(error: &io::Error) -> String {
    match error.raw_os_error() {
        // its kind may be "uncategorized"
        Some(code) => match Errno::from_raw(code) {
            Errno::EIO => "I/O error".to_owned(),
            errno => errno.desc().to_lowercase(),
        },
        None => error.to_string(),
    }
}

/// Neither seen nor a line feed or a tab: control characters, byte order marks, interlinear and
/// bidirectional controls.
pub fn is_unprintable(c: char) -> bool {
    match c {
        '\n' | '\t' => false,
        '\u{feff}' | '\u{fff9}'..='\u{fffb}' => true,
        '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        c => c.is_control(),
    }
}

/// A place in a text file.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Position {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// From 0, in bytes.
    pub offset: usize,
    /// In bytes; 0 where the end is not known.
    pub length: usize,
}

impl Position {
    /// Of the first byte that is no part of a character.
    pub fn of_not_utf8(error: &FromUtf8Error) -> Self {
        let offset = error.utf8_error().valid_up_to();
        let valid = String::from_utf8_lossy(&error.as_bytes()[..offset]);
        let last = valid.rsplit('\n').next().unwrap_or_default();
        Self {
            line: valid.matches('\n').count() + 1,
            column: last.chars().count() + 1,
            offset,
            length: 1,
        }
    }
}

/// A value and where it was written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Located<T> {
    pub value: T,
    pub at: Position,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_fails_with_a_file_has_words() {
        for (errno, words) in [
            (Errno::EACCES, "permission denied"),
            (Errno::EIO, "I/O error"),
            (Errno::EISDIR, "is a directory"),
            (Errno::EMFILE, "too many open files"),
        ] {
            assert_eq!(fault(&errno.into()), words);
        }
        assert_eq!(fault(&io::Error::other("odd")), "odd");
    }

    #[test]
    fn nothing_that_is_quoted_makes_a_line_or_a_colour_of_its_own() {
        let diagnostic = Diagnostic::new("f", "a\nb\r\u{1b}[31mc\u{202e}").hint("d\te\u{7}");
        assert_eq!(diagnostic.reason, "a b\u{fffd}\u{fffd}[31mc\u{fffd}");
        assert_eq!(diagnostic.hint.as_deref(), Some("d e\u{fffd}"));
    }
}
