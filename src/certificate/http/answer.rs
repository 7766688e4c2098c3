//! P: what an answer must look like before anything reads it.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, DATE, LINK, RETRY_AFTER};
use http::{HeaderMap, Response};
use serde::{Deserialize, Deserializer, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::{HttpError, Problem};
use crate::certificate::words::one_line;

/// What is used of a CA's directory (RFC 8555 §7.1.1); the rest is not read.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DirectoryObject {
    new_nonce: String,
    new_account: String,
    new_order: String,
    /// RFC 9773 §4.
    #[serde(
        default,
        deserialize_with = "text_or_nothing",
        skip_serializing_if = "Option::is_none"
    )]
    renewal_info: Option<String>,
    /// RFC 8555 §7.3.5.
    #[serde(
        default,
        deserialize_with = "text_or_nothing",
        skip_serializing_if = "Option::is_none"
    )]
    key_change: Option<String>,
    #[serde(
        default,
        deserialize_with = "meta_or_nothing",
        skip_serializing_if = "Option::is_none"
    )]
    meta: Option<Meta>,
}

/// What a CA says of itself (RFC 8555 §9.7.6), as far as it is used.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    #[serde(default)]
    external_account_required: bool,
    /// Its names in CAA records.
    #[serde(default, deserialize_with = "identities")]
    caa_identities: Vec<String>,
}

fn identities<'de, D: Deserializer<'de>>(names: D) -> Result<Vec<String>, D::Error> {
    let names = serde_json::Value::deserialize(names)?;
    let names = names.as_array().into_iter().flatten();
    let names = names.filter_map(|name| name.as_str());
    let plain = |name: &&str| {
        let label = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
        (1..=253).contains(&name.len()) && name.bytes().all(label)
    };
    let names = names.filter(plain).take(MOST_IDENTITIES);
    Ok(names.map(str::to_owned).collect())
}

const MOST_IDENTITIES: usize = 16;

/// What is not needed must not hide the rest.
fn text_or_nothing<'de, D: Deserializer<'de>>(value: D) -> Result<Option<String>, D::Error> {
    let value = serde_json::Value::deserialize(value)?;
    Ok(value.as_str().map(str::to_owned))
}

fn meta_or_nothing<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Meta>, D::Error> {
    let value = serde_json::Value::deserialize(value)?;
    Ok(serde_json::from_value(value).ok())
}

impl DirectoryObject {
    pub(super) fn parse(body: &[u8]) -> Result<Self, HttpError> {
        serde_json::from_slice(body)
            .map_err(|error| HttpError::DirectoryObject(one_line(error.to_string().as_bytes())))
    }

    pub(super) fn urls(&self) -> [&str; 3] {
        [&self.new_nonce, &self.new_account, &self.new_order]
    }

    /// Without what the CA may not name: a certificate can be renewed without being told when.
    pub(super) fn without_strange_urls(
        mut self,
        check: impl Fn(&str) -> Result<(), HttpError>,
    ) -> Self {
        if let Some(Err(error)) = self.renewal_info.as_deref().map(&check) {
            tracing::warn!("no renewal information: {error}");
            self.renewal_info = None;
        }
        if let Some(Err(error)) = self.key_change.as_deref().map(&check) {
            tracing::warn!("no change of the account's key: {error}");
            self.key_change = None;
        }
        self
    }

    pub(super) fn to_json(&self) -> Result<Vec<u8>, HttpError> {
        serde_json::to_vec(self).map_err(|error| HttpError::DirectoryObject(error.to_string()))
    }
}

/// Why an answer that is no success is none.
pub(super) fn failure(answer: &Response<Bytes>, bodiless: bool) -> HttpError {
    let status = answer.status().as_u16();
    let retry_after = retry_after(answer.headers());
    match serde_json::from_slice::<Problem>(answer.body()) {
        Ok(problem) if !problem.kind.is_empty() || !problem.detail.is_empty() => {
            HttpError::Problem(Problem {
                status,
                retry_after,
                ..problem
            })
        }
        _ => HttpError::Answer {
            status,
            words: match bodiless || answer.body().is_empty() {
                true => answer
                    .status()
                    .canonical_reason()
                    .unwrap_or("no text")
                    .to_owned(),
                false => one_line(answer.body()),
            },
            retry_after,
        },
    }
}

/// We accept no encoding (RFC 9110 §8.4), so that a small answer stays small.
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), HttpError> {
    match headers.get(CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => {
            Err(HttpError::Encoded(one_line(encoding.as_bytes())))
        }
        _ => Ok(()),
    }
}

/// When the CA says that it answered (RFC 9110 §6.6.1).
pub(super) fn date(headers: &HeaderMap) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(headers.get(DATE)?.to_str().ok()?.trim(), &Rfc2822).ok()
}

/// RFC 9110 §10.2.3: seconds, or a date, which is compared with the server's own clock.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = |text: &str| OffsetDateTime::parse(text, &Rfc2822).ok();
    let at = date(value)?;
    let now = self::date(headers)?;
    Some(Duration::try_from(at - now).unwrap_or_default())
}

/// Where other forms of the answer are (RFC 8288 §3; RFC 8555 §7.4.2).
pub(super) fn alternates(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(LINK).iter();
    let links = values.filter_map(|value| value.to_str().ok());
    links
        .flat_map(|value| value.split(','))
        .filter_map(|link| {
            let (url, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
            let mut parameters = parameters.split(';').map(str::trim);
            let alternate = parameters.any(|it| {
                let relation = it.strip_prefix("rel=").unwrap_or_default();
                relation.trim_matches('"').eq_ignore_ascii_case("alternate")
            });
            alternate.then(|| url.to_owned())
        })
        .take(MOST_LINKS)
        .collect()
}

/// Takes out what the library must not see: it adds any number of seconds to the clock, and panics
/// where that overflows; and it sends back any nonce (RFC 8555 §6.5.1: what is not base64url is to
/// be ignored).
pub(super) fn disarm(headers: &mut HeaderMap) {
    headers.remove(RETRY_AFTER);
    let base64url = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let odd = headers.get(REPLAY_NONCE).is_some_and(|nonce| {
        let nonce = nonce.as_bytes();
        nonce.is_empty() || nonce.len() > LONGEST_NONCE || !nonce.iter().all(base64url)
    });
    if odd {
        headers.remove(REPLAY_NONCE);
    }
}

pub(super) const REPLAY_NONCE: &str = "replay-nonce";
const MOST_LINKS: usize = 16;
/// Real ones have some forty; it goes into every signed request.
const LONGEST_NONCE: usize = 1024;

#[cfg(test)]
mod tests {
    use http::{HeaderValue, StatusCode};

    use super::*;

    fn answer(
        status: u16,
        headers: &[(&'static str, &'static str)],
        body: &'static str,
    ) -> Response<Bytes> {
        let mut answer = Response::new(Bytes::from_static(body.as_bytes()));
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        for (name, value) in headers {
            answer
                .headers_mut()
                .insert(*name, HeaderValue::from_static(value));
        }
        answer
    }

    #[test]
    fn a_rate_limit_keeps_the_cas_words_and_its_delay() {
        let body = r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many","future":[1],
            "subproblems":[{"type":"x","detail":"d","identifier":{"type":"novel","value":"v"}}]}"#;
        let error = failure(&answer(429, &[("retry-after", "120")], body), false);
        let HttpError::Problem(problem) = error else {
            panic!("{error}")
        };
        assert_eq!(problem.retry_after, Some(Duration::from_secs(120)));
        assert_eq!(problem.to_string(), "too many (rateLimited); v: d");
    }

    #[test]
    fn a_load_balancers_page_is_shown_as_what_it_is() {
        let page = "<html>\n<h1>Service\tbusy</h1>\u{1b}[31m";
        let error = failure(&answer(503, &[("retry-after", "5")], page), false);
        assert_eq!(
            error.to_string(),
            "HTTP 503 without an ACME problem: <html> <h1>Service busy</h1> [31m"
        );
        let HttpError::Answer { retry_after, .. } = error else {
            panic!()
        };
        assert_eq!(retry_after, Some(Duration::from_secs(5)));
    }

    #[test]
    fn a_retry_date_is_measured_on_the_servers_clock() {
        let headers = [
            ("date", "Tue, 24 Nov 2026 13:40:01 GMT"),
            ("retry-after", "Tue, 24 Nov 2026 13:41:31 GMT"),
        ];
        let wait = retry_after(answer(429, &headers, "").headers());
        assert_eq!(wait, Some(Duration::from_secs(90)));
        assert_eq!(retry_after(answer(429, &headers[1..], "").headers()), None);
    }

    #[test]
    fn what_would_make_the_library_panic_does_not_reach_it() {
        let headers = [
            ("retry-after", "18446744073709551615"),
            ("replay-nonce", "a\"b"),
        ];
        let mut odd = answer(200, &headers, "").headers().clone();
        disarm(&mut odd);
        assert!(odd.is_empty(), "{odd:?}");
        let mut good = answer(200, &[("replay-nonce", "a-_9")], "")
            .headers()
            .clone();
        disarm(&mut good);
        assert_eq!(good.len(), 1);
    }

    #[test]
    fn alternates_are_found_among_other_links() {
        let headers = [(
            "link",
            "<https://ca.example/dir>;rel=\"index\", <https://ca.example/cert/1/1>; title=x; rel=\"alternate\"",
        )];
        let mut headers = answer(200, &headers, "").headers().clone();
        let second = HeaderValue::from_static("<https://ca.example/cert/1/2>;rel=alternate");
        headers.append("link", second);
        for odd in [
            "<a;rel=alternate",
            ";rel=alternate",
            "<a>",
            "<a>;rel=\"alternate up\"",
        ] {
            headers.append("link", HeaderValue::from_static(odd));
        }
        let found = ["https://ca.example/cert/1/1", "https://ca.example/cert/1/2"];
        assert_eq!(alternates(&headers), found);
    }

    #[test]
    fn an_absurd_delay_is_a_number_or_nothing() {
        let asked = |value| retry_after(answer(503, &[("retry-after", value)], "").headers());
        assert_eq!(
            asked("18446744073709551615"),
            Some(Duration::MAX - Duration::from_nanos(999_999_999))
        );
        for odd in [
            "-5",
            "1e9",
            "",
            "99999999999999999999",
            "Tue, 99 Foo 2026 13:41:31 GMT",
        ] {
            assert_eq!(asked(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn only_what_is_used_of_a_directory_is_read() {
        let text = r#"{"newNonce":"n","newAccount":"a","newOrder":"o","meta":7,"keyChange":1,"revokeCert":[]}"#;
        let object = DirectoryObject::parse(text.as_bytes()).unwrap();
        let json = object.to_json().unwrap();
        assert_eq!(json, br#"{"newNonce":"n","newAccount":"a","newOrder":"o"}"#);
        assert!(DirectoryObject::parse(br#"{"newNonce":1}"#).is_err());
    }

    #[test]
    fn whom_caa_records_may_name_is_kept_of_a_directory() {
        let identities = r#"["ca.example", 7, "evil\u001b[31m", ""]"#;
        let text = format!(
            r#"{{"newNonce":"n","newAccount":"a","newOrder":"o","meta":{{"caaIdentities":{identities}}}}}"#
        );
        let object = DirectoryObject::parse(text.as_bytes()).unwrap();
        let json = String::from_utf8(object.to_json().unwrap()).unwrap();
        assert!(json.contains(r#""caaIdentities":["ca.example"]"#), "{json}");
    }
}
