//! P: `users`: limits of the vhost files that a user owns.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::diagnostic::Located;
use crate::vhost::parse::tls::path;
use crate::vhost::{ServerName, UpstreamAddress};
use crate::yaml::{Fields, Node, Problems, Value, quoted, string};

/// By user name.
pub type Users = BTreeMap<String, UserLimits>;

/// What the vhost files of one user may name. `None`: the key is absent and sets no limit.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct UserLimits {
    /// A root must lie below one of these, symbolic links resolved.
    pub roots: Option<Vec<PathBuf>>,
    /// Host names and addresses; `*.zone` stands for every name below the zone.
    pub names: Option<Vec<ServerName>>,
    pub upstreams: Option<Vec<UpstreamLimit>>,
    /// Zones whose names may be proven by a DNS provider: none where the key is absent.
    pub dns: Vec<ServerName>,
}

/// Upstreams that a user's vhost files may name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum UpstreamLimit {
    /// `None`: the loopback addresses.
    Ports {
        address: Option<IpAddr>,
        first: u16,
        last: u16,
    },
    /// A socket, or the directory that it lies below.
    Unix(PathBuf),
}

impl UserLimits {
    pub fn permits_root(&self, resolved: &Path) -> bool {
        let mut roots = self.roots.iter().flatten();
        self.roots.is_none() || roots.any(|root| resolved.starts_with(root))
    }

    pub fn permits_name(&self, name: &ServerName) -> bool {
        let mut names = self.names.iter().flatten();
        self.names.is_none() || names.any(|permitted| permitted == name || permitted.is_above(name))
    }

    pub fn permits_upstream(&self, upstream: &UpstreamAddress) -> bool {
        let mut upstreams = self.upstreams.iter().flatten();
        self.upstreams.is_none() || upstreams.any(|permitted| permitted.covers(upstream))
    }

    /// Whether a DNS provider may prove `name`: it is one of the zones, or below one.
    pub fn permits_dns(&self, name: &ServerName) -> bool {
        let zone = |permitted: &ServerName| {
            let zone = permitted.as_str().trim_start_matches("*.").to_owned();
            let name = name.as_str().trim_start_matches("*.");
            let above = name.strip_suffix(&zone);
            above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
        };
        self.dns.iter().any(zone)
    }
}

impl UpstreamLimit {
    fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix("http://").unwrap_or(text);
        if let Some(path) = text.strip_prefix("unix:") {
            let path = crate::vhost::normalized(path).ok()?;
            return Some(Self::Unix(path));
        }
        let (address, ports) = match text.rsplit_once(':') {
            Some(("localhost", ports)) => (None, ports),
            Some((address, ports)) => {
                let bare = address
                    .strip_prefix('[')
                    .and_then(|it| it.strip_suffix(']'));
                (Some(bare.unwrap_or(address).parse().ok()?), ports)
            }
            None => (None, text),
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        (0 < first && first <= last).then_some(Self::Ports {
            address,
            first,
            last,
        })
    }

    fn covers(&self, upstream: &UpstreamAddress) -> bool {
        match (self, upstream) {
            (
                Self::Ports {
                    address,
                    first,
                    last,
                },
                UpstreamAddress::Socket(socket),
            ) => {
                let ip = socket.ip().to_canonical();
                (*first..=*last).contains(&socket.port())
                    && address.map_or(ip.is_loopback(), |address| address == ip)
            }
            (Self::Unix(permitted), UpstreamAddress::Unix(path)) => path.starts_with(permitted),
            _ => false,
        }
    }
}

/// The section `users`: a mapping of user names.
pub(super) fn parse(node: Node, problems: &mut Problems) -> Users {
    let entries = match node.value {
        Value::Mapping(entries) => entries,
        Value::Null => return Users::default(),
        other => {
            let reason = format!("expected user names with limits, found {}", other.kind());
            let hint = "as in deploy: {names: [\"*.deploy.example.com\"]}";
            problems.add_with_hint(node.at, reason, Some(hint));
            return Users::default();
        }
    };
    let mut users = Users::new();
    for (name, node) in entries {
        if node.value == Value::Null {
            users.insert(name.value, UserLimits::default());
        } else if let Some(fields) = Fields::of(node, "limits", problems) {
            users.insert(name.value, limits(fields, problems));
        }
    }
    users
}

fn limits(mut fields: Fields, problems: &mut Problems) -> UserLimits {
    let roots = list(&mut fields, "roots", problems, path);
    let names = list(&mut fields, "names", problems, name);
    let upstreams = list(&mut fields, "upstreams", problems, upstream);
    let dns = list(&mut fields, "dns", problems, name);
    fields.finish(&[], problems);
    UserLimits {
        roots,
        names,
        upstreams,
        dns: dns.unwrap_or_default(),
    }
}

/// `None` where the key is absent; an empty list permits nothing.
fn list<T>(
    fields: &mut Fields,
    key: &'static str,
    problems: &mut Problems,
    read: impl Fn(&Located<String>, &mut Problems) -> Option<T>,
) -> Option<Vec<T>> {
    let (nodes, expected) = match fields.take(key)? {
        Node {
            value: Value::Sequence(items),
            ..
        } => (items, "a string"),
        node => (vec![node], "a string or a list of strings"),
    };
    let texts: Vec<_> = nodes
        .into_iter()
        .filter_map(|node| match node.value {
            // a port
            Value::Integer(number) => Some(Located {
                value: number.to_string(),
                at: node.at,
            }),
            _ => string(node, expected, problems),
        })
        .collect();
    let read = texts.iter().filter_map(|text| read(text, problems));
    Some(read.collect())
}

fn name(text: &Located<String>, problems: &mut Problems) -> Option<ServerName> {
    match text.value.parse::<ServerName>() {
        Ok(name) => Some(name),
        Err(error) => {
            let reason = format!("{}: {error}", quoted(&text.value));
            let hint = "a host name, an address, or *.zone for all names below a zone";
            problems.add_with_hint(text.at, reason, Some(hint));
            None
        }
    }
}

fn upstream(text: &Located<String>, problems: &mut Problems) -> Option<UpstreamLimit> {
    let limit = UpstreamLimit::parse(&text.value);
    if limit.is_none() {
        let reason = format!("{}: not a limit for upstreams", quoted(&text.value));
        let hint = "as in 8000-8099, 192.0.2.7:8080 or unix:/run/deploy";
        problems.add_with_hint(text.at, reason, Some(hint));
    }
    limit
}

/// The address and the port of an upstream are one of `listeners`, which nginx opens for vhostd.
/// `own` are the addresses of this host.
pub fn is_listener(upstream: SocketAddr, listeners: &[SocketAddr], own: &[IpAddr]) -> bool {
    let ip = upstream.ip().to_canonical();
    let is_own = ip.is_loopback() || ip.is_unspecified() || own.contains(&ip);
    let opens = |listener: IpAddr| match listener.is_unspecified() {
        // `[::]` of nginx takes no IPv4 connections (ipv6only)
        true => is_own && listener.is_ipv4() == ip.is_ipv4(),
        false => listener == ip,
    };
    let mut listeners = listeners.iter();
    listeners.any(|listener| listener.port() == upstream.port() && opens(listener.ip()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn limits(text: &str) -> Result<UserLimits, Vec<String>> {
        let file = Path::new("vhostd.yml");
        let text = format!("deploy:\n{text}\n");
        let mut problems = Problems::of(file);
        let mut users = parse(crate::yaml::parse(file, &text).unwrap(), &mut problems);
        problems
            .or(users.remove("deploy"))
            .map_err(|all| all.into_iter().map(|it| it.reason).collect())
    }

    fn upstream(text: &str) -> UpstreamAddress {
        let upstream: crate::vhost::Upstream = text.parse().unwrap();
        upstream.address().clone()
    }

    #[test]
    fn an_absent_key_sets_no_limit_and_an_empty_list_permits_nothing() {
        let none = limits("  roots: [/srv/a]").unwrap();
        let name: ServerName = "a.example".parse().unwrap();
        assert!(none.permits_name(&name));
        assert!(none.permits_upstream(&upstream("http://192.0.2.1:80")));
        assert!(none.permits_root(Path::new("/srv/a/b")));
        assert!(!none.permits_root(Path::new("/srv/ab")));
        let empty = limits("  roots: []\n  names: []\n  upstreams: []\n  dns: []").unwrap();
        assert!(!empty.permits_name(&name));
        assert!(!empty.permits_upstream(&upstream("http://127.0.0.1:8000")));
        assert!(!empty.permits_root(Path::new("/srv/a")));
        assert!(!empty.permits_dns(&name));
        // a provider acts in the operator's name: a zone has to be given
        assert!(!none.permits_dns(&name));
    }

    #[test]
    fn names_are_permitted_exactly_or_below_a_zone() {
        let limits = limits("  names: [a.example, \"*.b.example\", 192.0.2.7]").unwrap();
        for (name, permitted) in [
            ("a.example", true),
            ("www.a.example", false),
            ("b.example", false),
            ("x.b.example", true),
            ("y.x.b.example", true),
            ("*.b.example", true),
            ("*.x.b.example", true),
            ("xb.example", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
        ] {
            let parsed: ServerName = name.parse().unwrap();
            assert_eq!(limits.permits_name(&parsed), permitted, "{name}");
        }
    }

    #[test]
    fn a_dns_provider_proves_names_of_the_zones_alone() {
        let limits = limits("  dns: [a.example, \"*.b.example\"]").unwrap();
        for (name, permitted) in [
            ("a.example", true),
            ("*.a.example", true),
            ("x.a.example", true),
            ("xa.example", false),
            ("b.example", true),
            ("*.b.example", true),
            ("c.example", false),
        ] {
            let parsed: ServerName = name.parse().unwrap();
            assert_eq!(limits.permits_dns(&parsed), permitted, "{name}");
        }
    }

    #[test]
    fn upstreams_are_permitted_by_address_port_and_directory() {
        let limits = limits(
            "  upstreams: [8000-8099, 9000, \"192.0.2.7:80\", \"[::1]:7000-7001\", unix:/run/a, http://127.0.0.2:5]",
        )
        .unwrap();
        for (text, permitted) in [
            ("http://127.0.0.1:8000", true),
            ("http://[::1]:8099", true),
            ("http://127.0.0.1:8100", false),
            ("http://192.0.2.7:8000", false),
            ("http://localhost:9000", true),
            ("https://192.0.2.7:80", true),
            ("http://192.0.2.7:81", false),
            ("http://[::1]:7001", true),
            ("http://127.0.0.1:7001", false),
            ("http://127.0.0.2:5", true),
            ("http://unix:/run/a/app.sock", true),
            ("http://unix:/run/a", true),
            ("http://unix:/run/ab", false),
        ] {
            assert_eq!(
                limits.permits_upstream(&upstream(text)),
                permitted,
                "{text}"
            );
        }
    }

    #[test]
    fn wrong_limits_are_told() {
        for (text, reason) in [
            ("  names: [\"~x\"]", "`~x`: "),
            (
                "  upstreams: [8100-8000]",
                "`8100-8000`: not a limit for upstreams",
            ),
            ("  upstreams: [\"0\"]", "`0`: not a limit for upstreams"),
            ("  upstreams: [a.example:80]", "`a.example:80`: not a limit"),
            ("  roots: [srv]", ""),
            ("  name: [a.example]", "unknown key `name`"),
            ("  - 1", "expected limits (a mapping)"),
        ] {
            let found = limits(text).unwrap_err().join("; ");
            assert!(found.contains(reason), "{text}: {found}");
        }
        assert_eq!(limits(""), Ok(UserLimits::default()));
    }

    #[test]
    fn a_listener_is_known_at_each_address_that_reaches_it() {
        let all: &[&str] = &["0.0.0.0:80", "[::]:80", "0.0.0.0:443"];
        let one: &[&str] = &["192.0.2.7:80", "127.0.0.1:80"];
        let v4: &[&str] = &["0.0.0.0:80"];
        for (listeners, upstream, expected) in [
            (all, "127.0.0.1:80", true),
            (all, "127.9.9.9:443", true),
            (all, "[::1]:80", true),
            (all, "[::ffff:127.0.0.1]:80", true),
            (all, "192.0.2.7:80", true),
            (all, "192.0.2.8:80", false),
            (all, "127.0.0.1:8080", false),
            (one, "192.0.2.7:80", true),
            (one, "127.0.0.1:80", true),
            (one, "127.0.0.2:80", false),
            (one, "[::1]:80", false),
            (v4, "[::1]:80", false),
            (v4, "127.0.0.1:80", true),
        ] {
            let listeners: Vec<SocketAddr> =
                listeners.iter().map(|it| it.parse().unwrap()).collect();
            let own = ["192.0.2.7".parse().unwrap()];
            let upstream: SocketAddr = upstream.parse().unwrap();
            assert_eq!(
                is_listener(upstream, &listeners, &own),
                expected,
                "{upstream}"
            );
        }
    }
}
