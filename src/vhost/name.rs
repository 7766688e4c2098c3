//! P: names of apps, of vhosts, and the names that vhosts answer to.

mod permitted; // P which characters a host name may have

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use idna::AsciiDenyList;
use idna::uts46::{DnsLength, Hyphens, Uts46};
use permitted::{first_forbidden, is_permitted};
use serde::{Deserialize, Serialize};

use super::address;
use crate::certificate::Identifier;
use crate::desired::RESERVED_NAME;

/// An app: the file name without its ending. Safe as a file name and as an nginx token.
///
/// A letter or a digit, then letters, digits, `.`, `_`, `-`; at most 64 bytes, no `..`.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct AppName(String);

impl AppName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AppName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let mut bytes = text.bytes();
        let safe = bytes
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric())
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            && text.len() <= MAX_APP_NAME
            && !text.contains("..");
        safe.then(|| Self(text.to_owned())).ok_or(NameError::App)
    }
}

/// A vhost: `hello`, or `hello#2` for the second of a list.
///
/// Sorted by app, then by place.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct VhostName {
    app: AppName,
    /// From 1; `None` for a file that is one mapping.
    place: Option<usize>,
}

impl VhostName {
    pub fn only(app: &AppName) -> Self {
        Self {
            app: app.clone(),
            place: None,
        }
    }

    /// `index` counts from 0, the name from 1.
    pub fn nth(app: &AppName, index: usize) -> Self {
        Self {
            app: app.clone(),
            place: Some(index + 1),
        }
    }

    pub fn app(&self) -> &AppName {
        &self.app
    }
}

impl FromStr for VhostName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let Some((app, place)) = text.split_once('#') else {
            return Ok(Self {
                app: text.parse()?,
                place: None,
            });
        };
        let place: usize = place.parse().map_err(|_| NameError::App)?;
        let name = Self {
            app: app.parse()?,
            place: Some(place),
        };
        // one spelling only: no `#0`, `#01`, `#+1`
        (place > 0 && name.to_string() == text)
            .then_some(name)
            .ok_or(NameError::App)
    }
}

impl fmt::Display for VhostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            None => f.write_str(&self.app.0),
            Some(place) => write!(f, "{}#{place}", self.app.0),
        }
    }
}

/// A name that a vhost answers to: a host, every host below a zone, or an address.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerName(Kind);

/// Each with its text in nginx's form.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Kind {
    /// A-labels in lower case, at least two.
    Host(String),
    /// `*.` and a host.
    Wildcard(String),
    Address(IpAddr, String),
}

impl ServerName {
    /// As nginx's `server_name` has it: lower-case A-labels, `*.zone`, an IPv4 address, or an IPv6
    /// address in brackets (nginx compares with the Host header as it is sent, and RFC 3986 §3.2.2
    /// puts it in brackets there).
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Kind::Host(text) | Kind::Wildcard(text) | Kind::Address(_, text) => text,
        }
    }

    pub fn is_wildcard(&self) -> bool {
        matches!(self.0, Kind::Wildcard(_))
    }

    pub fn is_address(&self) -> bool {
        matches!(self.0, Kind::Address(..))
    }

    /// What a certificate has to hold for it (RFC 8555 §9.7.7, RFC 8738).
    pub fn to_identifier(&self) -> Identifier {
        match &self.0 {
            Kind::Host(name) | Kind::Wildcard(name) => Identifier::Dns(name.clone()),
            Kind::Address(address, _) => Identifier::Ip(*address),
        }
    }

    /// Whether `self` is a wildcard under which `other` falls, at any depth: nginx's `*.zone`
    /// answers for `a.b.zone` too.
    pub fn is_above(&self, other: &Self) -> bool {
        let Kind::Wildcard(wildcard) = &self.0 else {
            return false;
        };
        let below = match &other.0 {
            Kind::Host(name) => name,
            Kind::Wildcard(name) if name != wildcard => name,
            _ => return false,
        };
        // with the dot: `*.example.org` is not above `badexample.org`
        below.ends_with(&wildcard[1..])
    }
}

impl FromStr for ServerName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let name = Self::mapped(text)?;
        match name.forbidden() {
            Some(character) => Err(NameError::Character(character)),
            None => Ok(name),
        }
    }
}

impl ServerName {
    /// What `text` may have been meant to be: without the quotes and symbols around it, and with
    /// hyphens instead of dashes.
    pub fn suggested_for(text: &str) -> Option<Self> {
        let (unicode, _) =
            Uts46::new().to_unicode(text.as_bytes(), AsciiDenyList::EMPTY, Hyphens::Allow);
        let hyphened = unicode.replace(is_dash, "-");
        let is_part = |c: char| c == '*' || is_permitted(c);
        let trimmed = hyphened.trim_matches(|c| !is_part(c));
        let meant: Self = trimmed.parse().ok()?;
        (trimmed != text).then_some(meant)
    }

    /// The first character that IDNA2008 does not permit.
    fn forbidden(&self) -> Option<char> {
        let name = match &self.0 {
            Kind::Host(name) => name,
            Kind::Wildcard(name) => &name[2..],
            Kind::Address(..) => return None,
        };
        if !name.contains("xn--") {
            return None;
        }
        let (unicode, _) =
            Uts46::new().to_unicode(name.as_bytes(), AsciiDenyList::STD3, Hyphens::Check);
        unicode.split('.').find_map(first_forbidden)
    }

    /// By UTS #46 alone.
    fn mapped(text: &str) -> Result<Self, NameError> {
        if let Some(address) = bracketed(text).or_else(|| text.parse().ok()) {
            return parse_address(address);
        }
        if let Some(zone) = text.strip_prefix("*.") {
            return Ok(Self(Kind::Wildcard(format!("*.{}", host(zone)?))));
        }
        host(text).map(|host| Self(Kind::Host(host)))
    }
}

fn bracketed(text: &str) -> Option<IpAddr> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    inner.parse().ok().map(IpAddr::V6)
}

fn parse_address(address: IpAddr) -> Result<ServerName, NameError> {
    if let Some(kind) = address::refused_as_name(address) {
        return Err(NameError::Address { kind });
    }
    let text = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    Ok(ServerName(Kind::Address(address, text)))
}

/// A host name of at least two labels → its A-labels in lower case (UTS #46, RFC 5891).
fn host(text: &str) -> Result<String, NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.starts_with('~') || text.contains(['$', '^', '(', '\\']) {
        return Err(NameError::Pattern);
    }
    if text.contains("://") || text.contains('/') {
        return Err(NameError::Url);
    }
    if text.contains('*') || text.starts_with('.') {
        return Err(NameError::Star);
    }
    if text.ends_with('.') {
        return Err(NameError::TrailingDot);
    }
    if text.contains('_') {
        return Err(NameError::Underscore);
    }
    if text.contains(':') {
        return Err(NameError::Port);
    }
    let ascii = Uts46::new()
        .to_ascii(
            text.as_bytes(),
            AsciiDenyList::STD3,
            Hyphens::Check,
            DnsLength::Verify,
        )
        .map_err(|_| NameError::Host)?;
    let Some((_, last)) = ascii.rsplit_once('.') else {
        return Err(NameError::SingleLabel);
    };
    // `127.1` and `0x7f.1` would be read as addresses by some (WHATWG URL §3.5)
    if last.starts_with(|c: char| c.is_ascii_digit()) && is_number(last) {
        return Err(NameError::Numeric);
    }
    if ascii == RESERVED_NAME {
        return Err(NameError::Reserved);
    }
    Ok(ascii.into_owned())
}

/// Decimal or `0x`-hexadecimal.
fn is_number(label: &str) -> bool {
    match label.strip_prefix("0x") {
        Some(hex) => hex.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => label.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

/// Pd, and the minus sign.
fn is_dash(character: char) -> bool {
    matches!(
        character,
        '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{fe58}' | '\u{ff0d}'
    )
}

/// Why a text is not a name. Retrying does not help.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NameError {
    #[error("{kind} cannot be a server name")]
    Address { kind: &'static str },
    #[error("not an app's name")]
    App,
    #[error("`{0}` (U+{code:04X}) is not allowed in a host name", code = u32::from(*.0))]
    Character(char),
    #[error("an empty name")]
    Empty,
    #[error("not a host name")]
    Host,
    #[error("the last label of a host name cannot be a number")]
    Numeric,
    #[error("patterns and variables are not supported in a name")]
    Pattern,
    #[error("a name has no port")]
    Port,
    #[error("a name that vhostd keeps for itself")]
    Reserved,
    #[error("a host name needs at least two labels")]
    SingleLabel,
    #[error("`*` may only be the whole first label")]
    Star,
    #[error("a name does not end with a dot")]
    TrailingDot,
    #[error("`_` is not allowed in a host name")]
    Underscore,
    #[error("expected a host name, found a URL")]
    Url,
}

impl NameError {
    /// What to write instead.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::App => {
                "name the file with letters, digits, `.`, `_` and `-`, at most 64, as in hello.yml"
            }
            Self::Character(_) => {
                "letters and digits of any script, and `-`: certificate authorities sign no other name"
            }
            Self::Host => "letters, digits and `-`, each label at most 63 characters, 253 together",
            Self::Numeric => "write an IPv4 address with four decimal numbers",
            Self::Pattern => "write each name, or a wildcard such as \"*.example.org\"",
            Self::Port => {
                "the ports are in vhostd's settings: nginx.http_port and nginx.https_port"
            }
            Self::SingleLabel => "write the whole name, as in hello.example.com",
            Self::Star => "as in \"*.example.org\"",
            Self::TrailingDot => "leave the dot out",
            Self::Underscore => "no certificate authority signs such a name; use `-`",
            Self::Url => "write the name alone, without https:// and path",
            Self::Address { .. } | Self::Empty | Self::Reserved => return None,
        })
    }
}

/// What is stored was accepted once: a rule of today does not make the rest of its file unreadable.
impl TryFrom<String> for ServerName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::mapped(&text)
    }
}

impl From<ServerName> for String {
    fn from(name: ServerName) -> Self {
        name.to_string()
    }
}

/// Serialized as text, read through the parser.
macro_rules! serialized_as_text {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.to_string()
            }
        }
    };
}

serialized_as_text!(AppName);
serialized_as_text!(VhostName);

impl fmt::Display for AppName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

const MAX_APP_NAME: usize = 64;

#[cfg(test)]
mod tests;
