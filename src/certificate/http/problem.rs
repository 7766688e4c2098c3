//! P: the CA's own words (RFC 7807, RFC 8555 §6.7).

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use crate::certificate::attempts::RetryAdvice;
use crate::certificate::words::{first_few, one_line};

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
        let detail = one_line(self.detail.as_bytes());
        let kind = one_line(self.short_kind().as_bytes());
        match (detail.as_str(), kind.as_str()) {
            ("", "") => write!(f, "HTTP {}", self.status)?,
            ("", kind) => f.write_str(kind)?,
            (detail, "") => f.write_str(detail)?,
            (detail, kind) => write!(f, "{detail} ({kind})")?,
        }
        match self.subproblems.as_slice() {
            [] => Ok(()),
            parts => {
                let parts: Vec<String> = parts.iter().map(Subproblem::to_string).collect();
                write!(f, "; {}", first_few(&parts, "; "))
            }
        }
    }
}

impl fmt::Display for Subproblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = self
            .identifier
            .as_ref()
            .map_or("?", |identifier| identifier.value.as_str());
        let detail = one_line(self.detail.as_bytes());
        write!(f, "{}: {detail}", one_line(of.as_bytes()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_of_a_problem_reaches_a_terminal_as_it_came() {
        let escape = "got\r\n\u{1b}[2Jpage";
        let problem = Problem {
            kind: escape.into(),
            detail: escape.into(),
            subproblems: vec![Subproblem {
                kind: String::new(),
                detail: escape.into(),
                identifier: Some(SubproblemIdentifier {
                    value: escape.into(),
                }),
            }],
            ..Problem::default()
        };
        let clean = "got [2Jpage";
        assert_eq!(
            problem.to_string(),
            format!("{clean} ({clean}); {clean}: {clean}")
        );
    }

    #[test]
    fn a_problem_with_thousands_of_parts_is_a_short_message() {
        let part = Subproblem {
            detail: "x".repeat(1000),
            ..Subproblem::default()
        };
        let problem = Problem {
            kind: "y".repeat(100_000),
            detail: "z".repeat(100_000),
            subproblems: vec![part; 5000],
            ..Problem::default()
        };
        assert!(problem.to_string().len() < 5000);
    }
}
