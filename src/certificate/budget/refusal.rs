//! P: what a CA says it will not do, for whom, and until when.

use time::format_description::FormatItem;
use time::macros::format_description;
use time::{Duration, OffsetDateTime, PrimitiveDateTime};

use super::{LONGEST_WAIT, Subject};
use crate::certificate::http::{HttpError, Problem};

/// A refusal that is about more than one request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// `None`: the names of the order.
    pub subject: Option<Subject>,
    pub until: OffsetDateTime,
    /// A lowercase fragment that fits "failed to …".
    pub why: String,
    pub for_a_person: bool,
}

impl Refusal {
    /// `None`: nothing is refused for a while.
    pub fn of(error: &HttpError, now: OffsetDateTime) -> Option<Self> {
        match error {
            // a load balancer: it is about everybody who asks from here
            HttpError::Answer {
                status: 429 | 503,
                retry_after: Some(wait),
                ..
            } => Some(Self {
                subject: Some(Subject::Account),
                until: now + bounded(*wait).min(LONGEST_BUSY),
                why: format!("order now: the CA is busy ({error})"),
                for_a_person: false,
            }),
            HttpError::Problem(problem) if problem.short_kind() == "rateLimited" => {
                Some(Self::of_problem(problem, now))
            }
            _ => None,
        }
    }

    fn of_problem(problem: &Problem, now: OffsetDateTime) -> Self {
        let portal = portal(&problem.detail);
        let asked = problem.retry_after.map(|wait| now + bounded(wait));
        let until = asked.or_else(|| retry_after(&problem.detail));
        let until = match portal {
            // nothing that time brings
            Some(_) => now + LONGEST_WAIT,
            None => until
                .unwrap_or(now + Duration::HOUR)
                .min(now + LONGEST_WAIT),
        };
        Self {
            subject: subject(&problem.detail),
            until,
            why: match portal {
                Some(portal) => format!("order: {problem}; unpause the names at {portal}"),
                None => format!("order now: {problem}"),
            },
            for_a_person: portal.is_some(),
        }
    }
}

/// Let's Encrypt's words; of any other's nothing is known but the order that it was said to.
fn subject(detail: &str) -> Option<Subject> {
    let quoted = || detail.split('"').nth(1).map(str::to_owned);
    match () {
        () if detail.contains("new orders (") => Some(Subject::Account),
        () if detail.contains("failed authorizations (") => quoted().map(Subject::Identifier),
        () if detail.contains("already issued for \"") => quoted().map(Subject::Domain),
        () => None,
    }
}

/// `…, retry after 2026-11-24 13:40:01 UTC: see …`
fn retry_after(detail: &str) -> Option<OffsetDateTime> {
    let (_, rest) = detail.split_once("retry after ")?;
    let moment = rest.split_once(" UTC")?.0;
    let moment = PrimitiveDateTime::parse(moment, MOMENT).ok()?;
    Some(moment.assume_utc())
}

/// Where a person unpauses names that failed for too long.
fn portal(detail: &str) -> Option<&str> {
    if !detail.contains("temporarily prevented from requesting certificates") {
        return None;
    }
    let begin = detail.find("https://")?;
    let url = detail.get(begin..)?.split(char::is_whitespace).next()?;
    let plain = |byte: u8| byte.is_ascii_graphic();
    (url.len() <= LONGEST_URL && url.bytes().all(plain)).then_some(url)
}

fn bounded(wait: std::time::Duration) -> Duration {
    Duration::try_from(wait).map_or(LONGEST_WAIT, |wait| wait.min(LONGEST_WAIT))
}

/// Nobody is that busy: it would keep every certificate from being renewed.
const LONGEST_BUSY: Duration = Duration::HOUR;
const MOMENT: &[FormatItem<'_>] =
    format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
/// There is a signed token in it.
const LONGEST_URL: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> OffsetDateTime {
        time::macros::datetime!(2026-11-24 12:00 UTC)
    }

    fn refusal(detail: &str, retry_after: Option<u64>) -> Refusal {
        let problem = Problem {
            kind: "urn:ietf:params:acme:error:rateLimited".into(),
            detail: detail.into(),
            status: 429,
            retry_after: retry_after.map(std::time::Duration::from_secs),
            ..Problem::default()
        };
        Refusal::of(&HttpError::Problem(problem), now()).unwrap()
    }

    #[test]
    fn a_refusal_is_about_what_its_limit_covers() {
        let see =
            "retry after 2026-11-24 13:40:01 UTC: see https://letsencrypt.org/docs/rate-limits/";
        for (words, subject) in [
            (
                "too many new orders (300) from this account in the last 3h0m0s",
                Some(Subject::Account),
            ),
            (
                "too many certificates (50) already issued for \"example.com\" in the last 168h0m0s",
                Some(Subject::Domain("example.com".into())),
            ),
            (
                "too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s",
                None,
            ),
            (
                "too many failed authorizations (5) for \"a.example.com\" in the last 1h0m0s",
                Some(Subject::Identifier("a.example.com".into())),
            ),
            ("whatever another CA says", None),
        ] {
            let refusal = refusal(&format!("{words}, {see}"), None);
            assert_eq!(refusal.subject, subject, "{words}");
            assert_eq!(
                refusal.until,
                time::macros::datetime!(2026-11-24 13:40:01 UTC)
            );
            assert!(!refusal.for_a_person);
        }
    }

    #[test]
    fn the_header_comes_before_the_words_and_nothing_is_believed_for_more_than_a_week() {
        let words = "too many certificates, retry after 2026-11-24 13:40:01 UTC: see";
        assert_eq!(refusal(words, Some(60)).until, now() + Duration::MINUTE);
        assert_eq!(refusal("no", Some(u64::MAX)).until, now() + Duration::WEEK);
        assert_eq!(refusal("no", None).until, now() + Duration::HOUR);
        let never = refusal("retry after 9999-01-01 00:00:00 UTC", None);
        assert_eq!(never.until, now() + Duration::WEEK);
    }

    #[test]
    fn a_paused_name_waits_for_a_person_and_shows_the_whole_url() {
        let url = format!(
            "https://portal.example/sfe/v1/unpause?jwt={}",
            "x".repeat(900)
        );
        let words = format!(
            "Your account is temporarily prevented from requesting certificates for a.example.com \
             and possibly others. Please visit: {url}"
        );
        let paused = refusal(&words, None);
        assert!(
            paused.for_a_person && paused.why.ends_with(&url),
            "{}",
            paused.why
        );
        assert_eq!(paused.until, now() + Duration::WEEK);
    }

    #[test]
    fn a_load_balancers_answer_is_about_everybody() {
        let busy = |retry_after| HttpError::Answer {
            status: 503,
            words: "busy".into(),
            retry_after,
        };
        let wait = std::time::Duration::from_secs(17);
        let refusal = Refusal::of(&busy(Some(wait)), now()).unwrap();
        assert_eq!(refusal.subject, Some(Subject::Account));
        assert_eq!(refusal.until, now() + Duration::seconds(17));
        assert_eq!(Refusal::of(&busy(None), now()), None);
        let absurd = std::time::Duration::MAX;
        let refusal = Refusal::of(&busy(Some(absurd)), now()).unwrap();
        assert_eq!(refusal.until, now() + Duration::HOUR);
    }
}
