use std::fs;

use super::*;

const ALICE: u32 = 34;
const BOB: u32 = 5;

fn day(day: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::days(day)
}

fn app(name: &str) -> AppName {
    name.parse().unwrap()
}

fn name(name: &str) -> ServerName {
    name.parse().unwrap()
}

/// Files of a directory, as they are found there.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A new file of `uid`, in the place of the one that has its name.
    fn write(&self, name: &str) {
        let path = |name: &str| self.0.path().join(name);
        fs::write(path(".new"), "").unwrap();
        fs::rename(path(".new"), path(name)).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.0.path().join(from), self.0.path().join(to)).unwrap();
    }

    fn of(&self, owners: &[(&str, u32)]) -> BTreeMap<AppName, FileIdentity> {
        let found = owners.iter().map(|(name, uid)| {
            let metadata = fs::metadata(self.0.path().join(name)).unwrap();
            let mut identity = FileIdentity::of(&metadata);
            identity.uid = *uid;
            (app(name), identity)
        });
        found.collect()
    }
}

/// What `apps` have after they were accepted with these names.
fn owners(names: &[(&str, &str)], files: &BTreeMap<AppName, FileIdentity>) -> Owners {
    let accepted: BTreeMap<_, _> = names.iter().map(|(n, a)| (name(n), app(a))).collect();
    Owners::default().succeeded_by(accepted.into(), files, day(0))
}

fn of(owners: &Owners, of: &str) -> Option<String> {
    owners.owner(&name(of)).map(ToString::to_string)
}

#[test]
fn names_go_with_the_file_and_not_with_a_copy_of_it() {
    let files = Files::new();
    files.write("hello");
    let before = owners(&[("a.example", "hello")], &files.of(&[("hello", ALICE)]));
    // a copy that was there before, by the same user or another
    files.write("copy");
    let both = files.of(&[("hello", ALICE), ("copy", BOB)]);
    assert_eq!(before.clone().follow(&both, day(0)).0.names, before.names);
    files.rename("hello", "shop");
    let now = files.of(&[("shop", ALICE), ("copy", BOB)]);
    let (after, moves) = before.follow(&now, day(0));
    assert_eq!(of(&after, "a.example").as_deref(), Some("shop"));
    assert_eq!(moves.renamed, BTreeMap::from([(app("hello"), app("shop"))]));
    assert!(moves.chowned.is_empty());
}

#[test]
fn two_files_that_change_places_keep_their_names() {
    let files = Files::new();
    files.write("a");
    files.write("b");
    let owned = [("a.example", "a"), ("b.example", "b")];
    let before = owners(&owned, &files.of(&[("a", ALICE), ("b", ALICE)]));
    files.rename("a", "c");
    files.rename("b", "a");
    files.rename("c", "b");
    let (after, _) = before.follow(&files.of(&[("a", ALICE), ("b", ALICE)]), day(0));
    assert_eq!(of(&after, "a.example").as_deref(), Some("b"));
    assert_eq!(of(&after, "b.example").as_deref(), Some("a"));
}

#[test]
fn a_chown_takes_the_names_along_and_another_users_new_file_does_not() {
    let files = Files::new();
    files.write("hello");
    let before = owners(&[("a.example", "hello")], &files.of(&[("hello", ALICE)]));
    let (after, moves) = before.clone().follow(&files.of(&[("hello", BOB)]), day(0));
    assert_eq!(of(&after, "a.example").as_deref(), Some("hello"));
    assert_eq!(moves.chowned, BTreeMap::from([(app("hello"), ALICE)]));
    assert_eq!(after.apps[&app("hello")].uid, BOB);
    files.write("hello");
    // an editor of the same user writes a new file, too
    let (own, moves) = before
        .clone()
        .follow(&files.of(&[("hello", ALICE)]), day(0));
    assert_eq!(of(&own, "a.example").as_deref(), Some("hello"));
    assert_eq!(moves, Moves::default());
    let (after, moves) = before.follow(&files.of(&[("hello", BOB)]), day(0));
    assert_eq!(of(&after, "a.example"), None);
    assert_eq!(moves, Moves::default());
    assert!(after.reservation_against(&name("a.example"), BOB).is_some());
    assert!(
        after
            .reservation_against(&name("a.example"), ALICE)
            .is_none()
    );
}

#[test]
fn a_name_that_was_given_up_is_kept_for_its_owner_for_a_week_or_until_root_frees_it() {
    let files = Files::new();
    files.write("hello");
    files.write("other");
    let both = files.of(&[("hello", ALICE), ("other", BOB)]);
    let before = owners(&[("a.example", "hello"), ("b.example", "other")], &both);
    let is_free = |owners: &Owners, uid| {
        owners
            .reservation_against(&name("a.example"), uid)
            .is_none()
    };
    // the file is gone
    let other = files.of(&[("other", BOB)]);
    let present = BTreeSet::from([app("other")]);
    let (gone, _) = before.clone().follow(&other, day(1));
    let gone = gone.without_absent(&present, day(1));
    assert_eq!(of(&gone, "a.example"), None);
    assert_eq!(of(&gone, "b.example").as_deref(), Some("other"));
    assert!(!is_free(&gone, BOB) && !is_free(&gone, 0) && is_free(&gone, ALICE));
    assert!(is_free(&gone.clone().without_reservations(), BOB));
    let later = |at| gone.clone().without_absent(&present, at);
    assert!(!is_free(&later(day(8) - Duration::SECOND), BOB));
    assert!(is_free(&later(day(8)), BOB));
    // a new version does without it
    let accepted = BTreeMap::from([
        (name("c.example"), app("hello")),
        (name("b.example"), app("other")),
    ]);
    let edited = before.clone().succeeded_by(accepted.into(), &both, day(1));
    assert!(!is_free(&edited, BOB) && is_free(&edited, ALICE));
    // its owner takes it again
    let accepted = BTreeMap::from([(name("a.example"), app("hello"))]);
    let again = edited.succeeded_by(accepted.into(), &both, day(2));
    assert!(again.reserved.keys().all(|it| it.as_str() != "a.example"));
}

#[test]
fn a_reserved_wildcard_keeps_what_is_below_it_and_a_reserved_name_the_wildcard_above() {
    let files = Files::new();
    files.write("hello");
    let names = [("*.z.example", "hello"), ("x.y.example", "hello")];
    let before = owners(&names, &files.of(&[("hello", ALICE)]));
    let (gone, _) = before.follow(&BTreeMap::new(), day(0));
    let gone = gone.without_absent(&BTreeSet::new(), day(0));
    for (asked, free) in [
        ("a.z.example", false),
        ("*.z.example", false),
        ("*.y.example", false),
        ("y.example", true),
        ("x.y.example", false),
        ("z.example", true),
    ] {
        let against = gone.reservation_against(&name(asked), BOB);
        assert_eq!(against.is_none(), free, "{asked}");
    }
}

#[test]
fn names_of_a_vhostd_that_knew_no_users_are_those_of_the_file_that_is_there() {
    let read: Owners = serde_json::from_str(r#"{"a.example": "hello"}"#).unwrap();
    let files = Files::new();
    files.write("hello");
    let now = files.of(&[("hello", ALICE)]);
    let (after, moves) = read.follow(&now, day(0));
    assert_eq!(moves, Moves::default());
    let accepted = BTreeMap::from([(name("a.example"), app("hello"))]);
    let after = after.succeeded_by(accepted.into(), &now, day(0));
    assert_eq!(after.apps, now);
    let text = serde_json::to_string(&after).unwrap();
    assert_eq!(serde_json::from_str::<Owners>(&text).unwrap(), after);
    let (gone, _) = after.follow(&BTreeMap::new(), day(0));
    let gone = gone.without_absent(&BTreeSet::new(), day(0));
    let text = serde_json::to_string(&gone).unwrap();
    assert_eq!(serde_json::from_str::<Owners>(&text).unwrap(), gone);
}
