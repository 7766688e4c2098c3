//! P: where a redirect of a challenge leads, by the rules of Let's Encrypt's validation.
//!
//! <https://letsencrypt.org/docs/challenge-types/#http-01-challenge>: to http and https, to ports 80
//! and 443, to host names; by the statuses of the Baseline Requirements, 3.2.2.4.19.

use std::fmt;
use std::net::IpAddr;

use http::uri::Scheme;
use http::{StatusCode, Uri};

/// Where a CA asks for challenges: 80 and 443, unless it is on this very host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ports {
    pub http: u16,
    pub https: u16,
}

/// One URL of a challenge; the first of a row, or a redirect's target.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Target {
    pub(super) secure: bool,
    /// A name or an address, in lower case, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// With the query.
    pub(super) path: String,
}

/// Why a CA does not follow a redirect.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum NotFollowed {
    #[error("redirects to IP addresses are not followed")]
    Address,
    #[error("a `/` is missing before `.well-known`")]
    MissingSlash,
    #[error("no URL")]
    NoUrl,
    #[error("only redirects to ports 80 and 443 are followed")]
    Port,
    #[error("only redirects to http and https are followed")]
    Scheme,
}

/// Whether a CA looks at the `Location` of an answer with this status; 303 is none of them.
pub(super) fn is_followed(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 307 | 308)
}

impl Target {
    /// Where `location` leads from here (RFC 9110 §10.2.2: a URI reference).
    pub(super) fn follow(&self, location: &str, ports: Ports) -> Result<Self, NotFollowed> {
        let absolute = self.absolute(location);
        let scheme = absolute.split(':').next().unwrap_or_default();
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(NotFollowed::Scheme),
        };
        let uri: Uri = absolute.parse().map_err(|_| NotFollowed::NoUrl)?;
        let host = uri.host().unwrap_or_default().to_ascii_lowercase();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(NotFollowed::NoUrl);
        }
        if host.ends_with(".well-known") {
            return Err(NotFollowed::MissingSlash);
        }
        // the address that is validated may redirect to itself
        if host.parse::<IpAddr>().is_ok() && host != self.host {
            return Err(NotFollowed::Address);
        }
        let port = uri.authority().and_then(|it| port(it.as_str()));
        let port = port.map(str::parse).transpose();
        let port = port.map_err(|_| NotFollowed::NoUrl)?;
        Ok(Self {
            secure,
            host: host.to_owned(),
            port: ports.of(secure, port).ok_or(NotFollowed::Port)?,
            path: match uri.path_and_query().map_or("/", |it| it.as_str()) {
                query if query.starts_with('?') => format!("/{query}"),
                path => path.to_owned(),
            },
        })
    }

    /// The reference as a URL with a scheme (RFC 3986 §5.2.2); dot segments are left to the server.
    fn absolute(&self, reference: &str) -> String {
        let (scheme, authority) = (self.scheme(), self.authority());
        let before_query = self.path.split('?').next().unwrap_or_default();
        let directory = before_query
            .rfind('/')
            .map_or("", |end| &before_query[..end]);
        let first_segment = reference.split(['/', '?', '#']).next().unwrap_or_default();
        match reference {
            absolute if first_segment.contains(':') => absolute.to_owned(),
            _ if reference.starts_with("//") => format!("{scheme}:{reference}"),
            _ if reference.starts_with('/') => format!("{scheme}://{authority}{reference}"),
            _ if reference.starts_with('?') => {
                format!("{scheme}://{authority}{before_query}{reference}")
            }
            _ => format!("{scheme}://{authority}{directory}/{reference}"),
        }
    }

    fn scheme(&self) -> Scheme {
        match self.secure {
            true => Scheme::HTTPS,
            false => Scheme::HTTP,
        }
    }

    fn authority(&self) -> String {
        format!("{}:{}", self.bracketed_host(), self.port)
    }

    /// As a `Host` header has it (RFC 3986 §3.2.2); a CA sends no port with it.
    pub(super) fn bracketed_host(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        }
    }
}

/// What is behind the host, where there is something.
fn port(authority: &str) -> Option<&str> {
    let (_, port) = authority.rsplit('@').next()?.rsplit_once(':')?;
    Some(port).filter(|port| !port.is_empty() && !port.contains(']'))
}

/// The URL, without the token that nobody needs to read, and without the usual port.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_usual = self.port == Ports::PUBLIC.by_scheme(self.secure);
        let authority = match is_usual {
            true => self.bracketed_host(),
            false => self.authority(),
        };
        let path = match self.path.strip_prefix(WELL_KNOWN) {
            Some(token) if !token.contains(['/', '?']) => format!("{WELL_KNOWN}…"),
            _ => self.path.clone(),
        };
        write!(f, "{}://{authority}{path}", self.scheme())
    }
}

impl Ports {
    /// RFC 8555 §8.3, and where a CA follows to.
    pub const PUBLIC: Self = Self {
        http: 80,
        https: 443,
    };

    fn by_scheme(self, secure: bool) -> u16 {
        match secure {
            true => self.https,
            false => self.http,
        }
    }

    /// Either port may be named with either scheme. 80 and 443 stand for those of a CA on this host.
    fn of(self, secure: bool, named: Option<u16>) -> Option<u16> {
        match named {
            None => Some(self.by_scheme(secure)),
            Some(port) if port == self.http || port == self.https => Some(port),
            Some(port) if port == Self::PUBLIC.http => Some(self.http),
            Some(port) if port == Self::PUBLIC.https => Some(self.https),
            Some(_) => None,
        }
    }
}

pub(super) const WELL_KNOWN: &str = "/.well-known/acme-challenge/";

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Target {
        let uri: Uri = url.parse().unwrap();
        let secure = uri.scheme() == Some(&Scheme::HTTPS);
        let host = uri.host().unwrap().trim_start_matches('[');
        Target {
            secure,
            host: host.trim_end_matches(']').to_owned(),
            port: Ports::PUBLIC.of(secure, uri.port_u16()).unwrap(),
            path: uri.path_and_query().unwrap().as_str().to_owned(),
        }
    }

    #[test]
    fn a_redirect_leads_where_a_uri_reference_leads() {
        let from = target("http://shop.example/a/b?c");
        for (location, expected) in [
            ("https://shop.example/x?y", "https://shop.example/x?y"),
            ("HTTPS://Shop.Example/x", "https://shop.example/x"),
            ("https://cdn.example", "https://cdn.example/"),
            ("https://cdn.example?x", "https://cdn.example/?x"),
            ("https://cdn.example:443/x#y", "https://cdn.example/x"),
            ("https://user:word@cdn.example/x", "https://cdn.example/x"),
            ("//cdn.example/x", "http://cdn.example/x"),
            ("/x", "http://shop.example/x"),
            ("?x", "http://shop.example/a/b?x"),
            ("x", "http://shop.example/a/x"),
            ("http://cdn.example:443/x", "http://cdn.example:443/x"),
            ("https://cdn.example:80/x", "https://cdn.example:80/x"),
        ] {
            let led = from
                .follow(location, Ports::PUBLIC)
                .map(|it| it.to_string());
            assert_eq!(led, Ok(expected.to_owned()), "{location}");
        }
    }

    #[test]
    fn a_redirect_that_lets_encrypt_refuses_is_refused_with_its_reason() {
        let from = target("http://shop.example/a");
        for (location, why) in [
            ("https://cdn.example:8443/x", NotFollowed::Port),
            ("http://cdn.example:6379/x", NotFollowed::Port),
            ("http://cdn.example:0/x", NotFollowed::Port),
            ("gopher://cdn.example/", NotFollowed::Scheme),
            ("javascript:alert(1)", NotFollowed::Scheme),
            ("file:///etc/passwd", NotFollowed::Scheme),
            ("http://127.0.0.1/", NotFollowed::Address),
            ("https://203.0.113.7/x", NotFollowed::Address),
            ("https://[2001:db8::1]/x", NotFollowed::Address),
            ("http://169.254.169.254/latest/", NotFollowed::Address),
            (
                "https://shop.example.well-known/x",
                NotFollowed::MissingSlash,
            ),
            ("https:///x", NotFollowed::NoUrl),
            ("https://a b/", NotFollowed::NoUrl),
            ("https://cdn.example:99999/", NotFollowed::NoUrl),
        ] {
            assert_eq!(from.follow(location, Ports::PUBLIC), Err(why), "{location}");
        }
        // an address that is validated itself
        for url in ["http://203.0.113.7/a", "http://[2001:db8::1]/a"] {
            let secure = url.replace("http:", "https:");
            let led = target(url).follow(&secure, Ports::PUBLIC);
            assert_eq!(led.map(|it| it.to_string()), Ok(secure));
        }
    }

    #[test]
    fn a_ca_on_this_host_follows_to_the_ports_on_which_nginx_listens() {
        let ports = Ports {
            http: 8080,
            https: 8443,
        };
        let mut from = target("http://shop.example/a");
        from.port = 8080;
        for (location, port) in [
            ("https://shop.example/a", Ok(8443)),
            ("https://shop.example:443/a", Ok(8443)),
            ("https://shop.example:8443/a", Ok(8443)),
            ("http://shop.example:80/a", Ok(8080)),
            ("/b", Ok(8080)),
            ("https://shop.example:9443/a", Err(NotFollowed::Port)),
        ] {
            let led = from.follow(location, ports).map(|it| it.port);
            assert_eq!(led, port, "{location}");
        }
    }

    #[test]
    fn of_a_challenges_url_the_token_is_not_shown() {
        let shown = |url: &str| target(url).to_string();
        let url = "https://shop.example/.well-known/acme-challenge/";
        assert_eq!(shown(&format!("{url}token")), format!("{url}…"));
        let other = "http://shop.example/login?next=/.well-known/acme-challenge/token";
        assert_eq!(shown(other), other);
    }
}
