//! P: what is wrong with a file, where, and what to do about it.

use std::fmt;
use std::path::PathBuf;
use std::string::FromUtf8Error;

use serde::{Deserialize, Serialize};

/// One thing that is wrong with a vhost file or with the settings.
///
/// `reason` is a lowercase fragment without a final full stop; it never quotes bytes of another
/// file. The pictures (source line, caret, colours) are drawn in `cli`.
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
}

impl Diagnostic {
    pub fn new(file: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            at: None,
            reason: reason.into(),
            hint: None,
            nginx: None,
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

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
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
