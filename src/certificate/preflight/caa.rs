//! P: who may issue for a name (RFC 8659), with which account and how (RFC 8657).

use crate::dns::{Caa, Lookup};

/// What CAA says of a certificate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Permission {
    Granted,
    /// Only with other accounts, or by other methods; a CA may not know these parameters.
    Narrowed {
        /// `accounturi` or `validationmethods`.
        parameter: &'static str,
        /// What the record says of it.
        value: String,
    },
    /// Only others are named; none: nobody may issue.
    Denied {
        allowed: Vec<String>,
    },
    /// Whoever does not know this tag must not issue (RFC 8659 §4.1).
    Critical {
        tag: String,
    },
}

/// Who asks for what.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    /// The domains that the CA answers to (RFC 8555 §7.1.1, `caaIdentities`).
    pub identities: &'a [String],
    /// The account's URL.
    pub account: &'a str,
    /// As in RFC 8657 §4: `http-01`.
    pub method: &'a str,
    pub wildcard: bool,
}

/// The names whose CAA records may speak for `name`, the nearest first (RFC 8659 §3).
pub fn climb(name: &str) -> Vec<String> {
    let base = name.strip_prefix("*.").unwrap_or(name);
    let parents = base.match_indices('.').map(|(at, _)| &base[at + 1..]);
    std::iter::once(base)
        .chain(parents)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The nearest records; what nobody could say ends the climb, too. `None`: there are none.
pub fn relevant<'a>(
    levels: impl IntoIterator<Item = (&'a str, &'a Lookup<Vec<Caa>>)>,
) -> Option<(&'a str, &'a Lookup<Vec<Caa>>)> {
    let mut levels = levels.into_iter();
    levels.find(|(_, records)| match records {
        Ok(records) => !records.is_empty(),
        Err(error) => !error.is_absence(),
    })
}

/// What the relevant records say.
pub fn permission(records: &[Caa], asking: Asking<'_>) -> Permission {
    let unknown = |caa: &&Caa| caa.critical && !KNOWN.contains(&caa.tag.as_str());
    if let Some(caa) = records.iter().find(unknown) {
        return Permission::Critical {
            tag: caa.tag.clone(),
        };
    }
    let of = |tag: &str| -> Vec<Issue> {
        let of = records.iter().filter(|caa| caa.tag == tag);
        of.map(|caa| Issue::parse(&caa.value)).collect()
    };
    let wild = of("issuewild");
    // RFC 8659 §4.3: for a wildcard it comes before every `issue`
    let rules = match asking.wildcard && !wild.is_empty() {
        true => wild,
        false => of("issue"),
    };
    if rules.is_empty() {
        return Permission::Granted;
    }
    let ours = |rule: &&Issue| {
        let names = asking.identities.iter();
        let mut names = names.map(|name| name.trim_end_matches('.'));
        names.any(|name| name.eq_ignore_ascii_case(&rule.issuer))
    };
    let narrowed = |rule: &Issue| rule.narrows(asking.account, asking.method);
    let mut obstacles = rules.iter().filter(ours).map(narrowed);
    match obstacles.clone().find(Option::is_none) {
        Some(_) => Permission::Granted,
        None => match obstacles.find_map(|obstacle| obstacle) {
            Some((parameter, value)) => Permission::Narrowed { parameter, value },
            None => Permission::Denied {
                allowed: rules
                    .into_iter()
                    .map(|rule| rule.issuer)
                    .filter(|issuer| !issuer.is_empty())
                    .collect(),
            },
        },
    }
}

/// The value of `issue` and `issuewild` (RFC 8659 §4.2).
struct Issue {
    /// In lower case; empty: nobody. So is a value that cannot be read.
    issuer: String,
    parameters: Vec<(String, String)>,
}

impl Issue {
    fn parse(value: &str) -> Self {
        let mut parts = value.split(';').map(str::trim);
        let issuer = parts.next().unwrap_or_default().to_ascii_lowercase();
        let parameters: Option<Vec<_>> = parts
            .filter(|part| !part.is_empty())
            .map(|part| {
                let (tag, value) = part.split_once('=')?;
                Some((tag.trim().to_ascii_lowercase(), value.trim().to_owned()))
            })
            .collect();
        let label = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        match parameters {
            Some(parameters) if issuer.chars().all(label) => Self { issuer, parameters },
            _ => Self {
                issuer: String::new(),
                parameters: Vec::new(),
            },
        }
    }

    /// RFC 8657 §3 and §4.
    fn narrows(&self, account: &str, method: &str) -> Option<(&'static str, String)> {
        let of = |tag: &'static str| {
            let parameters = self.parameters.iter();
            parameters.filter(move |(name, _)| name == tag)
        };
        let methods = |value: &str| value.split(',').any(|one| one.trim() == method);
        if let Some((_, value)) = of("accounturi").find(|(_, value)| value != account) {
            return Some(("accounturi", value.clone()));
        }
        let other = of("validationmethods").find(|(_, value)| !methods(value));
        other.map(|(_, value)| ("validationmethods", value.clone()))
    }
}

/// What a CA for websites knows: IANA's registry but for what is about documents.
const KNOWN: [&str; 7] = [
    "contactemail",
    "contactphone",
    "iodef",
    "issue",
    "issuemail",
    "issuevmc",
    "issuewild",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::NoAnswer;

    const ACCOUNT: &str = "https://ca.example/account/1";

    fn records(texts: &[&str]) -> Vec<Caa> {
        texts
            .iter()
            .map(|text| {
                let mut words = text.splitn(3, ' ');
                Caa {
                    critical: words.next() == Some("128"),
                    tag: words.next().unwrap().to_owned(),
                    value: words.next().unwrap_or_default().to_owned(),
                }
            })
            .collect()
    }

    fn says(texts: &[&str], wildcard: bool) -> Permission {
        let identities = ["ca.example".to_owned(), "ca.test".to_owned()];
        let asking = Asking {
            identities: &identities,
            account: ACCOUNT,
            method: "http-01",
            wildcard,
        };
        permission(&records(texts), asking)
    }

    fn denied(allowed: &[&str]) -> Permission {
        Permission::Denied {
            allowed: allowed.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn who_is_named_may_issue_and_nobody_else() {
        let of = |texts: &[&str]| says(texts, false);
        assert_eq!(of(&[]), Permission::Granted);
        assert_eq!(of(&["0 iodef mailto:a@example.com"]), Permission::Granted);
        assert_eq!(of(&["0 issue CA.example"]), Permission::Granted);
        assert_eq!(of(&["0 issue  ca.test ; "]), Permission::Granted);
        assert_eq!(
            of(&["0 issue other.example", "0 issue ca.test"]),
            Permission::Granted
        );
        assert_eq!(of(&["0 issue other.example"]), denied(&["other.example"]));
        assert_eq!(of(&["0 issue ;"]), denied(&[]));
        assert_eq!(of(&["0 issue"]), denied(&[]));
        // what cannot be read permits nobody (RFC 8659 §4.2)
        assert_eq!(of(&["0 issue ca.example; policy"]), denied(&[]));
        assert_eq!(of(&["0 issue ca.example policy=1"]), denied(&[]));
        assert_eq!(of(&["0 issue notca.example"]), denied(&["notca.example"]));
    }

    #[test]
    fn a_wildcard_obeys_issuewild_where_there_is_one() {
        assert_eq!(
            says(&["0 issue ;", "0 issuewild ca.example"], true),
            Permission::Granted
        );
        assert_eq!(
            says(&["0 issue ca.example", "0 issuewild ;"], true),
            denied(&[])
        );
        assert_eq!(says(&["0 issue ca.example"], true), Permission::Granted);
        assert_eq!(
            says(&["0 issue other.example"], true),
            denied(&["other.example"])
        );
        // it says nothing of other names
        assert_eq!(says(&["0 issuewild ;"], false), Permission::Granted);
        assert_eq!(
            says(&["0 issue ca.example", "0 issuewild ;"], false),
            Permission::Granted
        );
    }

    #[test]
    fn the_account_and_the_method_must_be_those_of_the_record() {
        let of = |texts: &[&str]| says(texts, false);
        let narrowed = |parameter, value: &str| Permission::Narrowed {
            parameter,
            value: value.to_owned(),
        };
        let mine =
            format!("0 issue ca.example; accounturi={ACCOUNT}; validationmethods=dns-01,http-01");
        assert_eq!(of(&[&mine]), Permission::Granted);
        let other = "0 issue ca.example; accounturi=https://ca.example/account/2";
        let uri = "https://ca.example/account/2";
        assert_eq!(of(&[other]), narrowed("accounturi", uri));
        assert_eq!(of(&[other, "0 issue ca.test"]), Permission::Granted);
        let dns = "0 issue ca.example; validationmethods=dns-01";
        assert_eq!(of(&[dns]), narrowed("validationmethods", "dns-01"));
        assert_eq!(
            of(&["0 issue ca.example; validationmethods="]),
            narrowed("validationmethods", "")
        );
        assert_eq!(of(&["0 issue ca.example; unheard=of"]), Permission::Granted);
        // twice: both must hold
        let twice = format!("0 issue ca.example; accounturi={ACCOUNT}; accounturi={uri}");
        assert_eq!(of(&[&twice]), narrowed("accounturi", uri));
    }

    #[test]
    fn a_critical_tag_that_nobody_knows_forbids() {
        let of = |texts: &[&str]| says(texts, false);
        let critical = Permission::Critical {
            tag: "novel".into(),
        };
        assert_eq!(of(&["0 issue ca.example", "128 novel x"]), critical);
        assert_eq!(
            of(&["0 issue ca.example", "0 novel x"]),
            Permission::Granted
        );
        assert_eq!(
            of(&["128 issue ca.example", "128 iodef x"]),
            Permission::Granted
        );
    }

    #[test]
    fn the_nearest_records_are_the_relevant_ones() {
        assert_eq!(
            climb("*.a.example.com"),
            ["a.example.com", "example.com", "com"]
        );
        assert_eq!(climb("localhost"), ["localhost"]);
        let none: Lookup<Vec<Caa>> = Err(NoAnswer::NoData);
        let gone: Lookup<Vec<Caa>> = Err(NoAnswer::NoSuchName);
        let some: Lookup<Vec<Caa>> = Ok(records(&["0 issue ca.example"]));
        let failed: Lookup<Vec<Caa>> = Err(NoAnswer::Circle);
        let at = |levels: &[(&'static str, &Lookup<Vec<Caa>>)]| {
            relevant(levels.iter().copied()).map(|(name, _)| name.to_owned())
        };
        assert_eq!(at(&[("a.b", &gone), ("b", &some)]).as_deref(), Some("b"));
        assert_eq!(
            at(&[("a.b", &some), ("b", &failed)]).as_deref(),
            Some("a.b")
        );
        assert_eq!(
            at(&[("a.b", &failed), ("b", &some)]).as_deref(),
            Some("a.b")
        );
        assert_eq!(at(&[("a.b", &none), ("b", &gone)]), None);
    }
}
