//! P: when the CA wants a certificate renewed (RFC 9773), and when to ask it again.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certificate::words::one_line;
use crate::certificate::{CLOCK_SKEW, CertificateName, Issuer, StoredCertificate};

/// What a certificate is called when its CA is asked about it (RFC 9773 §4.1).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RenewalId(String);

impl RenewalId {
    /// `None`: it does not say which key signed it, so the CA could not tell.
    pub fn of(leaf: &[u8]) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
        let authority =
            parsed
                .iter_extensions()
                .find_map(|extension| match extension.parsed_extension() {
                    ParsedExtension::AuthorityKeyIdentifier(key) => key.key_identifier.as_ref(),
                    _ => None,
                })?;
        let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let serial = encode(parsed.raw_serial());
        Some(Self(format!("{}.{serial}", encode(authority.0))))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One question to a CA.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Inquiry {
    pub name: CertificateName,
    /// Of the CA that is asked.
    pub directory: String,
    /// Of the stored version.
    pub serial: String,
    pub id: RenewalId,
}

impl Inquiry {
    /// `None` where nobody could answer: it is not from `directory`, or has no name there.
    pub fn about(stored: &StoredCertificate, directory: &str) -> Option<Self> {
        let known = stored.origin.as_ref();
        let theirs = known.is_none_or(|origin| origin.directory == directory);
        if stored.issuer != Issuer::Acme || !theirs {
            return None;
        }
        Some(Self {
            name: stored.name.clone(),
            directory: directory.to_owned(),
            serial: stored.serial.clone(),
            id: RenewalId::of(&stored.leaf)?,
        })
    }
}

/// What the CA answered (RFC 9773 §4.2).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Window {
    pub start: OffsetDateTime,
    /// After `start`.
    pub end: OffsetDateTime,
    /// Why it is as it is: for the operator to read.
    pub explanation_url: Option<String>,
}

impl Window {
    /// The error is a lowercase reason.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        let answer: Answer = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let SuggestedWindow { start, end } = answer.suggested_window;
        if end <= start {
            return Err(format!("a window that ends at {end}, before it starts"));
        }
        let is_link = |url: &String| url.starts_with("https://") && url.len() <= LONGEST_URL;
        let explanation_url = answer
            .explanation_url
            .map(|url| one_line(url.as_bytes()))
            .filter(is_link);
        Ok(Self {
            start,
            end,
            explanation_url,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    suggested_window: SuggestedWindow,
    #[serde(rename = "explanationURL", default)]
    explanation_url: Option<String>,
}

#[derive(Deserialize)]
struct SuggestedWindow {
    #[serde(with = "time::serde::rfc3339")]
    start: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    end: OffsetDateTime,
}

/// What came of a question, and when the CA wants the next (`Retry-After`, where it said so).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reply {
    pub window: Result<Window, NoWindow>,
    pub retry_after: Option<std::time::Duration>,
}

/// Why there is no window.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NoWindow {
    /// It did not answer, or not with one.
    Failed,
    /// Its directory has no such resource.
    Unsupported,
}

/// What is remembered of the CA's wishes for one stored version.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RenewalInfo {
    /// Of the version that it speaks of.
    pub serial: String,
    #[serde(with = "time::serde::rfc3339")]
    pub asked_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub ask_again: OffsetDateTime,
    /// `None`: the certificate's lifetime decides.
    pub suggestion: Option<Suggestion>,
}

/// A window, and the moment in it that is ours.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Suggestion {
    #[serde(with = "time::serde::rfc3339")]
    pub start: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub end: OffsetDateTime,
    /// Drawn once, so that a restart draws no other: of many clients each has its own.
    #[serde(with = "time::serde::rfc3339")]
    pub renew_at: OffsetDateTime,
    pub explanation_url: Option<String>,
}

impl RenewalInfo {
    /// `chance`: from 0 up to 1. An unanswered question leaves the last suggestion as it was.
    pub fn after(
        previous: Option<&Self>,
        inquiry: &Inquiry,
        reply: &Reply,
        now: OffsetDateTime,
        chance: f64,
    ) -> Self {
        let previous = previous.filter(|previous| previous.serial == inquiry.serial);
        let before = previous.and_then(|previous| previous.suggestion.as_ref());
        let (suggestion, otherwise) = match &reply.window {
            Ok(window) => (
                Some(Suggestion::draw(before, window, chance)),
                AFTER_AN_ANSWER,
            ),
            Err(NoWindow::Failed) => (before.cloned(), AFTER_A_FAILURE),
            Err(NoWindow::Unsupported) => (None, LONGEST_PAUSE),
        };
        let pause = reply.retry_after.map_or(otherwise, |asked| {
            let asked = Duration::try_from(asked).unwrap_or(LONGEST_PAUSE);
            asked.clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
        });
        Self {
            serial: inquiry.serial.clone(),
            asked_at: now,
            ask_again: now + pause,
            suggestion,
        }
    }

    /// When the CA is to be asked. What was written under a wrong clock says nothing.
    pub fn ask_at(&self, now: OffsetDateTime) -> OffsetDateTime {
        match self.asked_at <= now + CLOCK_SKEW {
            true => self.ask_again,
            false => now,
        }
    }
}

impl Suggestion {
    /// As long as the moment that was drawn is in the window, it stays.
    fn draw(before: Option<&Self>, window: &Window, chance: f64) -> Self {
        let within = |at: &OffsetDateTime| window.start <= *at && *at < window.end;
        let kept = before.map(|before| before.renew_at).filter(within);
        Self {
            start: window.start,
            end: window.end,
            renew_at: kept.unwrap_or_else(|| window.start + (window.end - window.start) * chance),
            explanation_url: window.explanation_url.clone(),
        }
    }
}

/// RFC 9773 §4.3.2: a client may not be kept away for longer, nor asked to hurry more than that.
const LONGEST_PAUSE: Duration = Duration::DAY;
const SHORTEST_PAUSE: Duration = Duration::MINUTE;
/// §4.3.2 demands the header; of a CA that forgets it, what Let's Encrypt says.
const AFTER_AN_ANSWER: Duration = Duration::hours(6);
/// §4.3.3: "a reasonable interval such as six hours".
const AFTER_A_FAILURE: Duration = Duration::hours(6);
const LONGEST_URL: usize = 400;

#[cfg(test)]
mod tests {
    use std::time::Duration as Span;

    use super::*;

    const EXAMPLE: &str = "-----BEGIN CERTIFICATE-----
MIIBQzCB66ADAgECAgUAh2VDITAKBggqhkjOPQQDAjAVMRMwEQYDVQQDEwpFeGFt
cGxlIENBMCIYDzAwMDEwMTAxMDAwMDAwWhgPMDAwMTAxMDEwMDAwMDBaMBYxFDAS
BgNVBAMTC2V4YW1wbGUuY29tMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEeBZu
7cbpAYNXZLbbh8rNIzuOoqOOtmxA1v7cRm//AwyMwWxyHz4zfwmBhcSrf47NUAFf
qzLQ2PPQxdTXREYEnKMjMCEwHwYDVR0jBBgwFoAUaYhba4dGQEHhs3uEe6CuLN4B
yNQwCgYIKoZIzj0EAwIDRwAwRAIge09+S5TZAlw5tgtiVvuERV6cT4mfutXIlwTb
+FYN/8oCIClDsqBklhB9KAelFiYt9+6FDj3z4KGVelYM5MdsO3pK
-----END CERTIFICATE-----
";

    fn at(hours: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap() + Duration::hours(hours)
    }

    fn inquiry(serial: &str) -> Inquiry {
        let name = crate::certificate::Identifier::Dns("a.example".into());
        Inquiry {
            name: CertificateName::of(&name),
            directory: "https://ca.example/directory".into(),
            serial: serial.into(),
            id: RenewalId("a.b".into()),
        }
    }

    fn window(start: i64, end: i64) -> Reply {
        Reply {
            window: Ok(Window {
                start: at(start),
                end: at(end),
                explanation_url: None,
            }),
            retry_after: Some(Span::from_secs(6 * 3600)),
        }
    }

    fn renew_at(info: &RenewalInfo) -> OffsetDateTime {
        info.suggestion.as_ref().unwrap().renew_at
    }

    #[test]
    fn a_certificates_identifier_is_that_of_the_rfcs_example() {
        // RFC 9773, appendix A
        let der = x509_parser::pem::parse_x509_pem(EXAMPLE.as_bytes());
        let der = der.unwrap().1;
        let id = RenewalId::of(&der.contents).unwrap();
        assert_eq!(id.as_str(), "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE");
    }

    #[test]
    fn a_moment_in_the_window_is_drawn_once_and_kept_while_it_is_in_it() {
        let first = RenewalInfo::after(None, &inquiry("1"), &window(100, 200), at(0), 0.5);
        assert_eq!(renew_at(&first), at(150));
        assert_eq!(first.ask_again, at(6));
        let again = RenewalInfo::after(Some(&first), &inquiry("1"), &window(110, 190), at(6), 0.9);
        assert_eq!(renew_at(&again), at(150));
        let moved = RenewalInfo::after(Some(&again), &inquiry("1"), &window(0, 10), at(12), 0.2);
        assert_eq!(renew_at(&moved), at(2));
        let next = RenewalInfo::after(Some(&moved), &inquiry("2"), &window(0, 10), at(12), 0.5);
        assert_eq!(renew_at(&next), at(5));
    }

    #[test]
    fn the_ca_says_when_to_ask_again_from_a_minute_to_a_day() {
        let pause = |retry_after: Option<u64>| {
            let reply = Reply {
                retry_after: retry_after.map(Span::from_secs),
                ..window(100, 200)
            };
            RenewalInfo::after(None, &inquiry("1"), &reply, at(0), 0.0).ask_again - at(0)
        };
        assert_eq!(pause(Some(0)), Duration::MINUTE);
        assert_eq!(pause(Some(7200)), Duration::hours(2));
        assert_eq!(pause(Some(u64::MAX)), Duration::DAY);
        assert_eq!(pause(None), Duration::hours(6));
    }

    #[test]
    fn a_question_without_an_answer_leaves_the_moment_as_it_was() {
        let first = RenewalInfo::after(None, &inquiry("1"), &window(100, 200), at(0), 0.5);
        let failed = Reply {
            window: Err(NoWindow::Failed),
            retry_after: None,
        };
        let later = RenewalInfo::after(Some(&first), &inquiry("1"), &failed, at(6), 0.0);
        assert_eq!(
            (later.suggestion, later.ask_again),
            (first.suggestion.clone(), at(12))
        );
        let gone = Reply {
            window: Err(NoWindow::Unsupported),
            retry_after: None,
        };
        let later = RenewalInfo::after(Some(&first), &inquiry("1"), &gone, at(6), 0.0);
        assert_eq!((later.suggestion, later.ask_again), (None, at(30)));
    }

    #[test]
    fn what_was_asked_under_a_wrong_clock_is_asked_now() {
        let info = RenewalInfo::after(None, &inquiry("1"), &window(100, 200), at(8760), 0.5);
        assert_eq!(info.ask_at(at(0)), at(0));
        assert_eq!(info.ask_at(at(8761)), at(8766));
    }

    #[test]
    fn a_window_that_is_none_is_refused_and_no_link_is_believed_blindly() {
        let answer = |end: &str, url: &str| {
            let body = format!(
                r#"{{"suggestedWindow":{{"start":"2027-01-02T04:00:00Z","end":"{end}"}},"explanationURL":"{url}"}}"#
            );
            Window::parse(body.as_bytes())
        };
        let good = answer("2027-01-03T04:00:00Z", "https://ca.example/why").unwrap();
        assert_eq!(good.end - good.start, Duration::DAY);
        assert_eq!(
            good.explanation_url.as_deref(),
            Some("https://ca.example/why")
        );
        assert!(answer("2027-01-02T04:00:00Z", "").is_err());
        assert!(answer("tomorrow", "").is_err());
        let odd = answer("2027-01-03T04:00:00Z", "javascript:alert(1)").unwrap();
        assert_eq!(odd.explanation_url, None);
        assert!(Window::parse(b"{}").is_err());
    }
}
