use time::OffsetDateTime;

use super::*;
use crate::generation::manifest::{Reason, ServedName};
use crate::nginx::dump::Survey;
use crate::vhost::VhostName;
use crate::vhost::identity::FileIdentity;

fn name(text: &str) -> AppName {
    text.parse().unwrap()
}

fn file(app: &str, text: &str, uid: u32) -> VhostFile {
    VhostFile {
        app: name(app),
        path: format!("/etc/vhosts.d/{app}.yml").into(),
        text: Ok(text.to_owned()),
        modified: OffsetDateTime::UNIX_EPOCH,
        identity: FileIdentity::without_file(uid),
    }
}

fn source(app: &str, text: &str) -> AppSource {
    // as a manifest has it
    let file = format!("/etc/vhosts.d/{app}.yml");
    serde_json::from_value(serde_json::json!({"file": file, "text": text, "stale": false})).unwrap()
}

/// Each app is `old`, and serves `APP.example`.
fn generation(number: u64, apps: &[&str]) -> Manifest {
    let empty = Manifest::draft(OffsetDateTime::UNIX_EPOCH, Reason::File, Survey::default());
    let served = |app: &&str| ServedName {
        vhost: VhostName::only(&name(app)),
        host: format!("{app}.example"),
        leaf: None,
        further_leaves: Vec::new(),
        config: String::new(),
    };
    Manifest {
        number,
        apps: apps
            .iter()
            .map(|app| (name(app), source(app, "old")))
            .collect(),
        names: apps.iter().map(served).collect(),
        ..empty
    }
}

/// The files of two users: a of 1, b of 2, c of 2.
fn files() -> Vec<VhostFile> {
    [("a", 1), ("b", 2), ("c", 2)]
        .map(|(app, uid)| file(app, "new", uid))
        .to_vec()
}

/// All are pinned to generation 5, which has a, b and `gone`, whose file was removed; c waits.
fn pin() -> Pin {
    let apps = [("a", true), ("b", true), ("gone", true), ("c", false)];
    let apps = apps.map(|(app, there)| (name(app), there.then(|| source(app, "old"))));
    Pin::with(None, 5, BTreeMap::from(apps), &files())
}

fn held(pin: Option<&Pin>) -> String {
    let apps = pin.into_iter().flat_map(Pin::apps);
    apps.map(|(app, _)| app.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

/// What is left of [`pin`] where the files and the reloads are these.
fn remaining(files: &[VhostFile], kept: &[&str], reloads: &[Reload]) -> String {
    let kept = kept.iter().map(|app| name(app)).collect();
    let active = generation(6, &["a", "b", "gone"]);
    held(pin().remaining(files, &kept, reloads, &active).as_ref())
}

#[test]
fn an_app_is_pinned_until_its_own_file_changes_comes_back_goes_or_gets_another_owner() {
    let with = |other: VhostFile| {
        let mut files = files();
        files.retain(|file| file.app != other.app);
        files.push(other);
        files
    };
    let without = |app: &str| {
        let mut files = files();
        files.retain(|file| file.app.as_str() != app);
        files
    };
    for (files, kept, expected) in [
        (files(), &[][..], "a b c gone"),
        (with(file("b", "newer", 2)), &[], "a c gone"),
        (with(file("b", "new", 3)), &[], "a c gone"),
        (with(file("c", "newer", 2)), &[], "a b gone"),
        // a new file is no other app's
        (with(file("d", "new", 2)), &[], "a b c gone"),
        (with(file("gone", "new", 2)), &[], "a b c"),
        (without("b"), &[], "a c gone"),
        // for a second, a file that is missing may come back
        (without("b"), &["b"], "a b c gone"),
        (Vec::new(), &[], "gone"),
    ] {
        assert_eq!(remaining(&files, kept, &[]), expected, "{files:?}");
    }
    let mut touched = files();
    touched[0].modified += time::Duration::DAY;
    assert_eq!(remaining(&touched, &[], &[]), "a b c gone");
}

#[test]
fn roots_reload_ends_every_pin_a_users_those_of_his_files_and_with_names_it_ends_theirs_alone() {
    use Requester::{Admin, User};
    for (by, names, expected) in [
        (Admin, &[][..], ""),
        (Admin, &["a"], "b c gone"),
        (Admin, &["a#2", "b.example"], "c gone"),
        (Admin, &["nothing"], "a b c gone"),
        (User(1), &[], "b c gone"),
        (User(2), &[], "a gone"),
        (User(2), &["b"], "a c gone"),
        (User(2), &["a"], "a b c gone"),
        (User(2), &["a", "b.example"], "a c gone"),
        (User(3), &[], "a b c gone"),
        // nobody owns a file that is not there
        (User(0), &["gone"], "a b c gone"),
        (Admin, &["gone"], "a b c"),
    ] {
        let names = names.iter().map(ToString::to_string).collect();
        let reload = Reload { by, names };
        assert_eq!(
            remaining(&files(), &[], std::slice::from_ref(&reload)),
            expected,
            "{reload:?}"
        );
    }
    let both = [1, 2].map(|uid| Reload {
        by: User(uid),
        names: Vec::new(),
    });
    assert_eq!(remaining(&files(), &[], &both), "gone");
}

#[test]
fn a_rollback_of_one_app_leaves_the_others_pinned_and_is_what_status_shows_while_it_holds() {
    let one = BTreeMap::from([(name("a"), Some(source("a", "older")))]);
    let pin = Pin::with(Some(pin()), 3, one, &files());
    assert_eq!(held(Some(&pin)), "a b c gone");
    assert_eq!(pin.generations(), BTreeSet::from([3, 5]));
    assert_eq!(pin.generation(), 3);
    let mut changed = files();
    changed[0] = file("a", "newer", 1);
    let active = generation(6, &["a", "b", "gone"]);
    let pin = pin
        .remaining(&changed, &BTreeSet::new(), &[], &active)
        .unwrap();
    assert_eq!(pin.generation(), 5);
}

#[test]
fn what_an_older_vhostd_wrote_holds_every_app_while_no_file_changed_and_else_none() {
    let old = serde_json::json!({"generation": 5, "files": digest(&files())});
    let old: Pin = serde_json::from_value(old).unwrap();
    assert_eq!(old.of_all_apps(), Some(5));
    assert!(old.has(&name("anything")));
    let target = generation(5, &["a", "b", "gone"]);
    let upgraded = old.clone().upgraded(&target, &files()).unwrap();
    assert_eq!(upgraded, pin());
    let mut changed = files();
    changed[2] = file("c", "newer", 2);
    assert_eq!(old.upgraded(&target, &changed), None);
}

#[test]
fn an_older_vhostd_holds_a_rollback_of_all_apps_and_ends_one_of_some() {
    /// What that version reads.
    #[derive(Deserialize)]
    struct Old {
        generation: u64,
        files: String,
    }
    let as_old = |pin: &Pin| {
        let text = serde_json::to_string(pin).unwrap();
        let old: Old = serde_json::from_str(&text).unwrap();
        (old.generation, old.files == digest(&files()))
    };
    assert_eq!(as_old(&pin()), (5, true));
    let one = BTreeMap::from([(name("a"), Some(source("a", "older")))]);
    assert!(!as_old(&Pin::with(None, 3, one.clone(), &files())).1);
    assert!(!as_old(&Pin::with(Some(pin()), 3, one, &files())).1);
    let mut changed = files();
    changed[0] = file("a", "newer", 1);
    let active = generation(6, &["a", "b", "gone"]);
    let rest = pin()
        .remaining(&changed, &BTreeSet::new(), &[], &active)
        .unwrap();
    assert!(!as_old(&rest).1);
}

#[test]
fn what_is_stored_is_read_and_nothing_is_stored_where_nothing_holds() {
    let directory = tempfile::tempdir().unwrap();
    let state_dir = directory.path();
    Pin::store(Some(&pin()), state_dir).unwrap();
    assert_eq!(Pin::read(state_dir).unwrap(), Some(pin()));
    Pin::store(None, state_dir).unwrap();
    assert_eq!(Pin::read(state_dir).unwrap(), None);
}
