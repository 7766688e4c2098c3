use std::net::{Ipv4Addr, SocketAddr};

use super::*;
use crate::certificate::{Issuer, WantedCertificate};

const NAME: &str = "shop.example.com";
const ACCOUNT: &str = "https://ca.example/account/1";

/// A name that leads here, no CAA, a CA that looks into DNS.
fn healthy() -> Observations {
    Observations {
        names: vec![Observed {
            identifier: Identifier::Dns(NAME.into()),
            addresses: Some(Addresses::of(ours())),
            caa: vec![
                (NAME.into(), Some(Err(NoAnswer::NoData))),
                ("example.com".into(), Some(Err(NoAnswer::NoData))),
                ("com".into(), Some(Err(NoAnswer::NoData))),
            ],
            fetched: vec![(ours(), Fetched::Ours)],
        }],
        host: vec![ours()],
        ca: Ca {
            host: "acme-v02.api.letsencrypt.org".into(),
            identities: vec!["letsencrypt.org".into()],
            account: ACCOUNT.into(),
            private: false,
        },
        ahead: Some(Duration::SECOND),
        method: Method::Http01,
        issued: false,
    }
}

fn ours() -> IpAddr {
    Ipv4Addr::new(203, 0, 113, 7).into()
}

fn resolver() -> SocketAddr {
    ([192, 0, 2, 53], 53).into()
}

fn neither(error: NoAnswer) -> Option<Addresses> {
    Some(Addresses {
        v4: Err(error.clone()),
        v6: Err(error),
    })
}

fn server_failure() -> NoAnswer {
    NoAnswer::ServerFailure {
        code: "Server Failure".into(),
        server: resolver(),
        why: Some("DNSSEC validation failed".into()),
    }
}

fn caa(tag: &str, value: &str, critical: bool) -> Caa {
    Caa {
        critical,
        tag: tag.into(),
        value: value.into(),
    }
}

fn at(records: Vec<Caa>) -> Option<Lookup<Vec<Caa>>> {
    Some(Ok(records))
}

/// `change` of what is healthy leads to exactly one finding: is it certain, and its words.
fn finds(change: impl FnOnce(&mut Observations)) -> (bool, String) {
    let mut seen = healthy();
    change(&mut seen);
    let verdict = decide(&seen);
    match (verdict.certain.as_slice(), verdict.odd.as_slice()) {
        ([one], []) => (true, one.told()),
        ([], [one]) => (false, one.told()),
        _ => panic!("{verdict:?}"),
    }
}

fn certain(change: impl FnOnce(&mut Observations)) -> String {
    let (certain, told) = finds(change);
    assert!(certain, "{told}");
    told
}

fn odd(change: impl FnOnce(&mut Observations)) -> String {
    let (certain, told) = finds(change);
    assert!(!certain, "{told}");
    told
}

#[test]
fn a_name_that_leads_here_is_nothing_to_speak_of() {
    assert_eq!(decide(&healthy()), Verdict::default());
    let mut named = healthy();
    named.names[0].caa[1].1 = at(vec![caa("issue", "LetsEncrypt.org", false)]);
    assert_eq!(decide(&named), Verdict::default());
    let mut address = healthy();
    address.names[0].identifier = Identifier::Ip(ours());
    address.names[0].caa.clear();
    assert_eq!(decide(&address), Verdict::default());
}

#[test]
fn what_dns_says_is_missing_must_fail_and_the_remedy_is_named() {
    let told = certain(|seen| seen.names[0].addresses = neither(NoAnswer::NoSuchName));
    assert_eq!(
        told,
        "shop.example.com does not exist in DNS: add an A record for 203.0.113.7, then `vhostd renew shop.example.com`"
    );
    let told = certain(|seen| {
        seen.names[0].addresses = neither(NoAnswer::NoData);
        seen.host = vec!["10.0.0.7".parse().unwrap(), "fe80::1".parse().unwrap()];
    });
    assert_eq!(
        told,
        "shop.example.com has no A or AAAA record: add an A record for this host's public address, then `vhostd renew shop.example.com`"
    );
    let told = certain(|seen| {
        seen.names[0].addresses = neither(NoAnswer::NoData);
        seen.host.push("2001:db8::7".parse().unwrap());
    });
    assert!(
        told.contains("add an A record for 203.0.113.7 or an AAAA record for 2001:db8::7,"),
        "{told}"
    );
}

#[test]
fn what_nobody_could_say_of_a_name_is_odd_at_most() {
    for error in [
        server_failure(),
        NoAnswer::TimedOut { server: resolver() },
        NoAnswer::Unconfirmed,
        NoAnswer::Circle,
    ] {
        let told = odd(|seen| seen.names[0].addresses = neither(error));
        assert!(told.contains("cannot be looked up"), "{told}");
    }
    odd(|seen| seen.names[0].addresses = None);
    // one of two that fails hides that the other is absent
    odd(|seen| {
        seen.names[0].addresses = Some(Addresses {
            v4: Err(NoAnswer::NoData),
            v6: Err(server_failure()),
        });
    });
}

#[test]
fn a_ca_that_our_dns_does_not_bind_is_asked_whatever_that_says() {
    let silent = |seen: &mut Observations| seen.ca.identities.clear();
    let private = |seen: &mut Observations| seen.ca.private = true;
    for unbound in [&silent as &dyn Fn(&mut Observations), &private] {
        odd(|seen| {
            unbound(seen);
            seen.names[0].addresses = neither(NoAnswer::NoSuchName);
        });
        odd(|seen| {
            unbound(seen);
            seen.ahead = Some(-Duration::days(40));
        });
        let mut seen = healthy();
        unbound(&mut seen);
        seen.names[0].caa[0].1 = at(vec![caa("issue", ";", false)]);
        assert_eq!(decide(&seen), Verdict::default());
    }
}

#[test]
fn a_caa_record_for_somebody_else_must_fail_wherever_it_is() {
    let others = || at(vec![caa("issue", "ca.example", false)]);
    let told = certain(|seen| seen.names[0].caa[1].1 = others());
    assert_eq!(
        told,
        "the CAA records at example.com allow only ca.example for shop.example.com: add \
         `example.com. CAA 0 issue \"letsencrypt.org\"`, then `vhostd renew shop.example.com`"
    );
    let told = certain(|seen| seen.names[0].caa[0].1 = at(vec![caa("issue", ";", false)]));
    assert!(told.contains("allow no CA for"), "{told}");
    // the nearer records speak
    let mut near = healthy();
    near.names[0].caa[0].1 = at(vec![caa("issue", "letsencrypt.org", false)]);
    near.names[0].caa[1].1 = others();
    assert_eq!(decide(&near), Verdict::default());
    let told = certain(|seen| {
        seen.names[0].identifier = Identifier::Dns("*.example.com".into());
        seen.names[0].caa.remove(0);
        seen.names[0].caa[0].1 = at(vec![
            caa("issue", "letsencrypt.org", false),
            caa("issuewild", "ca.example", false),
        ]);
    });
    assert!(
        told.contains("CAA 0 issuewild \"letsencrypt.org\""),
        "{told}"
    );
    let told = certain(|seen| {
        seen.names[0].caa[1].1 = at(vec![caa("tbs", "x", true)]);
    });
    assert!(
        told.contains("the CAA record `tbs` at example.com forbids"),
        "{told}"
    );
}

#[test]
fn a_caa_parameter_binds_the_cas_that_are_known_to_read_it() {
    let narrow = |seen: &mut Observations| {
        let value = "letsencrypt.org; accounturi=https://ca.example/account/2";
        seen.names[0].caa[1].1 = at(vec![caa("issue", value, false)]);
    };
    let told = certain(narrow);
    assert_eq!(
        told,
        "the CAA record at example.com asks for accounturi=https://ca.example/account/2, and this \
         order has https://ca.example/account/1: change the record, then `vhostd renew shop.example.com`"
    );
    for other in ["ca.example", "notletsencrypt.org", "letsencrypt.org.evil"] {
        odd(|seen| {
            narrow(seen);
            seen.ca.host = other.into();
        });
    }
    let told = certain(|seen| {
        let value = "letsencrypt.org; validationmethods=dns-01";
        seen.names[0].caa[1].1 = at(vec![caa("issue", value, false)]);
    });
    assert!(told.contains("and this order has http-01"), "{told}");
}

#[test]
fn a_caa_lookup_that_fails_is_no_permission_and_no_prohibition() {
    let told = odd(|seen| seen.names[0].caa[1].1 = Some(Err(server_failure())));
    assert_eq!(
        told,
        "the CAA records at example.com, which may speak for shop.example.com, cannot be looked up \
         (192.0.2.53:53 answers Server Failure (DNSSEC validation failed)): a CA that cannot either must refuse"
    );
    odd(|seen| seen.names[0].caa[0].1 = None);
    // some resolvers forward no name of one label
    let mut registry = healthy();
    registry.names[0].caa[2].1 = Some(Err(server_failure()));
    assert_eq!(decide(&registry), Verdict::default());
    // a nearer record needs no farther one
    let mut near = healthy();
    near.names[0].caa[0].1 = at(vec![caa("issue", "letsencrypt.org", false)]);
    near.names[0].caa[1].1 = Some(Err(server_failure()));
    assert_eq!(decide(&near), Verdict::default());
}

#[test]
fn an_address_that_this_host_does_not_have_is_odd_unless_the_challenge_is_answered_there() {
    let elsewhere: IpAddr = "198.51.100.9".parse().unwrap();
    let six: IpAddr = "2001:db8::9".parse().unwrap();
    let lead = |seen: &mut Observations, address, fetched: Option<Fetched>| {
        seen.names[0].addresses = Some(Addresses::of(address));
        seen.names[0].fetched = fetched.map(|it| (address, it)).into_iter().collect();
    };
    // NAT, a CDN
    let mut seen = healthy();
    lead(&mut seen, elsewhere, Some(Fetched::Ours));
    assert_eq!(decide(&seen), Verdict::default());
    let failed = Fetched::Failed("Connection refused".into());
    let told = odd(|seen| lead(seen, six, Some(failed.clone())));
    assert_eq!(
        told,
        "shop.example.com has the AAAA record 2001:db8::9, which is no address of this host, and no \
         challenge is answered there: Connection refused; Let's Encrypt tries IPv6 first: remove the \
         record unless it leads here"
    );
    odd(|seen| lead(seen, elsewhere, Some(failed.clone())));
    odd(|seen| lead(seen, elsewhere, None));
    let told = odd(|seen| lead(seen, elsewhere, Some(Fetched::Other("HTTP 404".into()))));
    assert!(
        told.contains("answered by something else at 198.51.100.9: HTTP 404"),
        "{told}"
    );
    let told = odd(|seen| lead(seen, ours(), Some(failed)));
    assert!(
        told.contains("at 203.0.113.7, which is this host"),
        "{told}"
    );
}

#[test]
fn an_address_that_is_not_asked_is_told_with_its_kind_and_what_to_do() {
    let private: IpAddr = "10.0.0.5".parse().unwrap();
    let lead = |seen: &mut Observations| {
        seen.names[0].addresses = Some(Addresses::of(private));
        seen.names[0].fetched = vec![(private, Fetched::NotAsked("a private address"))];
    };
    let told = odd(lead);
    assert_eq!(
        told,
        "shop.example.com has the A record 10.0.0.5, which is no address of this host but a private \
         address: vhostd does not ask there whether challenges are answered, and a public CA cannot; \
         correct the record, unless your own CA reaches this host by it"
    );
    // the CA has found its way
    let mut issued = healthy();
    lead(&mut issued);
    issued.issued = true;
    assert_eq!(decide(&issued), Verdict::default());
}

#[test]
fn a_host_that_cannot_reach_itself_is_believed_once_the_ca_could() {
    let elsewhere: IpAddr = "198.51.100.9".parse().unwrap();
    let failed = Fetched::Failed("no answer within 2s".into());
    let mut seen = healthy();
    seen.names[0].addresses = Some(Addresses::of(elsewhere));
    seen.names[0].fetched = vec![(elsewhere, failed.clone())];
    assert_eq!(decide(&seen).odd.len(), 1);
    seen.issued = true;
    assert_eq!(decide(&seen), Verdict::default());
    // by one of two ways: who knows which
    let six = "2001:db8::9".parse().unwrap();
    seen.names[0].addresses = Some(Addresses {
        v4: Ok(vec!["198.51.100.9".parse().unwrap()]),
        v6: Ok(vec![six]),
    });
    seen.names[0].fetched.push((six.into(), failed));
    assert_eq!(decide(&seen).odd.len(), 2);
    // what was seen was seen
    seen.names[0].addresses = Some(Addresses::of(elsewhere));
    seen.names[0].fetched = vec![(elsewhere, Fetched::Other("HTTP 404".into()))];
    assert_eq!(decide(&seen).odd.len(), 1);
}

#[test]
fn by_dns_01_a_name_needs_no_address() {
    let mut seen = healthy();
    seen.method = Method::Dns01;
    seen.names[0].addresses = neither(NoAnswer::NoSuchName);
    assert_eq!(decide(&seen), Verdict::default());
}

#[test]
fn a_clock_minutes_off_is_odd_and_one_a_day_behind_must_fail() {
    let off = |ahead| finds(|seen| seen.ahead = Some(ahead));
    assert_eq!(decide(&healthy()), Verdict::default());
    let (certain, told) = off(Duration::minutes(6));
    assert!(
        !certain && told.contains("6 minutes ahead of the CA's"),
        "{told}"
    );
    let (certain, told) = off(-Duration::hours(24));
    assert!(
        !certain && told.contains("24 hours behind the CA's"),
        "{told}"
    );
    let (certain, told) = off(-Duration::days(3));
    assert!(certain && told.contains("3 days behind the CA's"), "{told}");
    // how long its certificates last is not known
    assert!(!off(Duration::days(3)).0);
    let mut silent = healthy();
    silent.ahead = None;
    assert_eq!(decide(&silent), Verdict::default());
}

#[test]
fn an_order_is_kept_back_for_three_attempts_unless_a_person_or_the_time_forbids() {
    let now = OffsetDateTime::UNIX_EPOCH + Duration::days(20_000);
    let names = vec![Identifier::Dns(NAME.into())];
    let wanted = WantedCertificate::new(names, Issuer::Acme).unwrap();
    let request = CertificateRequest::new(&wanted, None, None);
    let held = |change: &dyn Fn(&mut CertificateRequest)| {
        let mut request = request.clone();
        change(&mut request);
        holds_back(&request, now)
    };
    assert!(held(&|_| {}));
    assert!(held(&|request| request.insisted = true));
    assert!(held(&|request| request.failures = 2));
    assert!(held(
        &|request| request.expires = Some(now + Duration::days(20))
    ));
    assert!(!held(&|request| request.failures = 3));
    assert!(!held(&|request| request.forced = true));
    assert!(!held(
        &|request| request.expires = Some(now + Duration::hours(20))
    ));
    assert!(!held(
        &|request| request.expires = Some(now - Duration::hours(20))
    ));
}

#[test]
fn a_name_that_is_tried_again_is_kept_back_while_it_does_not_lead_here_but_not_every_time() {
    let names = ["a.example", NAME].map(|name| Identifier::Dns(name.into()));
    let wanted = WantedCertificate::new(names.to_vec(), Issuer::Acme).unwrap();
    let request = CertificateRequest {
        retried: names[1..].to_vec(),
        failures: 4,
        ..CertificateRequest::new(&wanted, None, None)
    };
    let held = |change: &dyn Fn(&mut CertificateRequest)| {
        let mut request = request.clone();
        change(&mut request);
        holds_back_retry(&request)
    };
    assert!(held(&|_| {}));
    assert!(!held(&|request| request.retried = Vec::new()));
    assert!(!held(&|request| request.insisted = true));
    assert!(!held(&|request| request.failures = 7));
    let mut seen = healthy();
    assert_eq!(unreached(&seen, &names[1..]), []);
    seen.names[0].fetched = vec![(ours(), Fetched::Other("HTTP 404".into()))];
    assert_eq!(unreached(&seen, &names[1..]).len(), 1);
    assert_eq!(unreached(&seen, &names[..1]), []);
    // what could not be looked at is the CA's to say
    seen.names[0].fetched = Vec::new();
    assert_eq!(unreached(&seen, &names[1..]), []);
}
