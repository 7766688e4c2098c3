//! P: what there is to do, decided from what should be and what is.

use std::collections::BTreeMap;

use crate::generation::history::Proof;
use crate::generation::manifest::{Manifest, ServedName};
use crate::vhost::AppName;

/// The whole decision; the executor is one `match`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Plan {
    /// It serves already.
    Unchanged,
    /// `current` is right, but it was never proven, or something else answers: reload and prove.
    Prove,
    /// Stage, test, activate, reload, prove.
    Activate,
}

/// Who answers on the listeners of the active generation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Serving {
    Generation(u64),
    /// nginx runs and somebody else answers, or nobody.
    Unknown,
    /// There is no nginx to ask.
    NginxDown,
}

/// `past`: how the activation of `active` ended, where it did.
pub fn plan(digest: &str, active: &Manifest, past: Option<Proof>, serving: Serving) -> Plan {
    if digest != active.digest {
        return Plan::Activate;
    }
    match (serving, past) {
        (Serving::Generation(number), Some(Proof::Proven)) if number == active.number => {
            Plan::Unchanged
        }
        // there is nobody to tell or to ask, and that is on record
        (Serving::NginxDown, Some(_)) => Plan::Unchanged,
        _ => Plan::Prove,
    }
}

/// The names whose answer the new generation must prove: new ones, and those whose block or
/// certificate changed.
pub fn names_to_prove<'a>(new: &'a Manifest, old: &Manifest) -> Vec<&'a ServedName> {
    let all = new.http != old.http || new.https != old.https;
    new.names
        .iter()
        .filter(|name| all || !old.names.contains(name))
        .collect()
}

/// `+shop ~hello -old`, for people.
pub fn changes(new: &Manifest, old: &Manifest) -> String {
    let (new, old) = (configs(new), configs(old));
    let mut words = Vec::new();
    for (app, config) in &new {
        match old.get(app) {
            None => words.push(format!("+{app}")),
            Some(before) if before != config => words.push(format!("~{app}")),
            Some(_) => {}
        }
    }
    words.extend(
        old.keys()
            .filter(|app| !new.contains_key(*app))
            .map(|app| format!("-{app}")),
    );
    words.join(" ")
}

fn configs(manifest: &Manifest) -> BTreeMap<&AppName, Vec<&str>> {
    let mut configs: BTreeMap<_, Vec<_>> =
        manifest.apps.keys().map(|app| (app, Vec::new())).collect();
    for name in &manifest.names {
        configs
            .entry(name.vhost.app())
            .or_default()
            .push(name.config.as_str());
    }
    configs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::manifest::Reason;
    use crate::nginx::dump::Survey;
    use time::OffsetDateTime;

    fn active(number: u64, digest: &str) -> Manifest {
        Manifest {
            number,
            digest: digest.into(),
            ..Manifest::draft(OffsetDateTime::UNIX_EPOCH, Reason::File, Survey::default())
        }
    }

    #[test]
    fn nothing_is_reloaded_when_the_same_bytes_serve_already() {
        let serving = Serving::Generation(7);
        assert_eq!(
            plan("a", &active(7, "a"), Some(Proof::Proven), serving),
            Plan::Unchanged
        );
    }

    #[test]
    fn an_activation_that_was_never_proven_is_proven_now() {
        let serving = Serving::Generation(7);
        assert_eq!(plan("a", &active(7, "a"), None, serving), Plan::Prove);
    }

    #[test]
    fn the_right_files_with_another_generation_answering_are_reloaded() {
        let serving = Serving::Generation(6);
        assert_eq!(
            plan("a", &active(7, "a"), Some(Proof::Proven), serving),
            Plan::Prove
        );
    }

    #[test]
    fn other_bytes_become_a_new_generation() {
        let serving = Serving::Generation(7);
        assert_eq!(
            plan("b", &active(7, "a"), Some(Proof::Proven), serving),
            Plan::Activate
        );
    }

    #[test]
    fn what_nginx_has_not_read_yet_is_proven_when_it_runs_and_recorded_once_while_it_is_down() {
        let past = Some(Proof::NginxDown);
        let plan = |past, serving| plan("a", &active(7, "a"), past, serving);
        assert_eq!(plan(past, Serving::Generation(7)), Plan::Prove);
        assert_eq!(plan(past, Serving::NginxDown), Plan::Unchanged);
        assert_eq!(plan(None, Serving::NginxDown), Plan::Prove);
    }
}
