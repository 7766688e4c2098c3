//! P: `resolv.conf`: whom this host asks (resolv.conf(5)).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

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
    fn without_any_the_host_itself_is_asked() {
        assert_eq!(servers(""), ["127.0.0.1:53"]);
        assert_eq!(
            servers("nameserver\nnameserver example.com\n"),
            ["127.0.0.1:53"]
        );
    }
}
