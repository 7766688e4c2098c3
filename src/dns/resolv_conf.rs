//! P: `resolv.conf`: whom this host asks (resolv.conf(5)).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// How patiently a server is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Patience {
    /// For one server to answer once; a resolver asks far away itself.
    pub(super) timeout: Duration,
    /// A datagram may be lost.
    pub(super) attempts: usize,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            timeout: Duration::from_millis(1500),
            attempts: 2,
        }
    }
}

/// `options timeout:N attempts:N`, the last of each; never more than an order waits for a whole step.
pub(super) fn patience(text: &str) -> Patience {
    let mut patience = Patience::default();
    let lines = text.lines().map(str::split_whitespace);
    for mut words in lines {
        if words.next() != Some("options") {
            continue;
        }
        for (key, number) in words.filter_map(|word| word.split_once(':')) {
            match (key, number.parse::<u8>()) {
                ("timeout", Ok(seconds)) => {
                    patience.timeout = Duration::from_secs(u64::from(seconds.clamp(1, 3)));
                }
                ("attempts", Ok(attempts)) => patience.attempts = attempts.clamp(1, 5).into(),
                _ => {}
            }
        }
    }
    patience
}

/// The name servers, in the order in which they are asked. Names here are always whole, so `search`
/// and `ndots` say nothing to us.
pub(super) fn name_servers(text: &str) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        if let Some(server) = words.next().and_then(name_server)
            && !servers.contains(&server)
        {
            servers.push(server);
        }
    }
    servers.truncate(MAXIMUM_SERVERS);
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, PORT).into());
    }
    servers
}

/// A zone (`fe80::1%eth0`) is the name or the number of an interface; std reads only numbers.
fn name_server(word: &str) -> Option<SocketAddr> {
    let address: IpAddr = word.parse().ok()?;
    Some(SocketAddr::new(address, PORT))
}

pub(super) const PORT: u16 = 53;
/// As the C library's MAXNS.
const MAXIMUM_SERVERS: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(text: &str) -> Vec<String> {
        let servers = name_servers(text);
        servers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn name_servers_are_asked_in_the_order_of_the_file() {
        let text = "# ours\nsearch example.com\nnameserver 9.9.9.9\nnameserver\t2620:fe::fe\n;x\n\
                    nameserver 9.9.9.9 # again\noptions edns0 trust-ad\nnameserver fe80::1%eth0\n";
        assert_eq!(servers(text), ["9.9.9.9:53", "[2620:fe::fe]:53"]);
    }

    #[test]
    fn timeout_and_attempts_are_those_of_the_file_within_bounds() {
        let of = |text: &str| {
            let Patience { timeout, attempts } = patience(text);
            (timeout.as_millis(), attempts)
        };
        assert_eq!(of("nameserver 9.9.9.9\n"), (1500, 2));
        assert_eq!(of("options timeout:1 rotate attempts:3\n"), (1000, 3));
        assert_eq!(
            of("options timeout:2\noptions timeout:30 attempts:0\n"),
            (3000, 1)
        );
        assert_eq!(
            of("options timeout:x attempts\n# options timeout:1\n"),
            (1500, 2)
        );
    }

    #[test]
    fn without_any_the_host_itself_is_asked() {
        assert_eq!(servers(""), ["127.0.0.1:53"]);
        assert_eq!(
            servers("nameserver\nnameserver example.com\n"),
            ["127.0.0.1:53"]
        );
    }
}
