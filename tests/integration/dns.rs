//! What DNS says, asked of a real name server.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Instant;

use vhostd::dns::{Addresses, Caa, Dns, NoAnswer, Resolver};
use vhostd::settings::DnsSettings;

use crate::support::nameserver::NameServer;

const ZONE: &str = "@ A 192.0.2.1\n\
    @ AAAA 2001:db8::1\n\
    @ CAA 0 issue \"ca.example; validationmethods=http-01\"\n\
    @ CAA 128 Strange \"1\"\n\
    four A 192.0.2.4\n\
    www CNAME @\n\
    away CNAME target.other.test.\n\
    dangling CNAME nothing.other.test.\n\
    one CNAME two\n\
    two CNAME one\n\
    text TXT \"one\" \"value\"\n\
    text TXT second\n\
    _acme-challenge.shop CNAME shop.acme.other.test.\n";

#[test]
fn addresses_are_at_the_end_of_the_aliases() {
    let server = NameServer::start(&[("shop.test", ZONE), ("other.test", "target A 192.0.2.9\n")]);
    let resolver = asking(&[server.address()]);
    let addresses = |name: &str| run(resolver.addresses(name));
    let both = Addresses {
        v4: Ok(vec![Ipv4Addr::new(192, 0, 2, 1)]),
        v6: Ok(vec!["2001:db8::1".parse().unwrap()]),
    };
    assert_eq!(addresses("shop.test"), both);
    assert_eq!(addresses("www.shop.test"), both);
    assert_eq!(addresses("WWW.shop.test"), both);
    let v4 = Addresses {
        v4: Ok(vec![Ipv4Addr::new(192, 0, 2, 4)]),
        v6: Err(NoAnswer::NoData),
    };
    assert_eq!(addresses("four.shop.test"), v4);
    let away = addresses("away.shop.test");
    assert_eq!(away.v4, Ok(vec![Ipv4Addr::new(192, 0, 2, 9)]));
}

#[test]
fn no_name_no_record_a_failure_and_silence_are_told_apart() {
    let server = NameServer::start_with_broken(&[("shop.test", ZONE)], "broken.test");
    let resolver = asking(&[server.address()]);
    let of = |name: &str| run(resolver.addresses(name)).why_none();
    assert_eq!(of("nothing.shop.test"), NoAnswer::NoSuchName);
    assert_eq!(of("dangling.shop.test"), NoAnswer::NoSuchName);
    assert_eq!(of("text.shop.test"), NoAnswer::NoData);
    assert!(matches!(
        of("one.shop.test"),
        NoAnswer::Circle | NoAnswer::NoData
    ));
    assert!(matches!(of(&"a".repeat(70)), NoAnswer::BadName(_)));
    let failed = of("www.broken.test");
    assert!(
        matches!(&failed, NoAnswer::ServerFailure { code, .. } if code == "Server Failure"),
        "{failed}"
    );
    server.pause();
    assert!(matches!(of("shop.test"), NoAnswer::TimedOut { .. }));
    server.resume();
    assert_eq!(of("text.shop.test"), NoAnswer::NoData);
}

#[test]
fn caa_records_are_read_as_they_are_at_one_name() {
    let server = NameServer::start(&[("shop.test", ZONE)]);
    let resolver = asking(&[server.address()]);
    let mut records = run(resolver.caa("www.shop.test")).unwrap();
    records.sort_by_key(|caa| caa.critical);
    let caa = |critical, tag: &str, value: &str| Caa {
        critical,
        tag: tag.into(),
        value: value.into(),
    };
    let expected = [
        caa(false, "issue", "ca.example; validationmethods=http-01"),
        caa(true, "strange", "1"),
    ];
    assert_eq!(records, expected);
    assert_eq!(run(resolver.caa("four.shop.test")), Err(NoAnswer::NoData));
    assert_eq!(run(resolver.caa("x.shop.test")), Err(NoAnswer::NoSuchName));
}

#[test]
fn a_long_reply_comes_over_tcp() {
    let many: String = (0..200).map(|n| format!("many A 192.0.2.{n}\n")).collect();
    let server = NameServer::start(&[("shop.test", &many)]);
    let resolver = asking(&[server.address()]);
    let v4 = run(resolver.addresses("many.shop.test")).v4.unwrap();
    assert_eq!(v4.len(), 200);
}

#[test]
fn a_resolver_that_is_silent_or_down_passes_the_question_on() {
    let server = NameServer::start(&[("shop.test", ZONE)]);
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let down = {
        let gone = UdpSocket::bind("127.0.0.1:0").unwrap();
        gone.local_addr().unwrap()
    };
    let resolver = asking(&[down, silent.local_addr().unwrap(), server.address()]);
    assert!(run(resolver.addresses("shop.test")).v4.is_ok());
}

#[test]
fn texts_are_those_of_the_authoritative_servers_where_the_name_really_is() {
    let mut server = NameServer::start(&[
        ("shop.test", ZONE),
        ("acme.other.test", "shop TXT token-1\n"),
    ]);
    let resolver = asking(&[server.address()]);
    let published = run(resolver.txt("_acme-challenge.shop.shop.test")).unwrap();
    assert_eq!(published.target, "shop.acme.other.test");
    assert_eq!(published.zone, "acme.other.test");
    let [authority] = published.servers.as_slice() else {
        panic!("{published:?}")
    };
    assert_eq!(authority.name, "ns.nameserver.test");
    assert_eq!(authority.address, Some(server.address()));
    assert_eq!(authority.values, Ok(vec!["token-1".to_owned()]));

    server.rewrite("acme.other.test", "shop TXT token-2\nshop TXT token-3\n");
    let published = run(resolver.txt("_acme-challenge.shop.shop.test")).unwrap();
    let mut values = published.servers[0].values.clone().unwrap();
    values.sort();
    assert_eq!(values, ["token-2", "token-3"]);

    let text = run(resolver.txt("text.shop.test")).unwrap();
    let mut values = text.servers[0].values.clone().unwrap();
    values.sort();
    assert_eq!(values, ["onevalue", "second"]);

    // where it would be, before there is any
    let none = run(resolver.txt("_acme-challenge.deep.shop.test")).unwrap();
    assert_eq!(
        (none.target.as_str(), none.zone.as_str()),
        ("_acme-challenge.deep.shop.test", "shop.test")
    );
    assert_eq!(none.servers[0].values, Err(NoAnswer::NoSuchName));
}

#[test]
fn a_silent_resolver_costs_seconds_and_no_more() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let resolver = asking(&[silent.local_addr().unwrap()]);
    let start = Instant::now();
    let v4 = run(resolver.addresses("shop.test")).v4;
    assert!(matches!(v4, Err(NoAnswer::TimedOut { .. })), "{v4:?}");
    assert!(start.elapsed().as_secs() < 15);
}

#[test]
fn what_a_resolver_remembers_of_an_absence_or_of_caa_is_asked_of_the_zones_own_server() {
    let now = "new A 192.0.2.7\nlifted TXT x\nother CAA 0 issue \"now.example\"\n";
    let then = "lifted CAA 0 issue \"then.example\"\nother CAA 0 issue \"then.example\"\n";
    let authority = NameServer::start_at(Ipv4Addr::new(127, 0, 0, 9), &[("shop.test", now)]);
    let remembers = NameServer::remembering(&[("shop.test", then)], &authority);
    let resolver = asking(&[remembers.address(), authority.address()]);
    let new = run(resolver.addresses("new.shop.test"));
    assert_eq!(new.v4, Ok(vec![Ipv4Addr::new(192, 0, 2, 7)]));
    let gone = run(resolver.addresses("gone.shop.test"));
    assert_eq!(gone.why_none(), NoAnswer::NoSuchName);
    assert_eq!(run(resolver.caa("lifted.shop.test")), Err(NoAnswer::NoData));
    assert_eq!(
        run(resolver.caa("other.shop.test")).unwrap()[0].value,
        "now.example"
    );

    // nobody knows: an absence is none, and what is remembered is all there is
    authority.pause();
    let new = run(resolver.addresses("new.shop.test"));
    assert_eq!(new.why_none(), NoAnswer::Unconfirmed);
    assert_eq!(
        run(resolver.caa("other.shop.test")).unwrap()[0].value,
        "then.example"
    );
    authority.resume();
}

pub fn asking(resolvers: &[SocketAddr]) -> Resolver {
    Resolver::new(&DnsSettings {
        resolvers: resolvers.to_vec(),
        ..DnsSettings::default()
    })
}

pub fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}
