//! P: where an app answers.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use super::address;

/// `http(s)://ADDRESS:PORT` or `http(s)://unix:/path`.
///
/// An address, never a host name: nginx would look a name up once, at start, and not start where
/// it cannot. `localhost` means 127.0.0.1 (and not `::1`, which few apps listen on).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Upstream {
    scheme: UpstreamScheme,
    address: UpstreamAddress,
}

/// What is spoken to the app.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum UpstreamScheme {
    Http,
    Https,
}

/// The socket. Displayed as nginx's `server` directive takes it: `127.0.0.1:8000`, `[::1]:8000`,
/// `unix:/run/app.sock`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum UpstreamAddress {
    Socket(SocketAddr),
    /// Absolute, normalized; letters, digits and `/._-+@` only; at most 107 bytes (unix(7)).
    Unix(PathBuf),
}

impl Upstream {
    pub fn scheme(&self) -> UpstreamScheme {
        self.scheme
    }

    pub fn address(&self) -> &UpstreamAddress {
        &self.address
    }
}

impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        let (scheme, rest) = split_scheme(text)?;
        // nginx passes the path on unchanged for `http://a:1` and, below `location /`, for
        // `http://a:1/`: the slash says nothing
        let address = match rest.strip_prefix("unix:") {
            Some(path) => UpstreamAddress::Unix(unix_path(path)?),
            None => UpstreamAddress::Socket(socket(rest.strip_suffix('/').unwrap_or(rest))?),
        };
        Ok(Self { scheme, address })
    }
}

fn split_scheme(text: &str) -> Result<(UpstreamScheme, &str), UpstreamError> {
    if let Some(rest) = text.strip_prefix("http://") {
        return Ok((UpstreamScheme::Http, rest));
    }
    if let Some(rest) = text.strip_prefix("https://") {
        return Ok((UpstreamScheme::Https, rest));
    }
    // what would be right behind http:// lacks only that, and can be shown as it is
    let path = text.strip_prefix("unix:");
    if path.is_some_and(|path| unix_path(path).is_ok()) || socket(text).is_ok() {
        return Err(UpstreamError::NoScheme {
            meant: format!("http://{text}"),
        });
    }
    if text.starts_with("ws://") || text.starts_with("wss://") {
        return Err(UpstreamError::Websocket);
    }
    Err(UpstreamError::Scheme)
}

fn socket(text: &str) -> Result<SocketAddr, UpstreamError> {
    if text.contains(['/', '?', '#']) {
        return Err(UpstreamError::Path);
    }
    if text.contains('@') {
        return Err(UpstreamError::Credentials);
    }
    let (host, port) = text
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty() && (!host.contains(':') || host.ends_with(']')))
        .ok_or(UpstreamError::NoPort)?;
    let port = port_number(port)?;
    let ip = if host.eq_ignore_ascii_case("localhost") {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    } else {
        ip_address(host)?
    };
    match address::refused_as_upstream(ip) {
        Some(kind) => Err(UpstreamError::Address { kind }),
        None => Ok(SocketAddr::new(ip, port)),
    }
}

fn port_number(text: &str) -> Result<u16, UpstreamError> {
    text.parse()
        .ok()
        .filter(|port: &u16| *port > 0 && port.to_string() == text)
        .ok_or(UpstreamError::Port)
}

/// Rust's parser takes one spelling of each address: no `127.1`, `0x7f.1`, `2130706433`.
fn ip_address(host: &str) -> Result<IpAddr, UpstreamError> {
    if let Some(inner) = host.strip_prefix('[') {
        let inner = inner.strip_suffix(']').ok_or(UpstreamError::Spelling)?;
        return inner
            .parse()
            .map(IpAddr::V6)
            .map_err(|_| UpstreamError::Spelling);
    }
    host.parse().map(IpAddr::V4).map_err(|_| {
        let last = host.rsplit('.').next().unwrap_or_default();
        if last.starts_with(|c: char| c.is_ascii_digit()) {
            UpstreamError::Spelling
        } else {
            UpstreamError::HostName
        }
    })
}

fn unix_path(text: &str) -> Result<PathBuf, UpstreamError> {
    let path = Path::new(text);
    let plain = text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"/._-+@".contains(&byte));
    let normal = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    // components() forgets `//`, `/./` and a trailing slash: compare the spelling
    let rebuilt: PathBuf = path.components().collect();
    if plain
        && normal
        && path.is_absolute()
        && text.len() > 1
        && rebuilt.as_os_str() == path.as_os_str()
        && text.len() <= MAX_UNIX_PATH
    {
        Ok(rebuilt)
    } else {
        Err(UpstreamError::UnixPath)
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.address)
    }
}

impl fmt::Display for UpstreamScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why a text is not an upstream. Retrying does not help.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UpstreamError {
    #[error("{kind} cannot be an upstream")]
    Address { kind: &'static str },
    #[error("an upstream has no user name or password")]
    Credentials,
    #[error("a host name cannot be an upstream")]
    HostName,
    #[error("the port is missing")]
    NoPort,
    #[error("http:// or https:// is missing")]
    NoScheme { meant: String },
    #[error("an upstream has no path")]
    Path,
    #[error("not a port")]
    Port,
    #[error("expected http://ADDRESS:PORT or http://unix:/path")]
    Scheme,
    #[error("not an IP address")]
    Spelling,
    #[error("not the path of a unix socket")]
    UnixPath,
    #[error("websockets need no scheme of their own")]
    Websocket,
}

impl UpstreamError {
    /// What to write instead.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Address { .. } | Self::Credentials => return None,
            Self::HostName => {
                "write the app's IP address, or `localhost`, which means 127.0.0.1: nginx would \
                 look a host name up only once"
            }
            Self::NoPort => "as in http://127.0.0.1:8000; an IPv6 address is in brackets",
            Self::NoScheme { meant } => return Some(format!("did you mean `{meant}`?")),
            Self::Path => "end it with the port: the request's path is passed on unchanged",
            Self::Port => "a number from 1 to 65535",
            Self::Scheme => "as in http://127.0.0.1:8000 or http://unix:/run/hello/app.sock",
            Self::Spelling => {
                "write four decimal numbers, as in 127.0.0.1, or an IPv6 address in brackets, as \
                 in [::1]"
            }
            Self::UnixPath => {
                "an absolute path without `.`, `..` or `//`, of letters, digits and ._-+@, at \
                 most 107 bytes"
            }
            Self::Websocket => "write http:// or https://; websockets pass through it",
        };
        Some(hint.to_owned())
    }
}

/// `sun_path` has 108 bytes, one of them for the final NUL.
const MAX_UNIX_PATH: usize = 107;

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(text: &str) -> Result<String, UpstreamError> {
        text.parse::<Upstream>()
            .map(|upstream| upstream.to_string())
    }

    #[test]
    fn addresses_and_unix_sockets_are_upstreams() {
        for text in [
            "http://127.0.0.1:8000",
            "https://[::1]:8443",
            "http://10.1.2.3:1",
            "http://unix:/run/hello/app.sock",
            "https://unix:/run/hello/app.sock",
        ] {
            assert_eq!(upstream(text).unwrap(), text);
        }
    }

    #[test]
    fn a_bare_trailing_slash_says_nothing_and_localhost_means_127_0_0_1() {
        assert_eq!(
            upstream("http://127.0.0.1:8000/").unwrap(),
            "http://127.0.0.1:8000"
        );
        assert_eq!(
            upstream("http://localhost:8000").unwrap(),
            "http://127.0.0.1:8000"
        );
    }

    #[test]
    fn an_upstream_without_scheme_is_refused_with_what_was_meant() {
        let error = upstream("127.0.0.1:8000").unwrap_err();
        assert_eq!(
            error.hint().unwrap(),
            "did you mean `http://127.0.0.1:8000`?"
        );
        let error = upstream("unix:/run/a.sock").unwrap_err();
        assert_eq!(
            error.hint().unwrap(),
            "did you mean `http://unix:/run/a.sock`?"
        );
        // nothing that a terminal could take for more than a hint
        assert_eq!(
            upstream("unix:/run/a\n").unwrap_err(),
            UpstreamError::Scheme
        );
        assert_eq!(
            upstream("ftp://127.0.0.1:1").unwrap_err(),
            UpstreamError::Scheme
        );
        assert_eq!(
            upstream("ws://127.0.0.1:1").unwrap_err(),
            UpstreamError::Websocket
        );
        assert_eq!(
            upstream("HTTP://127.0.0.1:1").unwrap_err(),
            UpstreamError::Scheme
        );
    }

    #[test]
    fn odd_spellings_of_addresses_are_refused() {
        for host in [
            "127.1",
            "0x7f.1",
            "2130706433",
            "0177.0.0.1",
            "127.0.0.01",
            "[127.0.0.1]",
            "[fe80::1%1]",
            "1.2.3.4.5",
        ] {
            let error = upstream(&format!("http://{host}:80")).unwrap_err();
            assert_eq!(error, UpstreamError::Spelling, "{host}");
        }
        assert!(upstream("http://::1:80").is_err());
        assert!(upstream("http://[::1:80").is_err());
    }

    #[test]
    fn host_names_are_refused() {
        for host in [
            "app",
            "app.example.org",
            "$backend",
            "a b",
            "host.docker.internal",
        ] {
            let error = upstream(&format!("http://{host}:80")).unwrap_err();
            assert_eq!(error, UpstreamError::HostName, "{host}");
        }
    }

    #[test]
    fn link_local_metadata_multicast_and_unspecified_addresses_are_refused() {
        for host in [
            "169.254.169.254",
            "169.254.0.1",
            "224.0.0.1",
            "0.0.0.0",
            "[::]",
            "[fe80::1]",
            "[::ffff:127.0.0.1]",
        ] {
            let error = upstream(&format!("http://{host}:80")).unwrap_err();
            assert!(matches!(error, UpstreamError::Address { .. }), "{host}");
        }
    }

    #[test]
    fn ports_paths_and_credentials_are_refused() {
        for (text, error) in [
            ("http://127.0.0.1", UpstreamError::NoPort),
            ("http://[::1]", UpstreamError::NoPort),
            ("http://:80", UpstreamError::NoPort),
            ("http://127.0.0.1:", UpstreamError::Port),
            ("http://127.0.0.1:0", UpstreamError::Port),
            ("http://127.0.0.1:080", UpstreamError::Port),
            ("http://127.0.0.1:+80", UpstreamError::Port),
            ("http://127.0.0.1:65536", UpstreamError::Port),
            ("http://127.0.0.1:80 ", UpstreamError::Port),
            ("http://127.0.0.1:80/app", UpstreamError::Path),
            ("http://127.0.0.1:80//", UpstreamError::Path),
            ("http://127.0.0.1:80?a", UpstreamError::Path),
            ("http://user:pass@127.0.0.1:80", UpstreamError::Credentials),
        ] {
            assert_eq!(upstream(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn a_unix_path_is_absolute_normalized_and_plain() {
        for path in [
            "",
            "run/a",
            "/",
            "/run/../a",
            "/run/./a",
            "/run//a",
            "/run/a/",
            "/a b",
            "/a;b",
            "/a:/b",
            "/a$b",
            "/a\n",
        ] {
            assert_eq!(
                upstream(&format!("http://unix:{path}")),
                Err(UpstreamError::UnixPath),
                "{path}"
            );
        }
        assert!(upstream(&format!("http://unix:/{}", "a".repeat(106))).is_ok());
        assert!(upstream(&format!("http://unix:/{}", "a".repeat(107))).is_err());
    }
}
