//! The fuzz targets are built beside the package; `fuzz/run` runs them.

use std::collections::BTreeMap;

/// Otherwise they would not be those that the tests have built: minutes instead of seconds.
#[test]
fn the_fuzz_targets_are_built_from_the_versions_of_the_package() {
    let ours = versions(include_str!("../../Cargo.lock"));
    let theirs = versions(include_str!("../../fuzz/Cargo.lock"));
    for (name, versions) in &theirs {
        let same = ours
            .get(name)
            .is_none_or(|ours| versions.iter().all(|it| ours.contains(it)));
        assert!(
            same,
            "{name}: update fuzz/Cargo.lock as docs/development.md says"
        );
    }
    let vhostd = |lock: &BTreeMap<&str, Vec<&str>>| lock.contains_key("vhostd");
    assert!(vhostd(&ours) && vhostd(&theirs) && theirs.len() > 100);
}

/// Of a lock file: name → versions.
fn versions(lock: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut name = "";
    for line in lock.lines() {
        if let Some(text) = line.strip_prefix("name = ") {
            name = text;
        } else if let Some(text) = line.strip_prefix("version = ").filter(|_| !name.is_empty()) {
            versions
                .entry(name.trim_matches('"'))
                .or_default()
                .push(text);
        }
    }
    versions
}
