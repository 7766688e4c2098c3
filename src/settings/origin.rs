//! P: which URLs are spoken to.

use std::fmt;
use std::net::IpAddr;

use http::Uri;

/// Why a URL is not spoken to. It never quotes the URL, which may be a secret.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UrlError {
    #[error("not a URL with a host")]
    NoHost,
    #[error("not an https:// URL")]
    NotHttps,
    #[error("not a URL")]
    NoUrl,
    #[error("http:// only to a loopback address")]
    PlainElsewhere,
}

/// `https://`, or plain `http://` to a server on this host; without a user's name.
pub fn checked(text: &str) -> Result<Uri, UrlError> {
    let uri: Uri = text.parse().map_err(|_| UrlError::NoUrl)?;
    let host = uri.host().unwrap_or_default();
    if host.is_empty() || uri.authority().is_some_and(|it| it.as_str().contains('@')) {
        return Err(UrlError::NoHost);
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = host == "localhost"
        || bare
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback());
    match uri.scheme_str() {
        Some("https") => Ok(uri),
        Some("http") if loopback => Ok(uri),
        Some("http") => Err(UrlError::PlainElsewhere),
        _ => Err(UrlError::NotHttps),
    }
}

/// A URL that was [`checked`], of which nothing but the origin is ever shown.
#[derive(Clone, Eq, PartialEq)]
pub struct HookUrl(Uri);

impl HookUrl {
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        checked(text).map(Self)
    }

    pub fn uri(&self) -> &Uri {
        &self.0
    }
}

impl fmt::Debug for HookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.0.scheme_str().unwrap_or_default();
        write!(f, "{scheme}://{}/…", self.0.host().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_host_only_and_nobody_logs_in_by_url() {
        for good in [
            "https://hooks.example/T0/B0",
            "http://127.0.0.1:8080/x",
            "http://[::1]/x",
            "http://localhost/x",
        ] {
            assert!(checked(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("http://hooks.example/x", UrlError::PlainElsewhere),
            ("http://127.0.0.1.example/x", UrlError::PlainElsewhere),
            ("https://user:word@hooks.example/x", UrlError::NoHost),
            ("ftp://hooks.example/x", UrlError::NotHttps),
            ("/x", UrlError::NoHost),
            ("https://a b/", UrlError::NoUrl),
        ] {
            assert_eq!(checked(bad).unwrap_err(), why, "{bad}");
        }
    }

    #[test]
    fn of_a_hooks_url_only_the_origin_is_shown() {
        let url = HookUrl::parse("https://hooks.example/T0/very-secret?k=v").unwrap();
        assert_eq!(format!("{url:?}"), "https://hooks.example/…");
    }
}
