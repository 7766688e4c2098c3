use super::*;

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn names(names: &[&str]) -> Vec<Identifier> {
    let names = names.iter();
    names.map(|name| Identifier::Dns((*name).into())).collect()
}

fn new(identifiers: &[Identifier]) -> Planned<'_> {
    Planned {
        identifiers,
        renewing: Renewing::Nothing,
    }
}

fn admit(budget: &mut Budget, planned: &Planned<'_>, now: OffsetDateTime) -> Result<(), Wait> {
    budget.admit(planned, Some(&LETS_ENCRYPT), now)
}

#[test]
fn five_certificates_a_week_have_the_same_names_and_the_sixth_is_possible_34_hours_later() {
    let (mut budget, set) = (
        Budget::default(),
        names(&["b.example.com", "a.example.com"]),
    );
    for _ in 0..5 {
        admit(&mut budget, &new(&set), now()).unwrap();
    }
    // in whatever order they are written
    let set = names(&["a.example.com", "b.example.com"]);
    let wait = admit(&mut budget, &new(&set), now()).unwrap_err();
    assert_eq!(wait.until, now() + Duration::hours(34));
    assert!(
        wait.why
            .contains("5 certificates a week for exactly the same names"),
        "{}",
        wait.why
    );
    // other names are not concerned, and neither is who waited
    admit(&mut budget, &new(&names(&["a.example.com"])), now()).unwrap();
    admit(&mut budget, &new(&set), wait.until).unwrap();
    admit(&mut budget, &new(&set), wait.until).unwrap_err();
}

#[test]
fn fifty_certificates_a_week_are_below_one_registered_domain() {
    let mut budget = Budget::default();
    for n in 0..50 {
        let name = format!("n{n}.example.co.uk");
        admit(&mut budget, &new(&names(&[&name])), now()).unwrap();
    }
    let wait = admit(&mut budget, &new(&names(&["more.example.co.uk"])), now()).unwrap_err();
    assert_eq!(wait.until, now() + Duration::minutes(202));
    assert!(wait.why.ends_with("for example.co.uk"), "{}", wait.why);
    admit(&mut budget, &new(&names(&["n.other.co.uk"])), now()).unwrap();
    let address = [Identifier::Ip("192.0.2.1".parse().unwrap())];
    admit(&mut budget, &new(&address), now()).unwrap();
}

#[test]
fn three_hundred_orders_are_made_in_three_hours() {
    let mut budget = Budget::default();
    for n in 0..300 {
        let name = format!("n.example{n}.com");
        admit(&mut budget, &new(&names(&[&name])), now()).unwrap();
    }
    let wait = admit(&mut budget, &new(&names(&["more.example"])), now()).unwrap_err();
    assert_eq!(wait.until, now() + Duration::seconds(36));
}

#[test]
fn after_five_failures_an_hour_a_name_waits_and_no_other() {
    let mut budget = Budget::default();
    for _ in 0..5 {
        budget.failed("a.example.com", Some(&LETS_ENCRYPT), now());
    }
    let set = names(&["a.example.com", "b.example.com"]);
    let wait = admit(&mut budget, &new(&set), now()).unwrap_err();
    assert_eq!(wait.until, now() + Duration::minutes(12));
    assert!(wait.of_failures, "no reason to ask another CA");
    admit(&mut budget, &new(&names(&["b.example.com"])), now()).unwrap();
}

#[test]
fn a_renewal_counts_less_and_one_that_the_ca_wants_not_at_all() {
    let (mut budget, set) = (Budget::default(), names(&["a.example.com"]));
    for n in 0..50 {
        let name = format!("n{n}.example.com");
        admit(&mut budget, &new(&names(&[&name])), now()).unwrap();
    }
    let planned = |renewing| Planned {
        identifiers: &set,
        renewing,
    };
    for _ in 0..5 {
        admit(&mut budget, &planned(Renewing::SameNames), now()).unwrap();
    }
    admit(&mut budget, &planned(Renewing::SameNames), now()).unwrap_err();
    for _ in 0..50 {
        admit(&mut budget, &planned(Renewing::Suggested), now()).unwrap();
    }
}

#[test]
fn who_insists_is_told_before_what_is_not_allowed_and_what_is_the_last() {
    let (mut budget, set) = (Budget::default(), names(&["a.example.com"]));
    let planned = Planned {
        identifiers: &set,
        renewing: Renewing::SameNames,
    };
    let risk = |budget: &Budget| budget.risk(&planned, Some(&LETS_ENCRYPT), now());
    for _ in 0..4 {
        assert_eq!(risk(&budget), None);
        admit(&mut budget, &planned, now()).unwrap();
    }
    let last = risk(&budget).unwrap();
    assert!(
        last.starts_with("the last order for it until ") && last.contains(": the CA allows 5 "),
        "{last}"
    );
    admit(&mut budget, &planned, now()).unwrap();
    let beyond = risk(&budget).unwrap();
    let told = "ordered although the CA is known not to allow it before ";
    assert!(beyond.starts_with(told), "{beyond}");
    // of another CA only what it said is known
    assert_eq!(budget.risk(&planned, None, now()), None);
}

#[test]
fn what_came_to_nothing_is_no_certificate_but_an_order() {
    let (mut budget, set) = (Budget::default(), names(&["a.example.com"]));
    for _ in 0..300 {
        admit(&mut budget, &new(&set), now()).unwrap();
        budget.returned(&new(&set), Some(&LETS_ENCRYPT), true);
    }
    let wait = admit(&mut budget, &new(&set), now()).unwrap_err();
    assert!(wait.why.contains("300 orders"), "{}", wait.why);
}

#[test]
fn what_the_ca_never_heard_of_costs_nothing() {
    let (mut budget, set) = (Budget::default(), names(&["a.example.com"]));
    for _ in 0..1000 {
        admit(&mut budget, &new(&set), now()).unwrap();
        budget.returned(&new(&set), Some(&LETS_ENCRYPT), false);
    }
}

#[test]
fn a_refusal_holds_for_what_it_is_about_until_it_is_over_or_the_ca_admits_an_order() {
    let refusal = |subject| Refusal {
        subject,
        until: now() + Duration::HOUR,
        why: "order now: no".into(),
        for_a_person: false,
    };
    let (a, b) = (names(&["a.example.com"]), names(&["b.example.com"]));
    let other = names(&["x.example.org"]);
    // no limits are known of this CA
    let waits = |budget: &Budget, set: &[Identifier]| budget.wait(&new(set), None, now()).is_some();
    for (subject, expected) in [
        (None, [true, false, false]),
        (
            Some(Subject::Domain("example.com".into())),
            [true, true, false],
        ),
        (
            Some(Subject::Identifier("b.example.com".into())),
            [false, true, false],
        ),
        (Some(Subject::Account), [true, true, true]),
    ] {
        let mut budget = Budget::default();
        budget.refused(&refusal(subject), &new(&a));
        assert_eq!([&a, &b, &other].map(|set| waits(&budget, set)), expected);
        let later = now() + Duration::HOUR;
        assert_eq!(budget.wait(&new(&a), None, later), None);
        budget.forgive(&new(&a));
        budget.forgive(&new(&b));
        assert_eq!(budget, Budget::default());
    }
}

#[test]
fn what_was_written_under_a_wrong_clock_blocks_nobody_for_years() {
    let (mut budget, set) = (Budget::default(), names(&["a.example.com"]));
    let wrong = now() + Duration::days(365);
    for _ in 0..5 {
        admit(&mut budget, &new(&set), wrong).unwrap();
    }
    let wait = budget.wait(&new(&set), Some(&LETS_ENCRYPT), now()).unwrap();
    assert_eq!(wait.until, now() + Duration::hours(34));
    let refusal = Refusal {
        subject: None,
        until: wrong,
        why: String::new(),
        for_a_person: false,
    };
    let mut budget = Budget::default();
    budget.refused(&refusal, &new(&set));
    assert_eq!(budget.wait(&new(&set), None, now()), None);
}

#[test]
fn it_is_written_and_read_back_and_what_is_over_is_forgotten() {
    let (mut budget, set) = (Budget::default(), names(&["a.example.com"]));
    admit(&mut budget, &new(&set), now()).unwrap();
    let written = serde_json::to_string(&budget).unwrap();
    assert_eq!(serde_json::from_str::<Budget>(&written).unwrap(), budget);
    let later = now() + Duration::days(8);
    admit(&mut budget, &new(&names(&["b.example.org"])), later).unwrap();
    assert_eq!(budget.used.len(), 3);
}

#[test]
fn only_lets_encrypts_limits_are_known() {
    let production = "https://acme-v02.api.letsencrypt.org/directory";
    assert_eq!(Limits::of(production), Some(LETS_ENCRYPT));
    let staging = "https://acme-staging-v02.api.letsencrypt.org/directory";
    assert_eq!(Limits::of(staging), None);
    assert_eq!(Limits::of("https://127.0.0.1:14000/dir"), None);
}
