use time::OffsetDateTime;

use super::*;
use crate::generation::manifest::{Reason, ServedName};
use crate::nginx::dump::Survey;
use crate::vhost::VhostName;
use crate::vhost::identity::FileIdentity;

fn name(text: &str) -> AppName {
    text.parse().unwrap()
}

fn source(app: &str, text: &str) -> AppSource {
    let file = format!("/etc/vhosts.d/{app}.yml");
    serde_json::from_value(serde_json::json!({"file": file, "text": text, "stale": false})).unwrap()
}

/// A generation of `app=text` words; each serves `TEXT.example`.
fn generation(words: &str) -> Manifest {
    let empty = Manifest::draft(OffsetDateTime::UNIX_EPOCH, Reason::File, Survey::default());
    let pairs: Vec<(&str, &str)> = words
        .split_whitespace()
        .filter_map(|it| it.split_once('='))
        .collect();
    let served = |(app, text): &(&str, &str)| ServedName {
        vhost: VhostName::only(&name(app)),
        host: format!("{text}.example"),
        leaf: None,
        further_leaves: Vec::new(),
        config: String::new(),
    };
    Manifest {
        apps: pairs
            .iter()
            .map(|(app, text)| (name(app), source(app, text)))
            .collect(),
        names: pairs.iter().map(served).collect(),
        ..empty
    }
}

#[test]
fn only_other_vhosts_of_the_apps_in_question_are_a_difference() {
    let active = generation("a=1 b=1");
    for (manifest, apps, expected) in [
        ("a=1 b=1", &[][..], false),
        ("a=1 b=2", &[], true),
        ("a=1", &[], true),
        ("a=1 b=1 c=1", &[], true),
        ("a=1 b=2", &["a"], false),
        ("a=2 b=2", &["a"], true),
        ("a=2 b=1", &["a", "b"], true),
        // nothing is there to return to
        ("b=2", &["a"], false),
        ("a=2", &["a", "b"], false),
        // of an app that serves nothing now
        ("a=1 c=1", &["c"], true),
    ] {
        let names: Vec<AppName> = apps.iter().map(|app| name(app)).collect();
        let differs = differs(&generation(manifest), &active, &names);
        assert_eq!(differs, expected, "{manifest} {apps:?}");
    }
}

#[test]
fn an_app_whose_generations_are_not_kept_returns_to_the_version_that_it_had_before() {
    let directory = tempfile::tempdir().unwrap();
    let (state_dir, active) = (directory.path(), generation("a=2 b=1"));
    let names = |words: &str| -> Vec<AppName> { words.split(' ').map(name).collect() };
    PreviousVersions::record(state_dir, &generation("a=1 b=1"), &active).unwrap();
    let previous = PreviousVersions::read(state_dir);
    let text = |manifest: Manifest| manifest.apps[&name("a")].text.clone();
    let found = not_kept(&previous, &active, &names("a"));
    assert_eq!(found.map(text).as_deref(), Some("1"));
    for apps in ["b", "a b", "none"] {
        assert_eq!(not_kept(&previous, &active, &names(apps)), None, "{apps}");
    }
    assert_eq!(not_kept(&previous, &active, &[]), None);
    assert_eq!(
        not_kept(&previous, &generation("a=1 b=1"), &names("a")),
        None
    );
}

#[test]
fn a_rollback_brings_back_what_it_names_and_leaves_the_rest_as_it_serves() {
    let files: Vec<VhostFile> = ["a", "b", "d"]
        .map(|app| VhostFile {
            app: name(app),
            path: format!("/etc/vhosts.d/{app}.yml").into(),
            text: Ok(String::new()),
            modified: OffsetDateTime::UNIX_EPOCH,
            identity: FileIdentity::without_file(0),
        })
        .to_vec();
    let words = |sources: &BTreeMap<AppName, AppSource>| {
        let words = sources
            .iter()
            .map(|(app, source)| format!("{app}={}", source.text));
        words.collect::<Vec<_>>().join(" ")
    };
    let (target, active) = (generation("a=1 gone=1"), generation("a=2 b=2 d=1"));
    for (apps, owners, serves, pinned) in [
        (&[][..], &[][..], "a=1 gone=1", "a=1 gone=1 b- d-"),
        (&["a"], &[], "a=1 b=2 d=1", "a=1"),
        (&["gone"], &[], "a=2 b=2 d=1 gone=1", "gone=1"),
        // d has a name of the older generation now, as after a rename of its file
        (
            &[],
            &[("1.example", "d")],
            "a=1 d=1 gone=1",
            "a=1 gone=1 b-",
        ),
    ] {
        let rollback = Rollback {
            generation: None,
            apps: apps.iter().map(|app| name(app)).collect(),
        };
        let owner = |server_name: &ServerName| {
            let mut owners = owners.iter();
            let owner = owners.find(|(name, _)| *name == server_name.as_str());
            owner.map(|(_, app)| name(app))
        };
        let back = Return::of(&rollback, &target, &active, &files, owner);
        assert_eq!(words(&back.sources), serves, "{apps:?}");
        let returned = back
            .pinned
            .iter()
            .filter_map(|(app, source)| Some((app.clone(), source.clone()?)));
        let waiting = back.pinned.iter().filter(|(_, source)| source.is_none());
        let waiting = waiting
            .map(|(app, _)| format!(" {app}-"))
            .collect::<String>();
        assert_eq!(
            format!("{}{waiting}", words(&returned.collect())),
            pinned,
            "{apps:?}"
        );
    }
}
