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
    /// The same was tried a moment ago and did not serve.
    Wait,
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

/// `proof`: how the activation of `active` ended; `None` where that is not known, because whoever
/// activated it was interrupted. `held`: a setback with this digest is too fresh to try again.
/// `serving` is asked only where the answer matters.
pub fn plan(
    digest: &str,
    active: &Manifest,
    proof: Option<Proof>,
    held: bool,
    serving: impl FnOnce() -> Serving,
) -> Plan {
    if digest != active.digest {
        return if held { Plan::Wait } else { Plan::Activate };
    }
    match (serving(), proof) {
        (Serving::Generation(number), Some(Proof::Proven)) if number == active.number => {
            Plan::Unchanged
        }
        // it has been said already, and there is nobody to tell
        (Serving::NginxDown, Some(Proof::Proven | Proof::NginxDown)) => Plan::Unchanged,
        _ if held => Plan::Wait,
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

/// The versions of each app's file (one, said by each of its names).
pub fn configs(manifest: &Manifest) -> BTreeMap<&AppName, Vec<&str>> {
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
        let serving = || Serving::Generation(7);
        let proven = Some(Proof::Proven);
        assert_eq!(
            plan("a", &active(7, "a"), proven, false, serving),
            Plan::Unchanged
        );
    }

    #[test]
    fn what_failed_a_moment_ago_waits_unless_it_serves_meanwhile() {
        let proven = Some(Proof::Proven);
        let serving = || Serving::Generation(7);
        let unknown = || Serving::Unknown;
        assert_eq!(
            plan("b", &active(7, "a"), proven, true, unknown),
            Plan::Wait
        );
        assert_eq!(
            plan("a", &active(7, "a"), proven, true, unknown),
            Plan::Wait
        );
        assert_eq!(
            plan("a", &active(7, "a"), proven, true, serving),
            Plan::Unchanged
        );
    }

    #[test]
    fn an_activation_that_was_never_proven_is_proven_now() {
        let serving = || Serving::Generation(7);
        assert_eq!(
            plan("a", &active(7, "a"), None, false, serving),
            Plan::Prove
        );
    }

    #[test]
    fn what_was_activated_while_nginx_was_down_is_proven_when_it_is_up() {
        let (active, down) = (active(7, "a"), Some(Proof::NginxDown));
        let serving = || Serving::NginxDown;
        assert_eq!(plan("a", &active, down, false, serving), Plan::Unchanged);
        assert_eq!(plan("a", &active, None, false, serving), Plan::Prove);
        let serving = || Serving::Generation(7);
        assert_eq!(plan("a", &active, down, false, serving), Plan::Prove);
    }

    #[test]
    fn the_right_files_with_another_generation_answering_are_reloaded() {
        let serving = || Serving::Generation(6);
        let proven = Some(Proof::Proven);
        assert_eq!(
            plan("a", &active(7, "a"), proven, false, serving),
            Plan::Prove
        );
    }

    #[test]
    fn other_bytes_become_a_new_generation() {
        let serving = || Serving::Generation(7);
        let proven = Some(Proof::Proven);
        assert_eq!(
            plan("b", &active(7, "a"), proven, false, serving),
            Plan::Activate
        );
    }
}
