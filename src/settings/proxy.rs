//! P: the HTTP proxy that CAs and webhooks are reached through, and whom it is not for.

use std::fmt;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Uri};

/// Which requests to CAs and webhooks go through which proxy: `acme.proxy`, else `HTTPS_PROXY`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ProxySettings {
    pub choice: ProxyChoice,
    /// Of the environment, also where the settings name the proxy (as curl's `--proxy`).
    no_proxy: NoProxy,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum ProxyChoice {
    /// The settings do not say, and neither does the environment.
    #[default]
    Unset,
    /// `acme.proxy: off`.
    Off,
    Through(ProxyUrl),
    /// The environment's, which is told where a request needs it: a variable that is meant for other
    /// programs keeps no command from starting.
    Unusable {
        variable: &'static str,
        error: ProxyUrlError,
    },
}

/// `http://[USER:PASSWORD@]HOST[:PORT]`. Neither `Debug` nor `Display` shows the login.
#[derive(Clone, Eq, PartialEq)]
pub struct ProxyUrl {
    /// Without userinfo.
    uri: Uri,
    /// `Proxy-Authorization` (RFC 9110 §11.7.2), basic.
    login: Option<HeaderValue>,
}

/// Why a text is not the URL of a proxy. It never quotes the text, which may have a password.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProxyUrlError {
    #[error("a login with characters that are not UTF-8 or control characters")]
    Login,
    #[error("a proxy has no path")]
    Path,
    #[error("no http:// URL: proxies are spoken to by http:// only, not by https:// or socks")]
    Scheme,
    #[error("not a URL with a host and a port")]
    Url,
}

impl ProxySettings {
    /// Adds what the environment says, read by `variable`. As with curl, lower case goes first, and
    /// what is empty is not set.
    pub fn with_environment(self, variable: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: [&'static str; 2]| {
            let set = |name| Some((name, variable(name).filter(|text| !text.is_empty())?));
            names.into_iter().find_map(set)
        };
        let choice = match (self.choice, first(["https_proxy", "HTTPS_PROXY"])) {
            (ProxyChoice::Unset, Some((variable, text))) => match ProxyUrl::lenient(&text) {
                Ok(url) => ProxyChoice::Through(url),
                Err(error) => ProxyChoice::Unusable { variable, error },
            },
            (choice, _) => choice,
        };
        let no_proxy = first(["no_proxy", "NO_PROXY"]);
        Self {
            choice,
            no_proxy: no_proxy.map_or_else(NoProxy::default, |(_, text)| NoProxy::parse(&text)),
        }
    }

    /// What a request for `target` goes through; `None`: straight there.
    ///
    /// Plain http is spoken to this host's own loopback addresses alone (`settings::origin`): a proxy
    /// would lead it to its own, and what it says over the network.
    pub fn of(&self, target: &Uri) -> Option<Result<&ProxyUrl, (&'static str, ProxyUrlError)>> {
        let host = target
            .host()
            .filter(|_| target.scheme_str() == Some("https"))?;
        if self.no_proxy.has(host, target.port_u16().unwrap_or(443)) {
            return None;
        }
        match &self.choice {
            ProxyChoice::Unset | ProxyChoice::Off => None,
            ProxyChoice::Through(url) => Some(Ok(url)),
            ProxyChoice::Unusable { variable, error } => Some(Err((variable, *error))),
        }
    }
}

impl ProxyUrl {
    pub fn parse(text: &str) -> Result<Self, ProxyUrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(ProxyUrlError::Scheme)?;
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(ProxyUrlError::Scheme);
        }
        let (userinfo, rest) = match rest.rsplit_once('@') {
            Some((userinfo, rest)) => (Some(userinfo), rest),
            None => (None, rest),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err(ProxyUrlError::Path);
        }
        let uri: Uri = format!("http://{authority}/")
            .parse()
            .map_err(|_| ProxyUrlError::Url)?;
        let has_host = uri.host().is_some_and(|host| !host.is_empty());
        let ends_with_port = authority
            .rsplit_once(':')
            .filter(|(_, end)| !end.ends_with(']'));
        let port = ends_with_port.map(|(_, port)| port.parse::<u16>().is_ok_and(|it| it > 0));
        if !has_host || port == Some(false) {
            return Err(ProxyUrlError::Url);
        }
        let login = userinfo.map(basic).transpose()?;
        Ok(Self { uri, login })
    }

    /// As it stands in an environment: `HOST:PORT`, too.
    fn lenient(text: &str) -> Result<Self, ProxyUrlError> {
        match text.contains("://") {
            true => Self::parse(text),
            false => Self::parse(&format!("http://{text}")),
        }
    }

    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    pub fn login(&self) -> Option<&HeaderValue> {
        self.login.as_ref()
    }
}

/// RFC 7617 §2, of a percent-encoded userinfo (RFC 3986 §3.2.1).
fn basic(userinfo: &str) -> Result<HeaderValue, ProxyUrlError> {
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let (user, password) = (percent_decoded(user), percent_decoded(password));
    let pair = String::from_utf8([&user[..], b":", &password[..]].concat());
    let pair = pair.map_err(|_| ProxyUrlError::Login)?;
    if pair.contains(char::is_control) {
        return Err(ProxyUrlError::Login);
    }
    let value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair)));
    let mut value = value.map_err(|_| ProxyUrlError::Login)?;
    value.set_sensitive(true);
    Ok(value)
}

/// A `%` that begins no such code stands for itself, as in a password that nobody encoded.
fn percent_decoded(text: &str) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = match (first, tail) {
            (b'%', [high, low, ..]) => digit(*high).zip(digit(*low)),
            _ => None,
        };
        (rest, _) = match code {
            Some((high, low)) => (&tail[2..], decoded.push(high << 4 | low)),
            None => (tail, decoded.push(*first)),
        };
    }
    decoded
}

fn digit(byte: u8) -> Option<u8> {
    let value = char::from(byte).to_digit(16)?;
    u8::try_from(value).ok()
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = self.uri.authority().map_or("", |it| it.as_str());
        write!(f, "http://{authority}")
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `NO_PROXY`: a list of hosts that are reached without a proxy, by curl's rules.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct NoProxy(Vec<Exempt>);

#[derive(Clone, Debug, Eq, PartialEq)]
struct Exempt {
    host: ExemptHost,
    port: Option<u16>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum ExemptHost {
    /// `*`
    All,
    /// A domain and all below it, in lower case, without a dot in front.
    Domain(String),
    /// The addresses whose first bits are these.
    Network { address: IpAddr, bits: u8 },
}

impl NoProxy {
    /// Entries are apart by commas or white space. What cannot be understood matches nothing.
    fn parse(text: &str) -> Self {
        let entries = text.split(|c: char| c == ',' || c.is_whitespace());
        Self(
            entries
                .filter(|it| !it.is_empty())
                .filter_map(Exempt::parse)
                .collect(),
        )
    }

    /// `host`: of a URL.
    fn has(&self, host: &str, port: u16) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let mut exempts = self.0.iter();
        exempts.any(|it| it.port.is_none_or(|its| its == port) && it.host.has(&host))
    }
}

impl Exempt {
    fn parse(text: &str) -> Option<Self> {
        if let Some(host) = ExemptHost::network(text) {
            return Some(Self { host, port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (text, None),
        };
        let domain = || {
            let domain = host.strip_prefix("*.").unwrap_or(host).trim_matches('.');
            (!domain.is_empty()).then(|| ExemptHost::Domain(domain.to_ascii_lowercase()))
        };
        let host = match host {
            "*" => ExemptHost::All,
            _ => ExemptHost::network(host).or_else(domain)?,
        };
        Some(Self { host, port })
    }
}

impl ExemptHost {
    /// `192.0.2.1`, `192.0.2.0/24`, `2001:db8::1`, `[2001:db8::1]`, `2001:db8::/32`.
    fn network(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address = address.trim_start_matches('[').trim_end_matches(']');
        let address: IpAddr = address.parse().ok()?;
        let longest = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        let bits = bits.map_or(Some(longest), |bits| bits.parse().ok())?;
        (bits <= longest).then_some(Self::Network { address, bits })
    }

    fn has(&self, host: &str) -> bool {
        match self {
            Self::All => true,
            Self::Domain(domain) => {
                let before = host.strip_suffix(domain.as_str());
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            }
            Self::Network { address, bits } => match (address, host.parse()) {
                (IpAddr::V4(network), Ok(IpAddr::V4(host))) => {
                    let differing = u32::from(*network) ^ u32::from(host);
                    differing.leading_zeros() >= u32::from(*bits)
                }
                (IpAddr::V6(network), Ok(IpAddr::V6(host))) => {
                    let differing = u128::from(*network) ^ u128::from(host);
                    differing.leading_zeros() >= u32::from(*bits)
                }
                _ => false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(set: &[(&str, &str)]) -> ProxySettings {
        with(ProxyChoice::Unset, set)
    }

    fn with(choice: ProxyChoice, set: &[(&str, &str)]) -> ProxySettings {
        let settings = ProxySettings {
            choice,
            ..ProxySettings::default()
        };
        settings.with_environment(|name| {
            let found = set.iter().find(|(set, _)| *set == name);
            found.map(|(_, text)| (*text).to_owned())
        })
    }

    fn route(settings: &ProxySettings, target: &str) -> String {
        match settings.of(&target.parse().unwrap()) {
            None => "direct".to_owned(),
            Some(Ok(url)) => url.to_string(),
            Some(Err((variable, error))) => format!("{variable}: {error}"),
        }
    }

    const CA: &str = "https://acme-v02.api.letsencrypt.org/directory";

    #[test]
    fn the_settings_go_before_the_environment_and_lower_case_before_upper_case() {
        let upper = ("HTTPS_PROXY", "http://upper:1");
        let lower = ("https_proxy", "http://lower:2");
        let chosen = || ProxyChoice::Through(ProxyUrl::parse("http://chosen:3").unwrap());
        for (settings, expected) in [
            (environment(&[]), "direct"),
            (environment(&[upper]), "http://upper:1"),
            (environment(&[upper, lower]), "http://lower:2"),
            (environment(&[upper, ("https_proxy", "")]), "http://upper:1"),
            (
                environment(&[("HTTPS_PROXY", "proxy:3128")]),
                "http://proxy:3128",
            ),
            (
                environment(&[("HTTP_PROXY", "http://x:1"), ("http_proxy", "http://x:1")]),
                "direct",
            ),
            (with(chosen(), &[upper, lower]), "http://chosen:3"),
            (with(ProxyChoice::Off, &[upper, lower]), "direct"),
            (with(chosen(), &[("NO_PROXY", "letsencrypt.org")]), "direct"),
        ] {
            assert_eq!(route(&settings, CA), expected, "{settings:?}");
        }
        for text in ["socks5://x:1080", "https://x:443"] {
            let told = route(&environment(&[("HTTPS_PROXY", text)]), CA);
            assert!(told.starts_with("HTTPS_PROXY: no http:// URL"), "{told}");
        }
    }

    #[test]
    fn plain_http_which_is_for_this_host_alone_goes_through_no_proxy() {
        let settings = environment(&[("https_proxy", "http://p:1"), ("http_proxy", "http://p:1")]);
        assert_eq!(route(&settings, "http://127.0.0.1:8080/hook"), "direct");
        assert_eq!(
            route(&settings, "https://127.0.0.1:8080/hook"),
            "http://p:1"
        );
    }

    #[test]
    fn no_proxy_is_read_as_curl_reads_it() {
        let goes_direct = |no_proxy: &str, host: &str| {
            let set = [("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", no_proxy)];
            route(&environment(&set), &format!("https://{host}/")) == "direct"
        };
        for (no_proxy, host) in [
            ("*", "ca.example"),
            ("ca.example", "ca.example"),
            ("ca.example", "CA.Example."),
            ("example", "ca.example"),
            (".example", "ca.example"),
            (".ca.example", "ca.example"),
            ("*.example", "ca.example"),
            ("a.test, ca.example", "ca.example"),
            ("a.test ca.example", "ca.example"),
            ("ca.example:443", "ca.example"),
            ("ca.example:14000", "ca.example:14000"),
            ("127.0.0.1", "127.0.0.1:14000"),
            ("127.0.0.1:14000", "127.0.0.1:14000"),
            ("127.0.0.0/8", "127.1.2.3"),
            ("10.0.0.0/9", "10.127.0.1"),
            ("0.0.0.0/0", "192.0.2.1"),
            ("::1", "[::1]:14000"),
            ("[::1]", "[::1]"),
            ("[::1]:14000", "[::1]:14000"),
            ("fd00::/8", "[fdab::1]"),
        ] {
            assert!(goes_direct(no_proxy, host), "{no_proxy}: {host}");
        }
        for (no_proxy, host) in [
            ("", "ca.example"),
            (",, ", "ca.example"),
            ("xample", "ca.example"),
            ("ca.example", "notca.example"),
            ("ca.example", "ca.example.evil"),
            ("ca.example:443", "ca.example:14000"),
            ("ca.example:no", "ca.example"),
            ("127.0.0.1", "127.0.0.2"),
            ("127.0.0.0/8", "128.0.0.1"),
            ("127.0.0.0/33", "127.0.0.1"),
            ("10.0.0.0/9", "10.128.0.1"),
            ("::1", "127.0.0.1"),
            ("localhost", "127.0.0.1"),
        ] {
            assert!(!goes_direct(no_proxy, host), "{no_proxy}: {host}");
        }
        let lower_first = environment(&[
            ("HTTPS_PROXY", "http://p:1"),
            ("NO_PROXY", "*"),
            ("no_proxy", "other.example"),
        ]);
        assert_eq!(route(&lower_first, CA), "http://p:1");
    }

    #[test]
    fn a_proxy_is_an_http_url_with_a_host_and_perhaps_a_login() {
        for (text, shown, login) in [
            (
                "http://proxy.internal:3128",
                "http://proxy.internal:3128",
                None,
            ),
            (
                "HTTP://proxy.internal:3128/",
                "http://proxy.internal:3128",
                None,
            ),
            ("http://proxy", "http://proxy", None),
            ("http://[::1]:3128", "http://[::1]:3128", None),
            (
                "http://user:hunter2@p:1",
                "http://p:1",
                Some("user:hunter2"),
            ),
            ("http://user@p:1", "http://p:1", Some("user:")),
            ("http://a:b%40c%3A%25@p:1", "http://p:1", Some("a:b@c:%")),
            (
                "http://a:p@s/s#w?d%@p:1",
                "http://p:1",
                Some("a:p@s/s#w?d%"),
            ),
        ] {
            let url = ProxyUrl::parse(text).unwrap();
            assert_eq!(
                (url.to_string(), format!("{url:?}")),
                (shown.into(), shown.into())
            );
            let sent = url.login().map(|it| it.to_str().unwrap().to_owned());
            let expected = login.map(|it| format!("Basic {}", STANDARD.encode(it)));
            assert_eq!(sent, expected, "{text}");
        }
        for (text, error) in [
            ("https://proxy:3128", ProxyUrlError::Scheme),
            ("socks5://proxy:1080", ProxyUrlError::Scheme),
            ("proxy:3128", ProxyUrlError::Scheme),
            ("http://proxy:3128/path", ProxyUrlError::Path),
            ("http://proxy:3128?x", ProxyUrlError::Path),
            ("http://", ProxyUrlError::Url),
            ("http://:3128", ProxyUrlError::Url),
            ("http://user@:3128", ProxyUrlError::Url),
            ("http://proxy:0", ProxyUrlError::Url),
            ("http://proxy:99999", ProxyUrlError::Url),
            ("http://proxy:", ProxyUrlError::Url),
            ("http://pro xy:1", ProxyUrlError::Url),
            ("http://u:p%0d%0a@p:1", ProxyUrlError::Login),
            ("http://u:%ff@p:1", ProxyUrlError::Login),
        ] {
            assert_eq!(ProxyUrl::parse(text).unwrap_err(), error, "{text}");
        }
    }
}
