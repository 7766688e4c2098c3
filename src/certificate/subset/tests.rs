use super::*;
use crate::certificate::attempts::RetryAdvice;
use crate::certificate::{
    CertificateRequest, Challenge, Issuer, StoredCertificate, Validity, WantedCertificate,
};

fn start() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn names(names: &[&str]) -> Vec<Identifier> {
    let names = names.iter();
    names.map(|name| Identifier::Dns((*name).into())).collect()
}

fn wanted() -> WantedCertificate {
    let identifiers = names(&["a.example", "b.example", "c.example"]);
    WantedCertificate::new(identifiers, Issuer::Acme).unwrap()
}

/// With these names, from long ago until so many hours after the start.
fn stored(of: &[&str], hours: i64) -> StoredCertificate {
    StoredCertificate {
        uid: None,
        name: wanted().name,
        serial: "01".into(),
        issuer: Issuer::Acme,
        identifiers: names(of),
        validity: Validity {
            not_before: start() - Duration::days(60),
            not_after: start() + Duration::hours(hours),
        },
        origin: None,
        adopted: false,
        key_type: None,
        chain: "/c".into(),
        key: "/k".into(),
        leaf: Vec::new(),
    }
}

fn failures(of: &[&str], refused: bool) -> Vec<IdentifierFailure> {
    let failures = names(of).into_iter().map(|identifier| IdentifierFailure {
        identifier,
        why: "got 404".into(),
        refused,
    });
    failures.collect()
}

/// Orders for all names that failed at these minutes, each because of these.
fn failed(attempts: &[(i64, &[&str])], stored: Option<&StoredCertificate>) -> Attempts {
    failed_as(attempts, stored, false)
}

fn failed_as(
    attempts: &[(i64, &[&str])],
    stored: Option<&StoredCertificate>,
    refused: bool,
) -> Attempts {
    let request = CertificateRequest::new(&wanted(), stored, None);
    let mut last = None;
    for (minute, of) in attempts {
        let now = start() + Duration::minutes(*minute);
        let (error, retry) = ("prove control".to_owned(), RetryAdvice::Retry);
        let attempts = Attempts::after_failure(last.as_ref(), &request, error, retry, now, 0.0);
        last = Some(attempts.naming(&failures(of, refused)));
    }
    last.unwrap()
}

fn omitted(attempts: &Attempts, stored: Option<&StoredCertificate>, minute: i64) -> Vec<String> {
    let now = start() + Duration::minutes(minute);
    let omitted = attempts.omitted(&wanted().identifiers, stored, now);
    omitted
        .iter()
        .map(|one| one.identifier.to_string())
        .collect()
}

const B: &[&str] = &["b.example"];
const BC: &[&str] = &["b.example", "c.example"];
const ALL: &[&str] = &["a.example", "b.example", "c.example"];
const NONE: &[&str] = &[];
const DAY: i64 = 24 * 60;

/// What failed when, how long a certificate with which names lasts, and what is left out then.
type Row = (
    &'static [(i64, &'static [&'static str])],
    Option<(&'static [&'static str], i64)>,
    &'static [&'static str],
);

#[test]
fn only_what_fails_by_itself_for_a_while_is_left_out_and_never_everything() {
    let table: [Row; 17] = [
        // nothing is there: three attempts
        (&[(0, B)], None, NONE),
        (&[(0, B), (1, B)], None, NONE),
        (&[(0, B), (1, B), (11, B)], None, B),
        (&[(0, BC), (1, BC), (11, BC)], None, BC),
        // they came too fast to tell (a person tried)
        (&[(0, B), (1, B), (2, B)], None, NONE),
        // another one than before
        (&[(0, B), (1, B), (11, &["c.example"])], None, NONE),
        // the fault is not theirs
        (&[(0, ALL), (1, ALL), (11, ALL)], None, NONE),
        (&[(0, NONE), (1, NONE), (11, NONE)], None, NONE),
        // what serves has all names: three days, or a quarter of what is left
        (&[(0, B), (1, B), (11, B), (111, B)], Some((ALL, 720)), NONE),
        (&[(0, B), (DAY, B), (3 * DAY, B)], Some((ALL, 720)), B),
        (&[(0, B), (1, B), (11, B), (111, B)], Some((ALL, 6)), B),
        (&[(0, B), (1, B), (11, B)], Some((ALL, 6)), NONE),
        // what serves has ended, or lacks one that could be proven
        (&[(0, B), (1, B), (11, B)], Some((ALL, -1)), B),
        (&[(0, B), (1, B), (11, B)], Some((&["a.example"], 720)), B),
        // it has all that can be proven: nothing is lost
        (
            &[(0, B), (1, B), (11, B)],
            Some((&["a.example", "c.example"], 720)),
            B,
        ),
        (
            &[(0, B), (1, B)],
            Some((&["a.example", "c.example"], 720)),
            NONE,
        ),
        // a single failure, long ago
        (&[(0, B), (10 * DAY, NONE)], None, NONE),
    ];
    for (attempts, certificate, expected) in table {
        let stored = certificate.map(|(of, hours)| stored(of, hours));
        let known = failed(attempts, stored.as_ref());
        let (minute, _) = attempts.last().unwrap();
        assert_eq!(
            omitted(&known, stored.as_ref(), *minute),
            expected,
            "{attempts:?} {certificate:?}"
        );
    }
}

#[test]
fn what_the_ca_will_never_issue_for_is_left_out_at_once_where_nothing_is_there() {
    let refused = failed_as(&[(0, B)], None, true);
    assert_eq!(omitted(&refused, None, 0), B);
    let good = stored(ALL, 720);
    let refused = failed_as(&[(0, B)], Some(&good), true);
    assert_eq!(omitted(&refused, Some(&good), 0), NONE);
}

#[test]
fn it_is_ordered_again_when_its_next_attempt_is_due_and_when_a_person_asks() {
    let known = failed(&[(0, B), (1, B), (11, B)], None);
    assert_eq!(omitted(&known, None, 12), B);
    // 100 minutes later
    assert_eq!(omitted(&known, None, 111), NONE);
    let now = known.clone().retried_now().unwrap();
    assert_eq!(omitted(&now, None, 12), NONE);
    assert_eq!((now.failures, now.next), (0, None));
    // it has failed before: one more attempt is enough
    let request = CertificateRequest::new(&wanted(), None, None);
    let at = start() + Duration::minutes(12);
    let again = Attempts::after_failure(
        Some(&now),
        &request,
        "x".into(),
        RetryAdvice::Retry,
        at,
        0.0,
    );
    assert_eq!(omitted(&again.naming(&failures(B, false)), None, 12), B);
    assert_eq!(failed(&[(0, NONE)], None).retried_now(), None);
}

#[test]
fn a_changed_wish_is_ordered_in_full_once_and_still_knows_what_fails() {
    let known = failed(&[(0, B), (1, B), (11, B)], None);
    let identifiers = names(&["a.example", "b.example", "d.example"]);
    let other = WantedCertificate::new(identifiers, Issuer::Acme).unwrap();
    assert!(!known.is_for(&other));
    let request = CertificateRequest::new(&other, None, None);
    let at = start() + Duration::minutes(20);
    let again = Attempts::after_failure(
        Some(&known),
        &request,
        "x".into(),
        RetryAdvice::Retry,
        at,
        0.0,
    );
    let again = again.naming(&failures(B, false));
    let omitted = again.omitted(&other.identifiers, None, at);
    assert_eq!(omitted.len(), 1);
    // by another challenge it may be proven
    let by_dns = CertificateRequest {
        challenge: Challenge::Dns01("own".into()),
        ..request
    };
    let again = Attempts::after_failure(
        Some(&known),
        &by_dns,
        "x".into(),
        RetryAdvice::Retry,
        at,
        0.0,
    );
    assert_eq!(again.failing, []);
}

#[test]
fn after_a_certificate_without_it_only_that_is_still_failing_and_says_why() {
    let known = failed(&[(0, BC), (1, B), (11, B)], None);
    let left = Attempts::after_subset(&known, &names(B));
    let failing: Vec<_> = left
        .failing
        .iter()
        .map(|it| it.identifier.to_string())
        .collect();
    assert_eq!(failing, B);
    assert_eq!((left.failures, left.next), (3, None));
    let error = "prove control of b.example: got 404; the certificate has only the other names";
    assert_eq!(left.last_error.as_deref(), Some(error));
    // whatever fails next, it is still said
    let request = CertificateRequest::new(&wanted(), None, None);
    let at = start() + Duration::DAY;
    let away = Attempts::after_failure(
        Some(&left),
        &request,
        "reach it".into(),
        RetryAdvice::Retry,
        at,
        0.0,
    );
    let error = "reach it; and to prove control of b.example: got 404";
    assert_eq!(away.last_error.as_deref(), Some(error));
}

#[test]
fn a_record_from_before_there_were_any_is_read_and_one_from_the_future_is_not_believed() {
    let known = failed(&[(0, B), (1, B), (11, B)], None);
    let text = serde_json::to_string(&known).unwrap();
    assert_eq!(serde_json::from_str::<Attempts>(&text).unwrap(), known);
    let old = failed(&[(0, NONE)], None);
    let text = serde_json::to_string(&old).unwrap();
    assert!(!text.contains("failing"), "{text}");
    assert_eq!(serde_json::from_str::<Attempts>(&text).unwrap(), old);
    assert_eq!(omitted(&known, None, -DAY), NONE);
}
