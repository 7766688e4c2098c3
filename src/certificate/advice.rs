//! P: the DNS records that let one account of one CA issue, and nobody else (RFC 8659, RFC 8657).

use std::collections::{BTreeMap, BTreeSet};

use crate::certificate::preflight::Method;
use crate::certificate::{Identifier, WantedCertificate};

/// Domains, and how control of names below each is proven.
pub type Domains = BTreeMap<String, BTreeSet<&'static str>>;

/// The domains at which CAA records are usually kept: those that are registered. Addresses have none.
pub fn domains<'a>(wanted: impl Iterator<Item = &'a WantedCertificate>) -> Domains {
    let mut domains = Domains::new();
    for wanted in wanted {
        let method = Method::of(&wanted.challenge).name();
        for identifier in &wanted.identifiers {
            if let Identifier::Dns(name) = identifier {
                let name = name.trim_start_matches("*.");
                let domain = psl::domain_str(name).unwrap_or(name).to_owned();
                domains.entry(domain).or_default().insert(method);
            }
        }
    }
    domains
}

/// One for each domain, as in a zone file. `identity`: the CA's name in CAA records. `None` where it
/// or the account's URL does not fit into one.
pub fn caa_records(domains: &Domains, identity: &str, account: &str) -> Option<Vec<String>> {
    let host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    // RFC 8659 §4.2: a value is printable, without white space and `;`
    let value = |c: char| c.is_ascii_graphic() && !matches!(c, ';' | '"' | '\\');
    let fits = !identity.is_empty()
        && identity.chars().all(host)
        && !account.is_empty()
        && account.chars().all(value);
    let record = |(domain, methods): (&String, &BTreeSet<&str>)| {
        // RFC 8657 §4: a list
        let methods = methods.iter().copied().collect::<Vec<_>>().join(",");
        format!(
            "{domain}. CAA 0 issue \"{identity}; accounturi={account}; validationmethods={methods}\""
        )
    };
    fits.then(|| domains.iter().map(record).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::{Challenge, Issuer};

    const ACCOUNT: &str = "https://ca.example/acct/1";

    #[test]
    fn there_is_one_record_for_each_registered_domain() {
        let names = ["shop.example.co.uk", "www.example.co.uk", "*.a.example.com"];
        let mut identifiers: Vec<_> = names.map(|it| Identifier::Dns(it.into())).into();
        identifiers.push(Identifier::Ip("192.0.2.1".parse().unwrap()));
        let mut all: Vec<_> = identifiers
            .into_iter()
            .filter_map(|it| WantedCertificate::new(vec![it], Issuer::Acme))
            .collect();
        // the wildcard's, beside a name of the same domain
        all[2].challenge = Challenge::Dns01("own".into());
        let beside = Identifier::Dns("example.com".into());
        all.extend(WantedCertificate::new(vec![beside], Issuer::Acme));
        let domains = domains(all.iter());
        let records = caa_records(&domains, "ca.example", ACCOUNT).unwrap();
        let of = |domain: &str, methods: &str| {
            format!(
                "{domain}. CAA 0 issue \"ca.example; accounturi=https://ca.example/acct/1; validationmethods={methods}\""
            )
        };
        let expected = [
            of("example.co.uk", "http-01"),
            of("example.com", "dns-01,http-01"),
        ];
        assert_eq!(records, expected);
    }

    #[test]
    fn what_a_ca_says_cannot_add_anything_to_a_record() {
        let methods = BTreeSet::from(["http-01"]);
        let domains = Domains::from([("example.com".to_owned(), methods)]);
        for (identity, account) in [
            ("ca.example; accounturi=x", ACCOUNT),
            ("", ACCOUNT),
            ("ca\"", ACCOUNT),
            ("ca.example", "https://ca.example/1\"; x"),
            ("ca.example", "https://ca.example/1;policy=x"),
            ("ca.example", "\n"),
            ("ca.example", ""),
        ] {
            assert_eq!(
                caa_records(&domains, identity, account),
                None,
                "{identity} {account}"
            );
        }
    }
}
