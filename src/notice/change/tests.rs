use super::*;

fn start() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::days(20_000)
}

fn version(serial: &str, days: i64) -> Version {
    let validity = Validity {
        not_before: start(),
        not_after: start() + Duration::days(days),
    };
    Version {
        serial: serial.to_owned(),
        validity,
        renew_at: Some(start() + Duration::days(days) * 2 / 3),
        is_served: true,
    }
}

fn certificate(version: Option<Version>, failing: Option<&str>) -> Observed {
    let name = CertificateName::from_file_name("a.example").unwrap();
    let stored = version.iter().map(|it| (name.clone(), it.serial.clone()));
    let stored = Some(stored.collect());
    Observed {
        certificates: Some(vec![CertificateSeen {
            name,
            identifiers: vec!["a.example".to_owned()],
            version,
            missing: Vec::new(),
            is_settled: false,
            failing: failing.map(|error| Failing {
                error: error.to_owned(),
                next: Some(start() + Duration::days(61)),
                is_useless: error.contains("useless"),
                tell_at: start(),
            }),
        }]),
        stored,
        ..Observed::default()
    }
}

/// Looks at one state after the other; the events of each look.
fn events(states: &[(Observed, OffsetDateTime)]) -> Vec<Vec<&'static str>> {
    let mut told = Told {
        versions: Some(BTreeMap::new()),
        ..Told::default()
    };
    let mut all = Vec::new();
    for (seen, now) in states {
        let comparison = compare(Some(&told), seen, *now);
        told = comparison.told;
        // what is remembered is on disk between two looks
        let bytes = serde_json::to_vec(&told).unwrap();
        assert_eq!(serde_json::from_slice::<Told>(&bytes).unwrap(), told);
        let words = comparison.notices.iter();
        all.push(words.map(|notice| notice.event.word()).collect());
    }
    all
}

/// Between storing a certificate and serving it, another look may come.
#[test]
fn a_failure_stands_until_the_new_certificate_is_served() {
    let stored = |is_served| {
        let version = Version {
            is_served,
            ..version("1", 90)
        };
        let mut seen = certificate(Some(version), None);
        for certificate in seen.certificates.iter_mut().flatten() {
            certificate.is_settled = true;
        }
        seen
    };
    let states = [
        certificate(None, Some("reach it")),
        stored(false),
        stored(true),
        stored(true),
    ];
    let states = states.map(|seen| (seen, start()));
    let expected: &[&[&str]] = &[
        &["certificate_failing"],
        &[],
        &["certificate_recovered"],
        &[],
    ];
    assert_eq!(events(&states), expected);
}

#[test]
fn a_certificates_life_is_told_once_at_each_change() {
    let day = |days| start() + Duration::days(days);
    let states = [
        (certificate(None, None), day(0)),
        (certificate(None, Some("reach it")), day(0)),
        (certificate(None, Some("reach it")), day(0)),
        (certificate(Some(version("1", 90)), None), day(1)),
        (certificate(Some(version("1", 90)), None), day(2)),
        (certificate(Some(version("2", 90)), None), day(60)),
        (
            certificate(Some(version("2", 90)), Some("reach it")),
            day(61),
        ),
        // tried again by a person: for a moment there is no failure
        (certificate(Some(version("2", 90)), None), day(61)),
        (
            certificate(Some(version("2", 90)), Some("reach it")),
            day(62),
        ),
        (
            certificate(Some(version("2", 90)), Some("useless")),
            day(63),
        ),
        (
            certificate(Some(version("2", 90)), Some("reach it")),
            day(79),
        ),
        (
            certificate(Some(version("2", 90)), Some("reach it")),
            day(91),
        ),
        (certificate(Some(version("3", 190)), None), day(92)),
        (certificate(Some(version("3", 190)), None), day(93)),
    ];
    let expected: &[&[&str]] = &[
        &[],
        &["certificate_failing"],
        &[],
        &["certificate_recovered"],
        &[],
        &["certificate_renewed"],
        &["certificate_failing"],
        &[],
        &[],
        &["certificate_invalid"],
        &["certificate_expiring"],
        &["certificate_expired"],
        &["certificate_recovered"],
        &[],
    ];
    assert_eq!(events(&states), expected);
}

#[test]
fn a_first_certificate_is_obtained_and_one_that_does_not_serve_yet_is_no_news() {
    let mut unserved = version("1", 90);
    unserved.is_served = false;
    let states = [
        (certificate(Some(unserved), None), start()),
        (certificate(Some(version("1", 90)), None), start()),
    ];
    let expected: &[&[&str]] = &[&[], &["certificate_obtained"]];
    assert_eq!(events(&states), expected);
}

#[test]
fn soon_is_a_part_of_the_lifetime_and_after_every_renewal_that_a_ca_may_suggest() {
    use crate::certificate::renewal_info::Suggestion;
    use crate::certificate::schedule::renew_at;
    for (hours, left) in [(24 * 90, 270), (24 * 47, 141), (24 * 6, 24), (24, 4)] {
        let validity = Validity {
            not_before: start(),
            not_after: start() + Duration::hours(hours),
        };
        let soon = expires_soon_at(validity);
        assert_eq!(validity.not_after - soon, Duration::hours(left), "{hours}");
        let late = Suggestion {
            start: validity.not_after,
            end: validity.not_after,
            renew_at: validity.not_after,
            explanation_url: None,
        };
        assert!(renew_at(validity, Some(&late)) < soon, "{hours}");
    }
}

#[test]
fn the_next_look_is_when_time_alone_changes_something() {
    let seen = certificate(Some(version("1", 80)), None);
    let day = |days| start() + Duration::days(days);
    let next = |now| compare(Some(&Told::default()), &seen, now).next;
    assert_eq!(next(day(1)), Some(day(70)));
    assert_eq!(next(day(71)), Some(day(80) + Duration::SECOND));
    assert_eq!(next(day(81)), None);
}

#[test]
fn who_is_told_for_the_first_time_hears_what_is_wrong_and_not_what_is_well() {
    let seen = certificate(Some(version("1", 90)), None);
    assert!(compare(None, &seen, start()).notices.is_empty());
    // also where at the very first look nobody knew what is wanted, or what there is
    for stored in [seen.stored.clone(), None] {
        let unknown = Observed {
            certificates: None,
            stored,
            ..seen.clone()
        };
        let nothing = compare(None, &unknown, start()).told;
        assert!(compare(Some(&nothing), &seen, start()).notices.is_empty());
    }
    let seen = certificate(Some(version("1", 90)), Some("reach it"));
    let notices = compare(None, &seen, start()).notices;
    assert_eq!(notices[0].event, Event::CertificateFailing);
    assert_eq!(notices[0].weight, Weight::Warning);
    assert_eq!(notices[0].next_at, Some(start() + Duration::days(61)));
    assert!(notices[0].happened.contains("failed to reach it; the one"));
}

#[test]
fn what_is_wanted_again_was_not_obtained_anew() {
    let removed = Observed {
        certificates: Some(Vec::new()),
        ..certificate(Some(version("1", 90)), None)
    };
    let states = [
        (certificate(Some(version("1", 90)), None), start()),
        (removed, start()),
        (certificate(Some(version("1", 90)), None), start()),
    ];
    assert_eq!(events(&states)[2], Vec::<&str>::new());
}

#[test]
fn what_is_stored_before_it_is_known_to_be_wanted_is_obtained_all_the_same() {
    let unknown = Observed {
        certificates: Some(Vec::new()),
        ..certificate(Some(version("1", 90)), None)
    };
    let states = [
        (unknown.clone(), start()),
        (certificate(Some(version("1", 90)), None), start()),
    ];
    assert_eq!(events(&states)[1], ["certificate_obtained"]);
    // but not where it was there before anybody was told anything
    let told = compare(None, &unknown, start()).told;
    let wanted = certificate(Some(version("1", 90)), None);
    assert!(compare(Some(&told), &wanted, start()).notices.is_empty());
}

#[test]
fn the_trouble_of_what_nobody_wants_any_more_is_over() {
    let gone = Observed {
        certificates: Some(Vec::new()),
        ..Observed::default()
    };
    let states = [
        (certificate(None, Some("reach it")), start()),
        (gone.clone(), start()),
        (gone, start()),
    ];
    let expected: &[&[&str]] = &[&["certificate_failing"], &["certificate_recovered"], &[]];
    assert_eq!(events(&states), expected);
}

fn down(seconds: i64) -> (Observed, OffsetDateTime) {
    let seen = Observed {
        nginx_running: Some(false),
        patience: Duration::seconds(10),
        ..Observed::default()
    };
    (seen, start() + Duration::seconds(seconds))
}

fn up(seconds: i64) -> (Observed, OffsetDateTime) {
    let (seen, at) = down(seconds);
    let seen = Observed {
        nginx_running: Some(true),
        ..seen
    };
    (seen, at)
}

#[test]
fn nginx_that_is_down_for_a_moment_is_no_news() {
    let states = [
        down(0),
        up(1),
        down(2),
        down(11),
        down(12),
        down(20),
        up(30),
    ];
    let expected: &[&[&str]] = &[
        &[],
        &[],
        &[],
        &[],
        &["nginx_down"],
        &[],
        &["nginx_recovered"],
    ];
    assert_eq!(events(&states), expected);
    let next = compare(None, &down(0).0, start()).next;
    assert_eq!(next, Some(start() + Duration::seconds(10)));
}

#[test]
fn what_is_not_known_ends_nothing() {
    let rejected = crate::reconcile::report::Rejected {
        name: "shop".to_owned(),
        file: "/v/shop.yml".into(),
        line: Some(3),
        column: None,
        reason: "unknown key `x`".to_owned(),
        hint: None,
        nginx: None,
        stale: true,
        offset: None,
        length: None,
    };
    let difference = Difference {
        host: "a.example".to_owned(),
        addresses: vec!["127.0.0.1:443".to_owned()],
        found: "a certificate for b.example".to_owned(),
    };
    let wrong = Observed {
        rejected: Some(vec![rejected]),
        applied: Some(Err(Unapplied {
            error: "nginx keeps the old one".to_owned(),
            hint: None,
        })),
        served: Some(vec![difference]),
        ..Observed::default()
    };
    let well = Observed {
        rejected: Some(Vec::new()),
        applied: Some(Ok(())),
        served: Some(Vec::new()),
        ..Observed::default()
    };
    // a rollback serves another version than that of the file, which is as wrong as it was
    let held = Observed {
        rejected: Some(Vec::new()),
        held: ["shop".parse().unwrap()].into(),
        ..Observed::default()
    };
    let states = [
        (wrong.clone(), start()),
        (Observed::default(), start()),
        (held, start()),
        (wrong, start()),
        (well, start()),
    ];
    let expected: &[&[&str]] = &[
        &["reload_failed", "vhost_rejected", "served_differs"],
        &[],
        &[],
        &[],
        &["reload_recovered", "vhost_recovered", "served_recovered"],
    ];
    assert_eq!(events(&states), expected);
}

/// `certificate`, as one of which everything is there that is wanted.
fn settled(version: Version) -> Observed {
    let mut seen = certificate(Some(version), None);
    for certificate in seen.certificates.iter_mut().flatten() {
        certificate.is_settled = true;
    }
    seen
}

#[test]
fn a_failure_that_ended_without_another_certificate_does_not_hide_the_next_one() {
    let day = |days| start() + Duration::days(days);
    let good = || version("1", 90);
    let states = [
        (settled(good()), day(1)),
        // a name was added that nobody answers for
        (certificate(Some(good()), Some("reach it")), day(2)),
        // and taken out again
        (settled(good()), day(3)),
        (settled(good()), day(4)),
        (certificate(Some(good()), Some("reach it")), day(60)),
    ];
    let expected: &[&[&str]] = &[
        &["certificate_obtained"],
        &["certificate_failing"],
        &["certificate_recovered"],
        &[],
        &["certificate_failing"],
    ];
    assert_eq!(events(&states), expected);
}

#[test]
fn files_that_are_just_being_replaced_are_no_news() {
    let mut half = certificate(Some(version("1", 90)), Some("pair them"));
    for seen in half.certificates.iter_mut().flatten() {
        let failing = seen.failing.as_mut().unwrap();
        (failing.next, failing.tell_at) = (None, start() + Duration::seconds(30));
    }
    let at = |seconds| start() + Duration::seconds(seconds);
    let states = [
        (settled(version("1", 90)), at(0)),
        (half.clone(), at(1)),
        (settled(version("2", 90)), at(3)),
    ];
    let expected: &[&[&str]] = &[&["certificate_obtained"], &[], &["certificate_renewed"]];
    assert_eq!(events(&states), expected);
    // but what stays so is
    let first = compare(None, &half, at(1));
    assert_eq!((first.notices.len(), first.next), (0, Some(at(30))));
    let notices = compare(Some(&first.told), &half, at(30)).notices;
    assert_eq!(notices[0].event, Event::CertificateFailing);
}

#[test]
fn of_what_somebody_else_renews_no_renewal_is_promised() {
    let mut by_files = version("1", 80);
    by_files.renew_at = None;
    let told = Told {
        versions: Some(BTreeMap::new()),
        ..Told::default()
    };
    for (days, event) in [
        (1, Event::CertificateObtained),
        (75, Event::CertificateExpiring),
        (81, Event::CertificateExpired),
    ] {
        let seen = certificate(Some(by_files.clone()), None);
        let now = start() + Duration::days(days);
        let last = compare(Some(&told), &seen, now).notices.pop().unwrap();
        assert_eq!(last.event, event);
        let next = &last.next;
        assert!(
            next.starts_with("whoever writes its files renews it"),
            "{next}"
        );
    }
}

#[test]
fn a_name_that_was_left_out_is_told_once_however_often_the_others_are_renewed_until_it_is_back() {
    let day = |days| start() + Duration::days(days);
    let lacking = |serial: &str, days| {
        let mut seen = certificate(Some(version(serial, days)), Some("prove control of b"));
        let certificates = seen.certificates.as_mut().unwrap();
        certificates[0].missing = vec!["b".to_owned()];
        seen
    };
    let states = [
        (certificate(None, Some("prove control of b")), day(0)),
        (lacking("1", 90), day(0)),
        (lacking("1", 90), day(1)),
        (lacking("2", 150), day(60)),
        (lacking("2", 150), day(61)),
        (certificate(Some(version("3", 151)), None), day(62)),
        (certificate(Some(version("3", 151)), None), day(63)),
    ];
    let expected: &[&[&str]] = &[
        &["certificate_failing"],
        &["certificate_obtained"],
        &[],
        &["certificate_renewed"],
        &[],
        &["certificate_recovered"],
        &[],
    ];
    assert_eq!(events(&states), expected);
    let told = compare(None, &lacking("1", 90), day(0)).notices;
    let message = format!("{told:?}");
    assert!(
        message.contains("the one that is there lacks b"),
        "{message}"
    );
}
