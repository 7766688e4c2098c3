//! P: the DNS records that let one account of one CA issue, and nobody else (RFC 8659, RFC 8657).

use std::collections::BTreeSet;

use crate::certificate::Identifier;

/// The domains at which CAA records are usually kept: those that are registered. Addresses have none.
pub fn domains<'a>(identifiers: impl Iterator<Item = &'a Identifier>) -> BTreeSet<String> {
    identifiers
        .filter_map(|identifier| match identifier {
            Identifier::Dns(name) => {
                let name = name.trim_start_matches("*.");
                Some(psl::domain_str(name).unwrap_or(name).to_owned())
            }
            Identifier::Ip(_) => None,
        })
        .collect()
}

/// One for each domain, as in a zone file. `identity`: the CA's name in CAA records. `None` where it
/// or the account's URL does not fit into one.
pub fn caa_records(
    domains: &BTreeSet<String>,
    identity: &str,
    account: &str,
) -> Option<Vec<String>> {
    let host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    // RFC 8659 §4.2: a value is printable, without white space and `;`
    let value = |c: char| c.is_ascii_graphic() && !matches!(c, ';' | '"' | '\\');
    let fits = !identity.is_empty()
        && identity.chars().all(host)
        && !account.is_empty()
        && account.chars().all(value);
    let record = |domain: &String| {
        format!(
            "{domain}. CAA 0 issue \"{identity}; accounturi={account}; validationmethods=http-01\""
        )
    };
    fits.then(|| domains.iter().map(record).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: &str = "https://ca.example/acct/1";

    #[test]
    fn there_is_one_record_for_each_registered_domain() {
        let names = ["shop.example.co.uk", "www.example.co.uk", "*.a.example.com"];
        let mut identifiers: Vec<_> = names.map(|it| Identifier::Dns(it.into())).into();
        identifiers.push(Identifier::Ip("192.0.2.1".parse().unwrap()));
        let domains = domains(identifiers.iter());
        let records = caa_records(&domains, "ca.example", ACCOUNT).unwrap();
        let rest = "CAA 0 issue \"ca.example; accounturi=https://ca.example/acct/1; validationmethods=http-01\"";
        let of = |domain: &str| format!("{domain}. {rest}");
        assert_eq!(records, [of("example.co.uk"), of("example.com")]);
    }

    #[test]
    fn what_a_ca_says_cannot_add_anything_to_a_record() {
        let domains = BTreeSet::from(["example.com".to_owned()]);
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
