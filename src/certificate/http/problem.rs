//! P: the CA's own words (RFC 7807, RFC 8555 §6.7).

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use crate::certificate::schedule::RetryAdvice;

/// What the CA says is wrong (RFC 7807, RFC 8555 §6.7). Unknown members and identifier types are
/// ignored: they must not hide the reason.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
pub struct Problem {
    /// `urn:ietf:params:acme:error:…`
    #[serde(rename = "type", default)]
    pub kind: String,
    #[serde(default)]
    pub detail: String,
    #[serde(default)]
    pub subproblems: Vec<Subproblem>,
    /// Of the HTTP answer; 0 where it came inside an object.
    #[serde(skip)]
    pub status: u16,
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

/// A part of a [`Problem`] about one identifier (RFC 8555 §6.7.1).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
pub struct Subproblem {
    #[serde(rename = "type", default)]
    pub kind: String,
    #[serde(default)]
    pub detail: String,
    pub identifier: Option<SubproblemIdentifier>,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
pub struct SubproblemIdentifier {
    #[serde(default)]
    pub value: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.detail.as_str(), self.short_kind()) {
            ("", "") => write!(f, "HTTP {}", self.status)?,
            ("", kind) => f.write_str(kind)?,
            (detail, "") => f.write_str(&one_line(detail.as_bytes()))?,
            (detail, kind) => write!(f, "{} ({kind})", one_line(detail.as_bytes()))?,
        }
        for part in &self.subproblems {
            let of = part
                .identifier
                .as_ref()
                .map_or("?", |identifier| identifier.value.as_str());
            write!(
                f,
                "; {}: {}",
                one_line(of.as_bytes()),
                one_line(part.detail.as_bytes())
            )?;
        }
        Ok(())
    }
}

impl Problem {
    /// `rateLimited` of `urn:ietf:params:acme:error:rateLimited`.
    pub fn short_kind(&self) -> &str {
        self.kind
            .strip_prefix("urn:ietf:params:acme:error:")
            .unwrap_or(&self.kind)
    }

    /// Will the same request be answered differently later? (RFC 8555 §6.7)
    pub fn retry(&self) -> RetryAdvice {
        if let Some(wait) = self.retry_after {
            return RetryAdvice::After(wait);
        }
        match self.short_kind() {
            "badCSR"
            | "badPublicKey"
            | "badSignatureAlgorithm"
            | "externalAccountRequired"
            | "invalidContact"
            | "invalidProfile"
            | "rejectedIdentifier"
            | "unsupportedContact"
            | "unsupportedIdentifier"
            | "userActionRequired" => RetryAdvice::Useless,
            _ => RetryAdvice::Retry,
        }
    }
}

/// Foreign text for a message: one line, no control characters, not endless.
pub(super) fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MAXIMUM_WORDS)]);
    let clean: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let mut line = clean.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = line.char_indices().nth(MAXIMUM_WORDS) {
        line.truncate(cut);
        line.push('…');
    }
    line
}

/// In characters.
const MAXIMUM_WORDS: usize = 400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_answer_is_cut() {
        let line = one_line("ä".repeat(2000).as_bytes());
        assert_eq!(line.chars().count(), MAXIMUM_WORDS + 1);
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        let problem = Problem {
            detail: "got\r\n\u{1b}[2Jpage".into(),
            ..Problem::default()
        };
        assert_eq!(problem.to_string(), "got [2Jpage");
    }
}
