//! P: whether every authoritative server shows what was put into DNS.

use std::collections::BTreeMap;
use std::fmt;

use crate::certificate::words::one_line;
use crate::dns::{Authority, Lookup, NoAnswer, Published};

/// What a server lacks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lack {
    /// `None`: who the servers are could not be found out.
    server: Option<String>,
    name: String,
    why: Why,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Why {
    Texts(Vec<String>),
    NoAnswer(NoAnswer),
}

impl Lack {
    /// Where the text should be.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// What is lacking at `name`; nothing: the CA may look.
///
/// A server is asked at each of its addresses, and one that answers must show every text: the CA may
/// ask just that one. Silence at one address is no matter where another one of the same server
/// answers (a host without IPv6 reaches no IPv6 address). With `forgiving`, nor is a server that is
/// silent altogether while others answer: resolvers go around it, too.
pub fn lacking(
    name: &str,
    values: &[&str],
    published: &Lookup<Published>,
    forgiving: bool,
) -> Vec<Lack> {
    let published = match published {
        Ok(published) => published,
        Err(error) => return vec![lack(None, name, Why::NoAnswer(error.clone()))],
    };
    let mut servers: BTreeMap<&str, Vec<&Authority>> = BTreeMap::new();
    for authority in &published.servers {
        servers.entry(&authority.name).or_default().push(authority);
    }
    let answers = |authority: &Authority| silence(authority).is_none();
    let any = published.servers.iter().any(answers);
    let mut lacks = Vec::new();
    for addresses in servers.values() {
        let heard = addresses.iter().any(|authority| answers(authority));
        let passed_over = forgiving && any;
        if !heard && !passed_over {
            let first = addresses.first();
            lacks.extend(first.and_then(|authority| {
                let why = Why::NoAnswer(silence(authority)?.clone());
                Some(lack(Some(authority), name, why))
            }));
        }
        lacks.extend(addresses.iter().filter_map(|authority| {
            let missing = missing(authority, values)?;
            Some(lack(Some(authority), name, Why::Texts(missing)))
        }));
    }
    if published.servers.is_empty() {
        lacks.push(lack(None, name, Why::NoAnswer(NoAnswer::NoData)));
    }
    lacks
}

/// Whether each server says that it has no such text.
pub fn nobody_shows(value: &str, published: &Published) -> bool {
    let lacks = |authority: &Authority| missing(authority, &[value]).is_some();
    !published.servers.is_empty() && published.servers.iter().all(lacks)
}

/// Why a server says nothing at all; to say that there is no record is to answer.
fn silence(authority: &Authority) -> Option<&NoAnswer> {
    let error = authority.values.as_ref().err();
    error.filter(|error| !error.is_absence() || authority.address.is_none())
}

/// `None`: none is, or nobody knows.
fn missing(authority: &Authority, values: &[&str]) -> Option<Vec<String>> {
    let shown: &[String] = match &authority.values {
        Ok(shown) => shown,
        Err(_) if silence(authority).is_some() => return None,
        Err(_) => &[],
    };
    let missing = values
        .iter()
        .filter(|value| !shown.iter().any(|it| it == *value));
    let missing: Vec<String> = missing.map(|value| (*value).to_owned()).collect();
    (!missing.is_empty()).then_some(missing)
}

fn lack(authority: Option<&Authority>, name: &str, why: Why) -> Lack {
    let server = authority.map(|authority| {
        let shown = one_line(authority.name.as_bytes());
        match authority.address {
            Some(address) => format!("{shown} ({address})"),
            None => shown,
        }
    });
    Lack {
        server,
        name: one_line(name.as_bytes()),
        why,
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match (&self.server, &self.why) {
            (Some(server), Why::Texts(texts)) => {
                write!(
                    f,
                    "{server} does not show {} at {name}",
                    texts.join(" and ")
                )
            }
            (Some(server), Why::NoAnswer(why)) => write!(f, "{server}: {why}"),
            (None, Why::NoAnswer(why)) => write!(f, "{name}: {why}"),
            (None, Why::Texts(_)) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(name: &str, last: u8, values: Lookup<Vec<&str>>) -> Authority {
        Authority {
            name: name.into(),
            address: Some(([192, 0, 2, last], 53).into()),
            values: values.map(|values| values.into_iter().map(str::to_owned).collect()),
        }
    }

    fn silent(name: &str, last: u8) -> Authority {
        let server = ([192, 0, 2, last], 53).into();
        authority(name, last, Err(NoAnswer::TimedOut { server }))
    }

    fn said(servers: Vec<Authority>, forgiving: bool) -> Vec<String> {
        let published = Ok(Published {
            target: "t.example".into(),
            zone: "example".into(),
            servers,
        });
        let lacks = lacking("t.example", &["one", "two"], &published, forgiving);
        lacks.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_server_must_show_every_text_and_may_show_others() {
        let all = || authority("a", 1, Ok(vec!["two", "other", "one"]));
        assert!(
            said(
                vec![all(), authority("b", 2, Ok(vec!["one", "two"]))],
                false
            )
            .is_empty()
        );
        assert_eq!(
            said(
                vec![
                    all(),
                    authority("b", 2, Ok(vec!["one"])),
                    authority("c", 3, Err(NoAnswer::NoSuchName)),
                ],
                true
            ),
            [
                "b (192.0.2.2:53) does not show two at t.example",
                "c (192.0.2.3:53) does not show one and two at t.example",
            ]
        );
    }

    #[test]
    fn a_silent_server_is_waited_for_and_then_gone_around_while_another_answers() {
        let all = || authority("a", 1, Ok(vec!["one", "two"]));
        let lacks = said(vec![all(), silent("b", 2)], false);
        assert_eq!(lacks, ["b (192.0.2.2:53): 192.0.2.2:53 does not answer"]);
        assert!(said(vec![all(), silent("b", 2)], true).is_empty());
        // another address of the same server
        assert!(said(vec![all(), silent("a", 2)], false).is_empty());
        // everybody is silent
        assert_eq!(said(vec![silent("a", 1), silent("b", 2)], true).len(), 2);
        assert_eq!(said(Vec::new(), true), ["t.example: it has no such record"]);
    }

    #[test]
    fn a_text_is_gone_only_where_each_server_says_so() {
        let gone = |servers| {
            let published = Published {
                target: "t.example".into(),
                zone: "example".into(),
                servers,
            };
            nobody_shows("one", &published)
        };
        let none = || authority("a", 1, Err(NoAnswer::NoSuchName));
        assert!(gone(vec![none(), authority("b", 2, Ok(vec!["two"]))]));
        assert!(!gone(vec![none(), authority("b", 2, Ok(vec!["one"]))]));
        assert!(!gone(vec![none(), silent("b", 2)]));
        assert!(!gone(Vec::new()));
    }

    #[test]
    fn nobody_knows_is_not_published() {
        let error: Lookup<Published> = Err(NoAnswer::Circle);
        let lacks = lacking("t.example", &["one"], &error, true);
        assert_eq!(
            lacks[0].to_string(),
            "t.example: its CNAME records lead to no end"
        );
    }
}
