//! P: which orders may begin before the vhosts that they are for are live.

use crate::certificate::{CertificateRequest, Identifier, Issuer, WantedCertificate};
use crate::generation::manifest::ServedName;

/// Whether nginx answers the challenges of `wanted` already: for a name that no vhost serves, the
/// server for unknown names does; for a served one, a vhost for which something is ordered by
/// http-01. `served` is what the active generation serves, `before` the certificates that it wants.
pub(super) fn is_answered_already(
    wanted: &WantedCertificate,
    served: &[ServedName],
    before: &[WantedCertificate],
) -> bool {
    if !wanted.is_ordered_by_http01() {
        return true;
    }
    let is_ordered = |identifier: &Identifier| {
        before
            .iter()
            .any(|before| before.is_ordered_by_http01() && before.identifiers.contains(identifier))
    };
    let is_served = |identifier: &Identifier| {
        let host = identifier.to_string();
        served.iter().any(|name| name.is_asked_by(&host))
    };
    let mut identifiers = wanted.identifiers.iter();
    identifiers.all(|identifier| !is_served(identifier) || is_ordered(identifier))
}

/// Whether our own CA signs it in a moment, when the vhost is applied.
pub(super) fn is_made_when_applied(request: &CertificateRequest) -> bool {
    request.issuer == Issuer::Internal && request.key_type.is_ecdsa()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::Challenge;

    fn wanted(names: &[&str], issuer: Issuer, challenge: Challenge) -> WantedCertificate {
        let identifiers = names.iter().map(|name| Identifier::Dns((*name).into()));
        let wanted = WantedCertificate::new(identifiers.collect(), issuer).unwrap();
        WantedCertificate {
            challenge,
            ..wanted
        }
    }

    fn served(names: &[&str]) -> Vec<ServedName> {
        let served = |name: &&str| ServedName {
            vhost: crate::vhost::VhostName::only(&"a".parse().unwrap()),
            host: ServedName::host(&name.parse().unwrap()),
            leaf: None,
            further_leaves: Vec::new(),
            config: String::new(),
        };
        names.iter().map(served).collect()
    }

    #[test]
    fn an_order_begins_early_only_where_its_challenges_are_answered() {
        let http = |names: &[&str]| wanted(names, Issuer::Acme, Challenge::Http01);
        let dns = |names: &[&str]| wanted(names, Issuer::Acme, Challenge::Dns01("p".into()));
        let internal = |names: &[&str]| wanted(names, Issuer::Internal, Challenge::Http01);
        let one = ["a.example"];
        for (case, request, serving, before, expected) in [
            ("a new name", http(&one), vec!["b.example"], vec![], true),
            (
                "another name is added",
                http(&["a.example", "b.example"]),
                vec!["a.example"],
                vec![http(&one)],
                true,
            ),
            (
                "from internal to auto",
                http(&one),
                vec!["a.example"],
                vec![internal(&one)],
                false,
            ),
            (
                "from dns-01 to http-01",
                http(&one),
                vec!["a.example"],
                vec![dns(&one)],
                false,
            ),
            (
                "from off to auto",
                http(&one),
                vec!["a.example"],
                vec![],
                false,
            ),
            (
                "one of two is served without",
                http(&["b.example", "a.example"]),
                vec!["a.example"],
                vec![],
                false,
            ),
            (
                "below a served wildcard",
                http(&["a.b.example"]),
                vec!["*.b.example"],
                vec![dns(&["*.b.example"])],
                false,
            ),
            (
                "by dns-01",
                dns(&one),
                vec!["a.example"],
                vec![internal(&one)],
                true,
            ),
        ] {
            let answered = is_answered_already(&request, &served(&serving), &before);
            assert_eq!(answered, expected, "{case}");
        }
    }
}
