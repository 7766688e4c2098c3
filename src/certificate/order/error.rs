//! P: why a certificate was not issued, and whether to ask again.

use std::sync::Arc;
use std::time::Duration;

use instant_acme::ChallengeType;

use crate::atomic_file::WriteError;
use crate::certificate::Identifier;
use crate::certificate::account::AccountError;
use crate::certificate::attempts::RetryAdvice;
use crate::certificate::dns01::Dns01Error;
use crate::certificate::external_account::ExternalAccountError;
use crate::certificate::http::{HttpError, Problem, Subproblem, SubproblemIdentifier};
use crate::certificate::jws::JwsError;
use crate::certificate::key::KeyError;
use crate::certificate::ledger::LedgerError;
use crate::certificate::preflight::Finding;
use crate::certificate::words::{first_few, one_line};

/// Why an order was not completed.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error(transparent)]
    Answer(#[from] WriteError),
    #[error("order with {count} authorizations for {identifiers} identifiers")]
    AuthorizationCount { count: usize, identifiers: usize },
    #[error("prove control of {}", list(problems))]
    Challenge { problems: Vec<IdentifierProblem> },
    #[error(transparent)]
    Dns01(#[from] Dns01Error),
    #[error(transparent)]
    ExternalAccount(#[from] ExternalAccountError),
    #[error(
        "register at {0}: the CA takes only customers; set `external_account` with the `key_id` and the key that it gave you"
    )]
    ExternalAccountMissing(String),
    #[error(
        "register as the customer {key_id}: the CA does not take that, are `key_id` and `hmac_key_file` right and unused? {source}"
    )]
    ExternalAccountRefused {
        key_id: String,
        #[source]
        source: Box<OrderError>,
    },
    #[error("prove control of {0}, which was not asked for")]
    ForeignAuthorization(String),
    #[error("{step}: {source}")]
    Http {
        step: &'static str,
        #[source]
        source: HttpError,
    },
    #[error("finish the order, which the CA calls invalid: {0}")]
    Invalid(Problem),
    #[error(transparent)]
    Jws(#[from] JwsError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("use the account's key: others have used it for {} s", .0.as_secs())]
    KeyInUse(Duration),
    #[error("get the certificate now: the CA asks to come back in {} s; the order stays open", .0.as_secs())]
    Later(Duration),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("prove control of {identifier}: the CA offers no {kind} challenge for it")]
    NoChallenge {
        identifier: String,
        kind: &'static str,
    },
    #[error("change the account's key: {0} offers no such change (RFC 8555 §7.3.5)")]
    NoKeyChange(String),
    /// The CA was not asked: it would have to refuse.
    #[error("order the certificate: {} (nothing was sent to the CA)", findings(.0))]
    NotSent(Vec<Finding>),
    #[error("{step}: {}", one_line(source.to_string().as_bytes()))]
    Protocol {
        step: &'static str,
        #[source]
        source: instant_acme::Error,
    },
    /// What another order, which waited for the same account, was told.
    #[error(transparent)]
    Shared(Arc<OrderError>),
    #[error("finish work in the background: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error("get the certificate within {} s; the order stays open", .0.as_secs())]
    TimedOut(Duration),
    #[error("answer the challenge for {0}: its token is not base64url (RFC 8555 §8.3)")]
    Token(String),
    #[error("order {0}: a wildcard needs dns-01")]
    Wildcard(Identifier),
}

/// Why the CA did not believe that we control one identifier.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IdentifierProblem {
    pub identifier: String,
    /// The CA's own words.
    pub problem: Problem,
}

impl OrderError {
    /// What instant-acme returns, with what we put into it taken out again.
    pub(super) fn of(step: &'static str, error: instant_acme::Error) -> Self {
        match error {
            instant_acme::Error::Api(problem) => Self::Http {
                step,
                source: HttpError::Problem(own_problem(&problem)),
            },
            instant_acme::Error::Other(other) => match other.downcast::<HttpError>() {
                Ok(source) => Self::Http {
                    step,
                    source: *source,
                },
                Err(other) => Self::Protocol {
                    step,
                    source: instant_acme::Error::Other(other),
                },
            },
            source => Self::Protocol { step, source },
        }
    }

    pub(super) fn no_challenge(identifier: String, kind: &ChallengeType) -> Self {
        Self::NoChallenge {
            identifier,
            kind: match kind {
                ChallengeType::Dns01 => "dns-01",
                _ => "http-01",
            },
        }
    }

    /// Will ordering again help, and when?
    pub fn retry(&self) -> RetryAdvice {
        match self {
            Self::Challenge { problems } => problems
                .iter()
                .map(|problem| problem.problem.retry())
                .find(|advice| *advice != RetryAdvice::Retry)
                .unwrap_or_default(),
            Self::Http { source, .. } => source.retry(),
            Self::Invalid(problem) => problem.retry(),
            Self::Later(wait) => RetryAdvice::After(*wait),
            Self::Dns01(error) => error.retry(),
            Self::ExternalAccount(_)
            | Self::ExternalAccountMissing(_)
            | Self::ExternalAccountRefused { .. }
            | Self::NoChallenge { .. }
            | Self::NoKeyChange(_)
            | Self::Token(_)
            | Self::Wildcard(_) => RetryAdvice::Useless,
            Self::Shared(error) => error.retry(),
            Self::Account(_)
            | Self::AuthorizationCount { .. }
            | Self::Answer(_)
            | Self::ForeignAuthorization(_)
            | Self::Jws(_)
            | Self::Key(_)
            | Self::KeyInUse(_)
            | Self::Ledger(_)
            | Self::NotSent(_)
            | Self::Protocol { .. }
            | Self::Task(_)
            | Self::TimedOut(_) => RetryAdvice::Retry,
        }
    }

    /// What the CA said about each identifier; empty where it said nothing of one.
    pub fn problems(&self) -> &[IdentifierProblem] {
        match self {
            Self::Challenge { problems } => problems,
            Self::Shared(error) => error.problems(),
            _ => &[],
        }
    }

    /// Whether another CA may do better: this one is out of reach, answers nonsense, or refuses us or
    /// the name. What is about the name alone (nobody answers the challenge), or about this host, the
    /// next would meet too.
    pub(in crate::certificate) fn is_the_cas(&self) -> bool {
        match self {
            Self::Challenge { problems } => problems
                .iter()
                .all(|problem| !is_about_the_name(&problem.problem)),
            Self::Invalid(problem) => !is_about_the_name(problem),
            Self::Http { source, .. } => match source {
                HttpError::Problem(problem) => {
                    // said to a request it is about us: Boulder, of an account that was closed
                    !is_about_the_name(problem) || problem.short_kind() == "unauthorized"
                }
                _ => true,
            },
            // what its names in CAA records are, is its own
            Self::NotSent(findings) => findings.iter().all(Finding::is_about_the_ca),
            Self::Shared(error) => error.is_the_cas(),
            Self::AuthorizationCount { .. }
            | Self::ExternalAccount(_)
            | Self::ExternalAccountMissing(_)
            | Self::ExternalAccountRefused { .. }
            | Self::ForeignAuthorization(_)
            | Self::Later(_)
            | Self::NoChallenge { .. }
            | Self::Protocol { .. }
            | Self::TimedOut(_)
            | Self::Token(_) => true,
            Self::Account(_)
            | Self::Answer(_)
            | Self::Dns01(_)
            | Self::Jws(_)
            | Self::Key(_)
            | Self::KeyInUse(_)
            | Self::Ledger(_)
            | Self::NoKeyChange(_)
            | Self::Task(_)
            | Self::Wildcard(_) => false,
        }
    }

    /// Whether the CA was there, and able to answer; `None`: that was not seen.
    pub(in crate::certificate) fn has_reached_the_ca(&self) -> Option<bool> {
        match self {
            Self::Challenge { .. } | Self::Invalid(_) => Some(true),
            Self::Http { source, .. } => source.has_reached_the_ca(),
            Self::Shared(error) => error.has_reached_the_ca(),
            _ => None,
        }
    }

    pub(super) fn wants_external_account(&self) -> bool {
        self.problem()
            .is_some_and(|problem| problem.short_kind() == "externalAccountRequired")
    }

    /// Said of a registration: it is refused for what it says.
    pub(super) fn is_about_the_account(&self) -> bool {
        self.problem().is_some_and(is_final)
    }

    /// How the CA answered, or did not.
    pub(in crate::certificate) fn http(&self) -> Option<&HttpError> {
        match self {
            Self::Http { source, .. } => Some(source),
            Self::Shared(error) => error.http(),
            _ => None,
        }
    }

    /// The CA has forgotten the account (or never was the one that made it).
    pub(super) fn is_lost_account(&self) -> bool {
        self.problem()
            .is_some_and(|problem| problem.short_kind() == "accountDoesNotExist")
    }

    pub(super) fn is_not_ready(&self) -> bool {
        self.problem()
            .is_some_and(|problem| problem.short_kind() == "orderNotReady")
    }

    /// Of an order that names the certificate which it replaces: it may be that name. What is said
    /// about limits, the account or a nonce is not.
    pub(super) fn may_be_about_what_is_replaced(&self) -> bool {
        // the library's own: the answer does not repeat the name
        matches!(self, Self::Protocol { .. })
            || self.problem().is_some_and(is_final) && !self.is_lost_account()
    }

    /// Whether the order itself is dead, so that the next attempt needs another: the CA refuses it,
    /// or answers about it what makes no sense. Kept, such an order would be met again for ever.
    pub(in crate::certificate) fn ends_order(&self) -> bool {
        match self {
            Self::AuthorizationCount { .. }
            | Self::Challenge { .. }
            | Self::ForeignAuthorization(_)
            | Self::Invalid(_)
            | Self::NoChallenge { .. }
            | Self::Protocol { .. }
            | Self::Token(_) => true,
            Self::Http { source, .. } => match source {
                HttpError::Encoded(_) | HttpError::ForeignOrigin { .. } | HttpError::TooLarge => {
                    true
                }
                // Pebble answers 404 so, and Let's Encrypt's load balancer may
                HttpError::Answer { status, .. } => {
                    matches!(status, 404 | 410) || (300..400).contains(status)
                }
                HttpError::Problem(problem) => is_final(problem),
                _ => false,
            },
            _ => false,
        }
    }

    /// The CA answered, and said no.
    pub(super) fn is_problem(&self) -> bool {
        self.problem().is_some()
    }

    fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Http {
                source: HttpError::Problem(problem),
                ..
            } => Some(problem),
            _ => None,
        }
    }
}

/// RFC 8555 §6.7: what the CA saw when it looked at the name.
fn is_about_the_name(problem: &Problem) -> bool {
    matches!(
        problem.short_kind(),
        "connection" | "dns" | "incorrectResponse" | "tls" | "unauthorized"
    )
}

fn is_final(problem: &Problem) -> bool {
    let passing = matches!(
        problem.short_kind(),
        "badNonce" | "orderNotReady" | "rateLimited" | "serverInternal"
    );
    (400..500).contains(&problem.status) && problem.status != 429 && !passing
}

pub(super) fn own_problem(problem: &instant_acme::Problem) -> Problem {
    Problem {
        kind: problem.r#type.clone().unwrap_or_default(),
        detail: problem.detail.clone().unwrap_or_default(),
        subproblems: problem.subproblems.iter().map(own_subproblem).collect(),
        status: problem.status.unwrap_or_default(),
        retry_after: None,
    }
}

fn own_subproblem(part: &instant_acme::Subproblem) -> Subproblem {
    Subproblem {
        kind: part.r#type.clone().unwrap_or_default(),
        detail: part.detail.clone().unwrap_or_default(),
        identifier: part
            .identifier
            .as_ref()
            .map(|identifier| SubproblemIdentifier {
                value: identifier.authorized(false).to_string(),
            }),
    }
}

fn findings(findings: &[Finding]) -> String {
    let each: Vec<String> = findings.iter().map(Finding::told).collect();
    first_few(&each, "; ")
}

fn list(problems: &[IdentifierProblem]) -> String {
    let each: Vec<String> = problems
        .iter()
        .map(|problem| format!("{}: {}", problem.identifier, problem.problem))
        .collect();
    first_few(&each, "; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: &str, status: u16) -> OrderError {
        OrderError::Http {
            step: "finalize the order",
            source: HttpError::Problem(Problem {
                kind: format!("urn:ietf:params:acme:error:{kind}"),
                status,
                ..Problem::default()
            }),
        }
    }

    #[test]
    fn an_order_is_given_up_when_the_ca_refuses_it_for_good_and_kept_otherwise() {
        assert!(refused("badCSR", 400).ends_order());
        assert!(refused("malformed", 404).ends_order());
        for (kind, status) in [
            ("badNonce", 400),
            ("orderNotReady", 403),
            ("rateLimited", 429),
            ("serverInternal", 500),
        ] {
            assert!(!refused(kind, status).ends_order(), "{kind}");
        }
        assert!(!OrderError::TimedOut(Duration::ZERO).ends_order());
    }

    #[test]
    fn an_account_that_the_ca_has_closed_is_the_cas_affair_and_what_it_saw_of_a_name_is_not() {
        // Boulder, of a deactivated account
        assert!(refused("unauthorized", 403).is_the_cas());
        for kind in ["connection", "dns", "incorrectResponse", "tls"] {
            assert!(!refused(kind, 400).is_the_cas(), "{kind}");
        }
        let seen = Problem {
            kind: "urn:ietf:params:acme:error:unauthorized".into(),
            ..Problem::default()
        };
        assert!(!OrderError::Invalid(seen).is_the_cas());
    }

    #[test]
    fn advice_comes_from_what_the_ca_said() {
        assert_eq!(
            refused("rejectedIdentifier", 400).retry(),
            RetryAdvice::Useless
        );
        assert_eq!(refused("connection", 400).retry(), RetryAdvice::Retry);
        let wait = Duration::from_secs(60);
        let busy = OrderError::Http {
            step: "ask for a new order",
            source: HttpError::Answer {
                status: 503,
                words: "busy".into(),
                retry_after: Some(wait),
            },
        };
        assert_eq!(busy.retry(), RetryAdvice::After(wait));
        assert_eq!(
            OrderError::Shared(Arc::new(busy)).retry(),
            RetryAdvice::After(wait)
        );
    }

    #[test]
    fn every_identifier_is_named_with_its_reason() {
        let problem = |identifier: &str, detail: &str| IdentifierProblem {
            identifier: identifier.into(),
            problem: Problem {
                detail: detail.into(),
                kind: "urn:ietf:params:acme:error:unauthorized".into(),
                ..Problem::default()
            },
        };
        let error = OrderError::Challenge {
            problems: vec![
                problem("a.example", "got 404"),
                problem("b.example", "got\n500"),
            ],
        };
        assert_eq!(
            error.to_string(),
            "prove control of a.example: got 404 (unauthorized); b.example: got 500 (unauthorized)"
        );
    }
}
