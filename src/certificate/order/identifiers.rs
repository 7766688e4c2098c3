//! P: what a failed order says of single identifiers.

use super::OrderError;
use crate::certificate::Identifier;
use crate::certificate::dns01::Dns01Error;
use crate::certificate::dns01::record::name_of;
use crate::certificate::http::{HttpError, Problem, Subproblem};
use crate::certificate::preflight::Finding;
use crate::certificate::subset::IdentifierFailure;
use crate::certificate::words::one_line;

impl OrderError {
    /// Those of `ordered` that failed by themselves, each once. None where the fault is the CA's, the
    /// account's or this host's.
    pub(in crate::certificate) fn of_identifiers(
        &self,
        ordered: &[Identifier],
    ) -> Vec<IdentifierFailure> {
        let each = |identifier| self.of_identifier(identifier, ordered);
        ordered.iter().filter_map(each).collect()
    }

    fn of_identifier(
        &self,
        identifier: &Identifier,
        ordered: &[Identifier],
    ) -> Option<IdentifierFailure> {
        let text = identifier.to_string();
        let failure = |why: String, refused| IdentifierFailure {
            identifier: identifier.clone(),
            why,
            refused,
        };
        match self {
            Self::Challenge { problems } => {
                let mut mine = problems.iter().filter(|it| it.identifier == text);
                let problem = &mine.find(|it| !is_the_cas(&it.problem))?.problem;
                Some(failure(problem.to_string(), is_refused(&problem.kind)))
            }
            Self::Dns01(error) => of_dns01(error, &text).map(|why| failure(why, false)),
            Self::Http {
                source: HttpError::Problem(problem),
                ..
            }
            | Self::Invalid(problem) => {
                let (why, refused) = of_problem(problem, &text, ordered)?;
                Some(failure(why, refused))
            }
            // the clock is in the way of all
            Self::NotSent(findings) if findings.iter().all(|it| it.name().is_some()) => {
                let found = findings.iter().find(|it| it.name() == Some(&text))?;
                Some(failure(found.told(), false))
            }
            Self::Shared(error) => error.of_identifier(identifier, ordered),
            _ => None,
        }
    }
}

/// RFC 8555 §6.7.1, or the identifier in the problem's own words where there are no parts: Boulder
/// has none where a single identifier is refused.
fn of_problem(
    problem: &Problem,
    identifier: &str,
    ordered: &[Identifier],
) -> Option<(String, bool)> {
    let named = |part: &&Subproblem| {
        let of = part.identifier.as_ref();
        of.is_some_and(|of| of.value == identifier)
    };
    if let Some(part) = problem.subproblems.iter().find(named) {
        let why = one_line(part.detail.as_bytes());
        return is_about_a_name(&part.kind).then(|| (why, is_refused(&part.kind)));
    }
    let has_parts = problem.subproblems.iter().any(|it| it.identifier.is_some());
    let words = || problem.detail.split(is_no_part_of_a_name);
    let mentioned =
        |one: &str| words().any(|it| it == one || it.trim_end_matches([':', '.']) == one);
    let all = ordered.iter().all(|one| mentioned(&one.to_string()));
    let mine = !has_parts && !all && mentioned(identifier) && is_about_a_name(&problem.kind);
    mine.then(|| (problem.to_string(), is_refused(&problem.kind)))
}

fn of_dns01(error: &Dns01Error, identifier: &str) -> Option<String> {
    let name = name_of(identifier);
    match error {
        Dns01Error::Lacking { lacks, .. } => {
            let lack = lacks.iter().find(|lack| lack.name() == name)?;
            Some(lack.to_string())
        }
        Dns01Error::NoPlace { names, source } => names
            .contains(&name)
            .then(|| format!("find the zone of {name}: {source}")),
        _ => None,
    }
}

fn is_no_part_of_a_name(c: char) -> bool {
    !(c.is_ascii_alphanumeric() || matches!(c, '*' | '-' | '.' | ':' | '_'))
}

/// The same is said of a challenge and of an order.
fn is_about_a_name(kind: &str) -> bool {
    matches!(
        short(kind),
        "caa"
            | "connection"
            | "dns"
            | "incorrectResponse"
            | "rejectedIdentifier"
            | "tls"
            | "unsupportedIdentifier"
    )
}

fn is_the_cas(problem: &Problem) -> bool {
    matches!(short(&problem.kind), "rateLimited" | "serverInternal")
}

fn is_refused(kind: &str) -> bool {
    matches!(short(kind), "rejectedIdentifier" | "unsupportedIdentifier")
}

fn short(kind: &str) -> &str {
    kind.strip_prefix("urn:ietf:params:acme:error:")
        .unwrap_or(kind)
}

impl Finding {
    /// The identifier that it is about; `None`: every order would meet it.
    fn name(&self) -> Option<&str> {
        match self {
            Self::CaaCritical { name, .. }
            | Self::CaaDenies { name, .. }
            | Self::CaaNarrows { name, .. }
            | Self::CaaUnknown { name, .. }
            | Self::Foreign { name, .. }
            | Self::NoAddress { name, .. }
            | Self::NoName { name, .. }
            | Self::NotAsked { name, .. }
            | Self::OtherAnswer { name, .. }
            | Self::Unanswered { name, .. }
            | Self::Unresolved { name, .. } => Some(name),
            Self::Clock { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::http::SubproblemIdentifier;
    use crate::certificate::order::IdentifierProblem;
    use crate::dns::NoAnswer;

    fn ordered() -> Vec<Identifier> {
        let names = [
            "example.com",
            "*.example.com",
            "b.example.com",
            "c.example.org",
        ];
        let names = names.iter();
        names.map(|name| Identifier::Dns((*name).into())).collect()
    }

    fn urn(kind: &str) -> String {
        format!("urn:ietf:params:acme:error:{kind}")
    }

    fn problem(kind: &str, detail: &str, parts: &[(&str, &str)]) -> Problem {
        let parts = parts.iter().map(|(kind, of)| Subproblem {
            kind: urn(kind),
            detail: format!("no {of}"),
            identifier: Some(SubproblemIdentifier {
                value: (*of).into(),
            }),
        });
        Problem {
            kind: urn(kind),
            detail: detail.into(),
            subproblems: parts.collect(),
            status: 400,
            ..Problem::default()
        }
    }

    fn named(error: &OrderError) -> Vec<String> {
        let failures = error.of_identifiers(&ordered()).into_iter();
        failures.map(|it| it.identifier.to_string()).collect()
    }

    fn refused(problem: Problem) -> OrderError {
        OrderError::Http {
            step: "ask for a new order",
            source: HttpError::Problem(problem),
        }
    }

    #[test]
    fn an_invalid_authorization_is_its_identifiers_unless_the_ca_failed() {
        let problems = [
            ("*.example.com", "unauthorized"),
            ("b.example.com", "serverInternal"),
            ("c.example.org", "connection"),
            ("elsewhere.example", "connection"),
        ];
        let problems = problems.iter().map(|(name, kind)| IdentifierProblem {
            identifier: (*name).into(),
            problem: problem(kind, "no", &[]),
        });
        let error = OrderError::Challenge {
            problems: problems.collect(),
        };
        assert_eq!(named(&error), ["*.example.com", "c.example.org"]);
    }

    #[test]
    fn a_problem_is_about_the_identifiers_of_its_parts_or_of_its_words() {
        let table: [(Problem, &[&str]); 9] = [
            (
                problem(
                    "malformed",
                    "several",
                    &[("rejectedIdentifier", "b.example.com")],
                ),
                &["b.example.com"],
            ),
            (
                problem(
                    "compound",
                    "two",
                    &[("caa", "*.example.com"), ("dns", "c.example.org")],
                ),
                &["*.example.com", "c.example.org"],
            ),
            // a limit of the CA's, whichever name it is about
            (
                problem("rateLimited", "too many for \"b.example.com\"", &[]),
                &[],
            ),
            (
                problem(
                    "rateLimited",
                    "several",
                    &[("rateLimited", "b.example.com")],
                ),
                &[],
            ),
            (
                problem(
                    "rejectedIdentifier",
                    "Cannot issue for \"b.example.com\": no",
                    &[],
                ),
                &["b.example.com"],
            ),
            (
                problem("caa", "While processing CAA for *.example.com: x", &[]),
                &["*.example.com"],
            ),
            (
                problem("rejectedIdentifier", "Cannot issue: policy", &[]),
                &[],
            ),
            // of the account
            (
                problem("unauthorized", "no right to b.example.com", &[]),
                &[],
            ),
            (problem("serverInternal", "b.example.com", &[]), &[]),
        ];
        for (problem, expected) in table {
            let detail = problem.detail.clone();
            assert_eq!(named(&refused(problem.clone())), expected, "{detail}");
            assert_eq!(named(&OrderError::Invalid(problem)), expected, "{detail}");
        }
        let every = "example.com *.example.com b.example.com c.example.org";
        assert_eq!(named(&refused(problem("dns", every, &[]))), [""; 0]);
    }

    #[test]
    fn what_is_known_before_an_order_is_about_its_name_and_a_wrong_clock_about_none() {
        let none = |name: &str| Finding::NoName {
            name: name.into(),
            should: Vec::new(),
        };
        let mut findings = vec![none("b.example.com"), none("c.example.org")];
        let error = OrderError::NotSent(findings.clone());
        assert_eq!(named(&error), ["b.example.com", "c.example.org"]);
        findings.push(Finding::Clock {
            ahead: time::Duration::days(-3),
        });
        assert_eq!(named(&OrderError::NotSent(findings)), [""; 0]);
    }

    #[test]
    fn a_zone_that_is_gone_is_about_all_names_of_its_record_and_an_unknown_provider_about_none() {
        let error = OrderError::Dns01(Dns01Error::NoPlace {
            names: vec!["_acme-challenge.example.com".into()],
            source: NoAnswer::NoSuchName,
        });
        assert_eq!(named(&error), ["example.com", "*.example.com"]);
        let error = OrderError::Dns01(Dns01Error::NoProvider("own".into()));
        assert_eq!(named(&error), [""; 0]);
    }

    #[test]
    fn nothing_is_said_of_identifiers_by_a_ca_that_is_away() {
        for status in [500, 502, 503] {
            let away = HttpError::Answer {
                status,
                words: "b.example.com".into(),
                retry_after: None,
            };
            let step = "ask for a new order";
            assert_eq!(named(&OrderError::Http { step, source: away }), [""; 0]);
        }
        assert_eq!(
            named(&OrderError::TimedOut(std::time::Duration::ZERO)),
            [""; 0]
        );
    }
}
