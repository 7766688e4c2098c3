mod many;
mod oracle;

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::desired::{DefaultServerOf, Entrance};
use crate::vhost::TlsMode;

fn app(name: &str, names: &[&str]) -> App {
    let file = format!("/etc/vhostd/vhosts.d/{name}.yml");
    let list: String = names.iter().map(|name| format!("- \"{name}\"\n")).collect();
    let text = format!("tls: internal\nroot: /srv/x\nserver_name:\n{list}");
    let roots = [PathBuf::from("/srv")];
    let name = name.parse().unwrap();
    crate::vhost::parse::parse(
        &name,
        Path::new(&file),
        &text,
        &roots,
        &TlsMode::Auto.into(),
    )
    .unwrap()
}

/// `age`: the larger, the older.
fn candidate(name: &str, names: &[&str], age: u64) -> Candidate {
    Candidate {
        app: app(name, names),
        modified: OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age),
        fallback: None,
    }
}

fn with_fallback(mut candidate: Candidate, names: &[&str]) -> Candidate {
    candidate.fallback = Some(app(candidate.app.name.as_str(), names));
    candidate
}

/// One socket for each kind of address.
fn with_entrances(owners: Owners) -> Given {
    let entrance = |socket: &str| Entrance {
        socket: socket.parse().unwrap(),
        default_server: DefaultServerOf::Us,
    };
    Given {
        owners,
        entrances: Some(Entrances {
            ours: ["0.0.0.0:443", "[::]:443"].map(entrance).into(),
            taken: Vec::new(),
            tls: TlsMode::Internal.into(),
            kept: Vec::new(),
        }),
        ..Given::default()
    }
}

#[test]
fn of_two_certificates_for_the_addresses_of_a_socket_the_owners_or_the_older_files_is_served() {
    let old = candidate("old", &["192.0.2.7", "a.example"], 2);
    let new = candidate("new", &["192.0.2.8"], 1);
    let six = candidate("six", &["2001:db8::7"], 0);
    let accepted = |owners: Owners| {
        let result = accepted_given(
            &[old.clone(), new.clone(), six.clone()],
            &with_entrances(owners),
        );
        let names = result.apps.iter().map(|app| app.name.to_string());
        (names.collect::<Vec<_>>(), result.rejections)
    };
    let (apps, rejections) = accepted(Owners::default());
    assert_eq!(apps, ["old", "six"]);
    assert_eq!(
        rejections[0].diagnostics[0].reason,
        "clients of `192.0.2.8` name no host, and can only get the certificate of `192.0.2.7` \
         (/etc/vhostd/vhosts.d/old.yml:4)"
    );
    let (apps, rejections) = accepted(owners(&[("new", &["192.0.2.8"])]));
    assert_eq!(apps, ["new", "six"]);
    assert_eq!(rejections.len(), 1);
}

#[test]
fn an_address_whose_certificate_nobody_would_get_is_not_even_its_owners() {
    let mut given = with_entrances(owners(&[("old", &["192.0.2.7"])]));
    let by_hand = DefaultServerOf::HandWritten("/etc/nginx/x:3".into());
    if let Some(entrances) = &mut given.entrances {
        entrances.ours[0].default_server = by_hand;
    }
    let old = with_fallback(candidate("old", &["192.0.2.7"], 2), &["192.0.2.7"]);
    let result = accepted_given(&[old, candidate("six", &["2001:db8::7"], 0)], &given);
    let names: Vec<_> = result.apps.iter().map(|app| app.name.as_str()).collect();
    assert_eq!(names, ["six"]);
    assert!(!result.rejections[0].stale);
    assert_eq!(
        result
            .owners
            .owner(&"192.0.2.7".parse().unwrap())
            .unwrap()
            .as_str(),
        "old"
    );
}

fn owners(apps: &[(&str, &[&str])]) -> Owners {
    let apps: Vec<App> = apps.iter().map(|(name, names)| app(name, names)).collect();
    Owners::of(&apps)
}

fn permutations(items: &[Candidate]) -> Vec<Vec<Candidate>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    (0..items.len())
        .flat_map(|first| {
            let mut rest = items.to_vec();
            let chosen = rest.remove(first);
            permutations(&rest).into_iter().map(move |mut tail| {
                tail.insert(0, chosen.clone());
                tail
            })
        })
        .collect()
}

/// Accepts in every order, checks that they agree and that nothing accepted conflicts.
fn accepted(candidates: &[Candidate], owners: &Owners) -> Accepted {
    let by_hand = |name: &str| (name.parse().unwrap(), "/etc/nginx/x:3".into());
    let given = Given {
        owners: owners.clone(),
        hand_written: ["byhand.example", "*.wild.example"].map(by_hand).into(),
        ..Given::default()
    };
    accepted_given(candidates, &given)
}

fn accepted_given(candidates: &[Candidate], given: &Given) -> Accepted {
    let mut results = permutations(candidates)
        .into_iter()
        .map(|order| accept(order, given));
    let first = results.next().unwrap();
    for other in results {
        assert_eq!(first, other);
    }
    let mut seen = BTreeMap::new();
    for app in &first.apps {
        for name in names(app) {
            assert_eq!(seen.insert(name.value.clone(), app.name.clone()), None);
        }
    }
    for (name, app) in &seen {
        assert_eq!(first.owners.owner(name), Some(app));
    }
    // beyond that, only what rejected apps had before
    for (name, app) in first.owners.iter().filter(|it| !seen.contains_key(it.0)) {
        assert_eq!(given.owners.owner(name), Some(app));
        assert!(first.apps.iter().all(|accepted| accepted.name != *app));
    }
    assert!(
        first
            .rejections
            .iter()
            .all(|rejection| !rejection.diagnostics.is_empty())
    );
    first
}

fn served(accepted: &Accepted) -> Vec<(String, Vec<&str>)> {
    let served = |app: &App| app.vhosts[0].server_names.len();
    assert!(accepted.apps.iter().all(|app| served(app) > 0));
    accepted
        .apps
        .iter()
        .map(|app| {
            (
                app.name.to_string(),
                names(app).map(|name| name.value.as_str()).collect(),
            )
        })
        .collect()
}

fn rejected(accepted: &Accepted) -> Vec<(&str, bool)> {
    let rejections = accepted.rejections.iter();
    rejections.map(|it| (it.app.as_str(), it.stale)).collect()
}

#[test]
fn apps_without_common_names_are_all_accepted_and_own_their_names() {
    let result = accepted(
        &[
            candidate("b", &["b.example"], 1),
            candidate("a", &["a.example", "www.a.example"], 2),
        ],
        &Owners::default(),
    );
    assert!(result.rejections.is_empty());
    assert_eq!(result.apps[0].name.as_str(), "a");
    let owner = result.owners.owner(&"www.a.example".parse().unwrap());
    assert_eq!(owner.unwrap().as_str(), "a");
}

#[test]
fn the_first_owner_keeps_a_name_whatever_the_age_and_the_name_of_the_files() {
    let result = accepted(
        &[
            candidate("a", &["x.example"], 100),
            candidate("z", &["x.example"], 1),
        ],
        &owners(&[("z", &["x.example"])]),
    );
    assert_eq!(served(&result), [("z".to_owned(), vec!["x.example"])]);
    assert_eq!(
        result.rejections[0].diagnostics[0].to_string(),
        "/etc/vhostd/vhosts.d/a.yml:4:3: `x.example` already belongs to z (/etc/vhostd/vhosts.d/z.yml:4)"
    );
}

#[test]
fn among_new_claimants_the_older_file_wins_then_the_file_name() {
    let result = accepted(
        &[
            candidate("a", &["x.example"], 1),
            candidate("b", &["x.example"], 2),
        ],
        &Owners::default(),
    );
    assert_eq!(rejected(&result), [("a", false)]);
    let result = accepted(
        &[
            candidate("b", &["x.example"], 1),
            candidate("a", &["x.example"], 1),
        ],
        &Owners::default(),
    );
    assert_eq!(rejected(&result), [("b", false)]);
}

#[test]
fn a_name_that_its_owner_gave_up_is_free() {
    let result = accepted(
        &[
            candidate("a", &["a.example"], 9),
            candidate("b", &["b.example", "x.example"], 1),
        ],
        &owners(&[("a", &["a.example", "x.example"]), ("gone", &["b.example"])]),
    );
    assert!(result.rejections.is_empty());
    assert_eq!(
        result
            .owners
            .owner(&"x.example".parse().unwrap())
            .unwrap()
            .as_str(),
        "b"
    );
}

#[test]
fn a_rejected_app_keeps_its_last_good_version_serving() {
    let newest = candidate("b", &["b.example", "x.example"], 1);
    let result = accepted(
        &[
            candidate("a", &["x.example"], 2),
            with_fallback(newest, &["b.example"]),
        ],
        &owners(&[("a", &["x.example"]), ("b", &["b.example"])]),
    );
    assert_eq!(rejected(&result), [("b", true)]);
    assert_eq!(served(&result)[1], ("b".to_owned(), vec!["b.example"]));
}

#[test]
fn a_name_that_an_owners_last_good_version_still_serves_is_not_free() {
    // a's newest gives x up but fails for another reason: it falls back to x
    let a = with_fallback(candidate("a", &["taken.example"], 1), &["x.example"]);
    let result = accepted(
        &[
            a,
            candidate("b", &["x.example"], 5),
            candidate("c", &["taken.example"], 9),
        ],
        &owners(&[("a", &["x.example"]), ("c", &["taken.example"])]),
    );
    assert_eq!(rejected(&result), [("a", true), ("b", false)]);
}

#[test]
fn an_app_whose_winner_lost_elsewhere_is_accepted_after_all() {
    // a loses x to the older b, and b loses y to its owner c
    let result = accepted(
        &[
            candidate("a", &["x.example"], 1),
            candidate("b", &["x.example", "y.example"], 5),
            candidate("c", &["y.example"], 2),
        ],
        &owners(&[("c", &["y.example"])]),
    );
    assert_eq!(rejected(&result), [("b", false)]);
}

#[test]
fn two_apps_that_swap_their_names_in_one_go_are_both_accepted() {
    let a = with_fallback(candidate("a", &["y.example"], 1), &["x.example"]);
    let b = with_fallback(candidate("b", &["x.example"], 2), &["y.example"]);
    let before = owners(&[("a", &["x.example"]), ("b", &["y.example"])]);
    assert!(accepted(&[a, b], &before).rejections.is_empty());
}

#[test]
fn a_host_under_another_apps_wildcard_is_a_conflict_in_both_directions() {
    for (wildcard_age, loser) in [(2, "b"), (0, "a")] {
        let result = accepted(
            &[
                candidate("a", &["*.example.org"], wildcard_age),
                candidate("b", &["deep.a.example.org"], 1),
            ],
            &Owners::default(),
        );
        assert_eq!(rejected(&result), [(loser, false)]);
        assert!(!result.rejections[0].diagnostics.is_empty());
    }
    let result = accepted(
        &[
            candidate("a", &["*.example.org"], 2),
            candidate("b", &["*.b.example.org"], 1),
        ],
        &Owners::default(),
    );
    assert_eq!(
        result.rejections[0].diagnostics[0].reason,
        "`*.b.example.org` is under `*.example.org`, which belongs to a (/etc/vhostd/vhosts.d/a.yml:4)"
    );
}

#[test]
fn an_app_may_have_a_host_under_its_own_wildcard_and_the_zone_is_free() {
    let result = accepted(
        &[
            candidate("a", &["*.example.org", "www.example.org"], 2),
            candidate("b", &["example.org"], 1),
        ],
        &Owners::default(),
    );
    assert!(result.rejections.is_empty());
}

#[test]
fn a_name_of_a_hand_written_site_is_refused_with_its_place() {
    let newest = candidate("a", &["a.example", "byhand.example"], 1);
    let result = accepted(
        &[with_fallback(newest.clone(), &["a.example"])],
        &Owners::default(),
    );
    assert_eq!(rejected(&result), [("a", true)]);
    let diagnostic = &result.rejections[0].diagnostics[0];
    assert_eq!(diagnostic.at.unwrap().line, 5);
    assert_eq!(
        diagnostic.reason,
        "`byhand.example` is already served by /etc/nginx/x:3"
    );
    // where the last good version has it too, nothing of the app serves
    let result = accepted(
        &[with_fallback(newest, &["byhand.example"])],
        &Owners::default(),
    );
    assert_eq!(rejected(&result), [("a", false)]);
}

#[test]
fn an_app_keeps_its_names_when_a_hand_written_site_gets_one_of_them_and_a_warning_says_so() {
    let asks = [candidate("a", &["a.example", "byhand.example"], 1)];
    let before = owners(&[("a", &["a.example", "byhand.example"])]);
    let result = accepted(&asks, &before);
    assert!(result.rejections.is_empty());
    assert_eq!(result.owners, before);
    let shared: Vec<String> = result.shared.iter().map(ToString::to_string).collect();
    assert_eq!(
        shared,
        [
            "/etc/vhostd/vhosts.d/a.yml:5:3: `byhand.example` is also written by hand, \
          at /etc/nginx/x:3: take it out of one of the two files"
        ]
    );
    // nobody else gets it
    let other = [candidate("b", &["byhand.example"], 9)];
    let result = accepted(&other, &before);
    assert_eq!(rejected(&result), [("b", false)]);
    assert!(result.shared.is_empty());
}

#[test]
fn a_new_name_under_a_hand_written_wildcard_is_refused_and_an_older_one_stays() {
    let asks = [candidate("a", &["new.wild.example"], 1)];
    let result = accepted(&asks, &Owners::default());
    let diagnostic = &result.rejections[0].diagnostics[0];
    assert_eq!(
        diagnostic.reason,
        "`new.wild.example` is under `*.wild.example`, which /etc/nginx/x:3 serves"
    );
    let result = accepted(&asks, &owners(&[("a", &["new.wild.example"])]));
    assert!(result.rejections.is_empty());
}

#[test]
fn a_public_suffix_is_nobodys_and_who_has_a_name_that_becomes_one_keeps_it() {
    for name in ["*.co.uk", "co.uk", "*.github.io"] {
        let asks = [candidate("a", &["a.example", name], 1)];
        let result = accepted(&asks, &Owners::default());
        let diagnostic = &result.rejections[0].diagnostics[0];
        assert!(diagnostic.reason.contains("public suffix"), "{diagnostic}");
        assert_eq!(diagnostic.at.unwrap().line, 5);
        let result = accepted(&asks, &owners(&[("a", &["a.example", name])]));
        assert!(result.rejections.is_empty());
    }
}

#[test]
fn an_owner_that_is_rejected_without_a_last_good_version_keeps_its_names() {
    let result = accepted(
        &[
            candidate("a", &["x.z.example", "byhand.example"], 1),
            candidate("b", &["x.z.example"], 9),
            candidate("c", &["*.z.example"], 9),
        ],
        &owners(&[("a", &["x.z.example"])]),
    );
    let expected = [("a", false), ("b", false), ("c", false)];
    assert_eq!(rejected(&result), expected);
    assert_eq!(
        result.rejections[1].diagnostics[0].reason,
        "`x.z.example` already belongs to a (/etc/vhostd/vhosts.d/a.yml, which is rejected now)"
    );
    let owner = result.owners.owner(&"x.z.example".parse().unwrap());
    assert_eq!(owner.unwrap().as_str(), "a");
}

#[test]
fn an_owner_whose_file_cannot_be_read_keeps_its_names_until_the_file_goes() {
    let mut given = Given {
        owners: owners(&[("a", &["x.example", "*.z.example"])]),
        silent: BTreeMap::from([("a".parse().unwrap(), "/etc/vhostd/vhosts.d/a.yml".into())]),
        ..Given::default()
    };
    let asks = [
        candidate("b", &["x.example"], 9),
        candidate("c", &["deep.z.example"], 9),
    ];
    let result = accepted_given(&asks, &given);
    assert_eq!(rejected(&result), [("b", false), ("c", false)]);
    assert_eq!(result.owners, given.owners);
    given.silent.clear();
    assert!(accepted_given(&asks, &given).rejections.is_empty());
}

#[test]
fn a_reserved_name_is_given_to_files_of_its_former_owner_alone() {
    let owned = owners(&[("a", &["x.example"])]);
    let text = serde_json::to_value(&owned).unwrap();
    assert_eq!(text["x.example"], "a");
    let reserved: Owners = serde_json::from_value(serde_json::json!({
        "reserved": {"x.example": {"uid": 34, "until": "2030-01-01T00:00:00Z"}}
    }))
    .unwrap();
    let of = |uid| {
        let mut candidate = candidate("b", &["x.example"], 1);
        candidate.app.uid = uid;
        candidate
    };
    assert!(accepted(&[of(34)], &reserved).rejections.is_empty());
    let result = accepted(&[of(5)], &reserved);
    assert_eq!(
        result.rejections[0].diagnostics[0].reason,
        "`x.example` is reserved for user 34's vhost files until 2030-01-01"
    );
}

#[test]
fn every_order_of_a_knot_of_conflicts_has_the_same_result() {
    let knot = [
        candidate("a", &["x.example", "y.example"], 3),
        with_fallback(
            candidate("b", &["y.example", "z.example"], 3),
            &["b.example"],
        ),
        candidate("c", &["z.example", "x.example"], 4),
        with_fallback(
            candidate("d", &["*.z.example", "b.example"], 9),
            &["d.example"],
        ),
        candidate("e", &["a.z.example"], 1),
    ];
    // a keeps y, so b falls back; c loses x to a; d loses b.example to b's last good version
    let result = accepted(
        &knot,
        &owners(&[("a", &["x.example", "y.example"]), ("b", &["b.example"])]),
    );
    assert_eq!(rejected(&result), [("b", true), ("c", false), ("d", true)]);
}

#[test]
fn owners_are_stored_as_a_map_of_names() {
    let json = serde_json::to_string(&owners(&[("a", &["*.a.example"])])).unwrap();
    assert_eq!(json, "{\"*.a.example\":\"a\"}");
    let read: Owners = serde_json::from_str(&json).unwrap();
    assert_eq!(read, owners(&[("a", &["*.a.example"])]));
    assert!(serde_json::from_str::<Owners>("{\"$host\":\"a\"}").is_err());
}
