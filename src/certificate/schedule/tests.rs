use std::path::PathBuf;

use super::*;
use crate::certificate::attempts::RetryAdvice;
use crate::certificate::renewal_info::{Reply, Window};
use crate::certificate::subset::IdentifierFailure;
use crate::certificate::{Identifier, Issuer, Origin};
use crate::settings::{AcmeSettings, KeyType};

fn start() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn day(days: i64) -> OffsetDateTime {
    start() + Duration::days(days)
}

pub(super) fn terms() -> Terms {
    Terms::from(&AcmeSettings::default())
}

pub(super) fn wanted(name: &str) -> WantedCertificate {
    WantedCertificate::new(vec![Identifier::Dns(name.into())], Issuer::Acme).unwrap()
}

fn stored(wanted: &WantedCertificate, from: OffsetDateTime, days: i64) -> StoredCertificate {
    StoredCertificate {
        uid: None,
        name: wanted.name.clone(),
        serial: format!("{:x}", from.unix_timestamp()),
        issuer: wanted.issuer,
        identifiers: wanted.identifiers.clone(),
        validity: Validity {
            not_before: from,
            not_after: from + Duration::days(days),
        },
        origin: Some(Origin {
            directory: terms().directory,
            profile: None,
        }),
        adopted: false,
        key_type: Some(KeyType::EcdsaP256),
        chain: PathBuf::from("/c"),
        key: PathBuf::from("/k"),
        leaf: signed_leaf(),
    }
}

/// Of a CA that can be asked about it.
pub(super) fn signed_leaf() -> Vec<u8> {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::default();
    parameters.use_authority_key_identifier_extension = true;
    parameters.self_signed(&key).unwrap().der().to_vec()
}

fn state_with(
    wanted: &WantedCertificate,
    stored: &StoredCertificate,
    terms: &Terms,
    now: OffsetDateTime,
) -> CertificateState {
    CertificateState::of(wanted, Some(stored), &Memory::default(), terms, now)
}

fn due_for(reason: DueReason) -> CertificateState {
    CertificateState::Due { reason }
}

fn decide(
    wanted: &WantedCertificate,
    stored: Option<&StoredCertificate>,
    memory: &Memory,
    now: OffsetDateTime,
) -> Schedule {
    let mut inventory = CertificateInventory::default();
    let stored = stored.map(|stored| (stored.name.clone(), stored.clone()));
    inventory.certificates.extend(stored);
    let memories = BTreeMap::from([(wanted.name.clone(), memory.clone())]);
    let wanted = std::slice::from_ref(wanted);
    due(wanted, &inventory, &memories, &terms(), now)
}

fn failed(retry: RetryAdvice, now: OffsetDateTime) -> Memory {
    let request = CertificateRequest::new(&wanted("a.example"), None, None);
    let (error, chance) = ("no route".into(), 0.0);
    let attempts = Attempts::after_failure(None, &request, error, retry, now, chance);
    Memory {
        attempts: Some(attempts),
        renewal_info: None,
        remarks: None,
    }
}

/// What is remembered when the CA was asked at `now`, and said from `start` to `end`.
fn told(
    stored: &StoredCertificate,
    [start, end]: [OffsetDateTime; 2],
    now: OffsetDateTime,
) -> Memory {
    let inquiry = Inquiry::about(stored, &terms().directory).unwrap();
    let reply = Reply {
        window: Ok(Window {
            start,
            end,
            explanation_url: None,
        }),
        retry_after: None,
    };
    Memory {
        attempts: None,
        renewal_info: Some(RenewalInfo::after(None, &inquiry, &reply, now, 0.5)),
        remarks: None,
    }
}

#[test]
fn a_long_certificate_is_renewed_after_two_thirds_and_a_short_one_after_half() {
    let after = |days: i64| {
        let certificate = stored(&wanted("a.example"), start(), days);
        renew_at(certificate.validity, None) - start()
    };
    assert_eq!(after(90), Duration::days(60));
    assert_eq!(after(45), Duration::days(30));
    assert_eq!(after(10), Duration::days(5));
    assert_eq!(after(6), Duration::days(3));
}

#[test]
fn a_missing_certificate_is_due() {
    let schedule = decide(&wanted("a.example"), None, &Memory::default(), start());
    assert_eq!(schedule.due.len(), 1);
    assert_eq!(schedule.due[0].replaces, None);
    assert_eq!((schedule.next, schedule.inquiries), (None, Vec::new()));
}

#[test]
fn a_certificate_is_due_for_each_reason_and_only_then() {
    let (wanted, terms) = (wanted("a.example"), terms());
    let good = stored(&wanted, start(), 90);
    let at = |days| state_with(&wanted, &good, &terms, day(days));
    let renew_at = day(60);
    assert_eq!(at(59), CertificateState::Valid { renew_at });
    assert_eq!(at(60), due_for(DueReason::Renewal));
    assert_eq!(at(91), due_for(DueReason::Expired));
    assert_eq!(at(-1), CertificateState::Valid { renew_at: day(0) });
    let internal = WantedCertificate {
        issuer: Issuer::Internal,
        ..wanted.clone()
    };
    let state = state_with(&internal, &good, &terms, day(1));
    assert_eq!(state, due_for(DueReason::OtherIssuer));
    let mut more = wanted.clone();
    more.identifiers.push(Identifier::Dns("b.example".into()));
    let state = state_with(&more, &good, &terms, day(1));
    assert_eq!(state, due_for(DueReason::Uncovered));
    let both = stored(&more, start(), 90);
    let state = state_with(&wanted, &both, &terms, day(1));
    assert_eq!(state, due_for(DueReason::Superfluous));
}

#[test]
fn a_changed_key_type_profile_or_ca_is_due_now_and_what_is_not_known_is_not() {
    let wanted = wanted("a.example");
    let good = stored(&wanted, start(), 90);
    let with = |asked: &Asked<'_>| state_with(asked.0, &good, asked.1, day(1));
    let (here, elsewhere) = (
        terms(),
        Terms {
            directory: "https://other.example/directory".into(),
            fallbacks: Vec::new(),
        },
    );
    let other_key = WantedCertificate {
        key_type: KeyType::EcdsaP384,
        ..wanted.clone()
    };
    let other_profile = WantedCertificate {
        profile: Some("tlsserver".into()),
        ..wanted.clone()
    };
    let all: [(Asked<'_>, DueReason); 3] = [
        ((&other_key, &here), DueReason::OtherKeyType),
        ((&other_profile, &here), DueReason::OtherProfile),
        ((&wanted, &elsewhere), DueReason::OtherDirectory),
    ];
    for (asked, reason) in &all {
        assert_eq!(with(asked), due_for(*reason));
    }
    let old = StoredCertificate {
        origin: None,
        key_type: None,
        ..good.clone()
    };
    for ((wanted, terms), reason) in all {
        let state = state_with(wanted, &old, terms, day(1));
        assert!(
            matches!(state, CertificateState::Valid { .. }),
            "{reason:?}"
        );
    }
}

type Asked<'a> = (&'a WantedCertificate, &'a Terms);

#[test]
fn what_was_adopted_waits_for_its_renewal_and_then_replaces_nobodys() {
    let wanted = wanted("a.example");
    let with_more = StoredCertificate {
        adopted: true,
        identifiers: [
            &wanted.identifiers[..],
            &[Identifier::Dns("b.example".into())],
        ]
        .concat(),
        origin: Some(Origin {
            directory: "https://other.example/directory".into(),
            profile: None,
        }),
        key_type: Some(KeyType::Rsa2048),
        ..stored(&wanted, start(), 90)
    };
    let decided = |day| decide(&wanted, Some(&with_more), &Memory::default(), day);
    let waiting = decided(day(59));
    assert_eq!((waiting.due, waiting.next), (Vec::new(), Some(day(60))));
    let due = decided(day(60)).due;
    // its order was another account's (RFC 9773 §5)
    assert_eq!((due.len(), due[0].renewal_id.as_ref()), (1, None));
    let mut more = wanted.clone();
    more.identifiers.push(Identifier::Dns("c.example".into()));
    let state = state_with(&more, &with_more, &terms(), day(1));
    assert_eq!(state, due_for(DueReason::Uncovered));
}

#[test]
fn the_cas_suggestion_comes_before_the_lifetime() {
    let wanted = wanted("a.example");
    let good = stored(&wanted, start(), 90);
    let early = told(&good, [day(30), day(40)], day(29));
    assert_eq!(decide(&wanted, Some(&good), &early, day(34)).due, []);
    let now = decide(&wanted, Some(&good), &early, day(35));
    assert!(now.due[0].by_age && now.due[0].renewal_id.is_some());
    let late = told(&good, [day(64), day(66)], day(59));
    let schedule = decide(&wanted, Some(&good), &late, day(59));
    assert_eq!(schedule.due, []);
    assert_eq!(decide(&wanted, Some(&good), &late, day(65)).due.len(), 1);
    // of a version that is not there any more it says nothing
    let other = stored(&wanted, day(1), 90);
    assert_eq!(decide(&wanted, Some(&other), &early, day(36)).due, []);
}

#[test]
fn near_its_end_a_certificate_is_renewed_whatever_the_ca_suggests() {
    let wanted = wanted("a.example");
    for (days, emergency) in [(90, 75), (45, 38), (6, 5)] {
        let good = stored(&wanted, start(), days);
        let never = told(&good, [day(1000), day(1001)], day(0));
        let state = |now| CertificateState::of(&wanted, Some(&good), &never, &terms(), now);
        assert_eq!(state(day(emergency)), due_for(DueReason::Renewal), "{days}");
        let before = day(emergency) - Duration::DAY;
        assert!(matches!(state(before), CertificateState::Valid { .. }));
    }
}

#[test]
fn a_window_in_the_past_is_now_but_not_one_certificate_after_the_other() {
    let wanted = wanted("a.example");
    let revoked = stored(&wanted, start(), 90);
    let now = told(&revoked, [day(-2), day(-1)], day(20));
    assert_eq!(decide(&wanted, Some(&revoked), &now, day(20)).due.len(), 1);
    let young = stored(&wanted, day(20), 90);
    let again = told(&young, [day(-2), day(-1)], day(20));
    let schedule = decide(&wanted, Some(&young), &again, day(20));
    assert_eq!(schedule.due, []);
    assert_eq!(decide(&wanted, Some(&young), &again, day(21)).due.len(), 1);
}

#[test]
fn the_ca_is_asked_about_what_is_good_when_it_wants_to_be_and_about_nothing_else() {
    let wanted = wanted("a.example");
    let good = stored(&wanted, start(), 90);
    let first = decide(&wanted, Some(&good), &Memory::default(), day(0));
    assert_eq!(first.inquiries.len(), 1);
    let memory = told(&good, [day(60), day(62)], day(0));
    let later = decide(&wanted, Some(&good), &memory, day(0));
    assert_eq!(later.inquiries, []);
    assert_eq!(later.next, Some(day(0) + Duration::hours(6)));
    let again = decide(&wanted, Some(&good), &memory, day(0) + Duration::hours(6));
    assert_eq!(again.inquiries, first.inquiries);
    // one that is due is asked about right before its order, one of another CA never
    let expired = decide(&wanted, Some(&good), &memory, day(91));
    assert_eq!(expired.inquiries, []);
    let internal = StoredCertificate {
        issuer: Issuer::Internal,
        ..good
    };
    assert_eq!(Inquiry::about(&internal, &terms().directory), None);
    let foreign = stored(&wanted, start(), 90);
    assert_eq!(Inquiry::about(&foreign, "https://other.example/"), None);
}

#[test]
fn a_failure_is_not_retried_before_its_time() {
    let memory = failed(RetryAdvice::Retry, start());
    let wanted = wanted("a.example");
    let at = |seconds| decide(&wanted, None, &memory, start() + Duration::seconds(seconds));
    assert_eq!(at(59).due, []);
    assert_eq!(at(59).next, Some(start() + Duration::MINUTE));
    assert_eq!(at(60).due[0].failures, 1);
}

#[test]
fn a_changed_wish_is_tried_at_once() {
    let memory = failed(RetryAdvice::Useless, start());
    let mut corrected = wanted("a.example");
    let more = Identifier::Dns("b.example".into());
    corrected.identifiers.push(more);
    assert_eq!(decide(&corrected, None, &memory, start()).due.len(), 1);
}

#[test]
fn a_failure_that_a_wrong_clock_put_in_the_future_blocks_nothing() {
    let memory = failed(RetryAdvice::Retry, day(1000));
    let schedule = decide(&wanted("a.example"), None, &memory, start());
    assert_eq!(schedule.due.len(), 1);
}

#[test]
fn what_a_fallback_has_issued_stays_until_its_age_and_that_ca_is_asked_about_it() {
    let wanted = WantedCertificate {
        profile: Some("tlsserver".into()),
        ..wanted("a.example")
    };
    let fallback = "https://fallback.example/directory";
    let origin = Origin {
        directory: fallback.into(),
        profile: None,
    };
    let good = StoredCertificate {
        origin: Some(origin),
        ..stored(&wanted, start(), 90)
    };
    let several = Terms {
        fallbacks: vec![fallback.into()],
        ..terms()
    };
    let name = || (wanted.name.clone(), good.clone());
    let inventory = CertificateInventory {
        certificates: BTreeMap::from([name()]),
        ..CertificateInventory::default()
    };
    let decide = |terms: &Terms, day: i64| {
        let now = start() + Duration::days(day);
        due(
            std::slice::from_ref(&wanted),
            &inventory,
            &BTreeMap::new(),
            terms,
            now,
        )
    };
    let young = decide(&several, 1);
    assert_eq!(young.due, []);
    // none where it does not say which key signed it
    let asked = young
        .inquiries
        .iter()
        .map(|inquiry| inquiry.directory.as_str());
    assert!(asked.eq(Inquiry::about(&good, fallback).iter().map(|_| fallback)));
    assert_eq!(decide(&several, 61).due.len(), 1);
    // once it is not configured any more, it is another CA's
    assert_eq!(decide(&terms(), 1).due.len(), 1);
}

/// `www.` of it has failed for a while, the last time at `now`.
fn failing_www(of: &WantedCertificate, now: OffsetDateTime) -> Memory {
    let request = CertificateRequest::new(of, None, None);
    let failures = [IdentifierFailure {
        identifier: of.identifiers[1].clone(),
        why: "got 404".into(),
        refused: false,
    }];
    let mut attempts = None;
    for minutes in [11, 10, 0] {
        let at = now - Duration::minutes(minutes);
        let (known, retry) = (attempts.as_ref(), RetryAdvice::Retry);
        let failed = Attempts::after_failure(known, &request, "no".into(), retry, at, 0.0);
        attempts = Some(failed.naming(&failures));
    }
    Memory {
        attempts,
        ..Memory::default()
    }
}

fn with_www() -> WantedCertificate {
    let mut wanted = wanted("a.example");
    let www = Identifier::Dns("www.a.example".into());
    wanted.identifiers.push(www);
    wanted
}

#[test]
fn without_what_keeps_failing_the_others_are_due_at_once() {
    let wanted = with_www();
    let memory = failing_www(&wanted, day(0));
    let due = decide(&wanted, None, &memory, day(0)).due;
    assert_eq!(due[0].identifiers, wanted.identifiers[..1]);
    assert_eq!(due[0].omitted(), wanted.identifiers[1..]);
    // what failed without it waits as ever
    let (known, retry) = (memory.attempts.as_ref(), RetryAdvice::Retry);
    let failed = Attempts::after_failure(
        known,
        &due[0],
        "no".into(),
        retry,
        day(0) + Duration::SECOND,
        0.0,
    );
    let memory = Memory {
        attempts: Some(failed),
        ..Memory::default()
    };
    let schedule = decide(&wanted, None, &memory, day(0) + Duration::minutes(1));
    assert_eq!(schedule.due, []);
}

#[test]
fn what_lacks_a_failing_name_is_renewed_by_its_age_and_asked_about_and_the_name_is_tried_again() {
    let wanted = with_www();
    let mut memory = failing_www(&wanted, day(0));
    let of_one = WantedCertificate {
        identifiers: wanted.identifiers[..1].to_vec(),
        ..wanted.clone()
    };
    let first = stored(&of_one, day(0), 90);
    let known = memory.attempts.take().unwrap();
    let left = Attempts::after_subset(&known, &wanted.identifiers[1..]);
    memory.attempts = Some(left);
    let retry_at = day(0) + Duration::minutes(100);
    let schedule = decide(&wanted, Some(&first), &memory, day(0));
    assert_eq!((schedule.due.len(), schedule.inquiries.len()), (0, 1));
    assert_eq!(schedule.next, Some(retry_at));
    // all names together, and nothing is gained while it fails
    let again = decide(&wanted, Some(&first), &memory, retry_at).due;
    assert_eq!(again[0].identifiers, wanted.identifiers);
    assert_eq!(again[0].retried, wanted.identifiers[1..]);
    assert!(!again[0].by_age);
    // a failed retry does not delay the renewal
    let memory = failing_www(&wanted, day(61));
    let renewal = decide(&wanted, Some(&first), &memory, day(61)).due;
    assert_eq!(renewal[0].identifiers, wanted.identifiers[..1]);
    assert!(renewal[0].by_age && renewal[0].renewal_id.is_some());
    assert_eq!(renewal[0].retried, []);
}

#[test]
fn a_certificate_that_has_the_failing_name_is_not_replaced_before_it_is_due() {
    let wanted = with_www();
    let whole = stored(&wanted, day(0), 90);
    let memory = failing_www(&wanted, day(59));
    let state = CertificateState::of(&wanted, Some(&whole), &memory, &terms(), day(59));
    assert!(matches!(state, CertificateState::Valid { .. }), "{state:?}");
    // once it is due it is given three days
    let mut memory = failing_www(&wanted, day(63));
    let due = decide(&wanted, Some(&whole), &memory, day(63)).due;
    assert_eq!(due, []);
    let failing = &mut memory.attempts.as_mut().unwrap().failing[0];
    failing.since = day(60);
    let due = decide(&wanted, Some(&whole), &memory, day(63)).due;
    assert_eq!(due[0].identifiers, wanted.identifiers[..1]);
    assert!(due[0].by_age);
}
