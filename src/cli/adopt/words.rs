//! W: what became of each lineage, for people and for programs.

use std::path::Path;

use serde::Serialize;

use super::survey::Found;
use super::{CERTBOT, shown};
use crate::adoption::lineage::{Lineage, LineageError};
use crate::adoption::standing::{Refusal, Standing};
use crate::adoption::{AdoptError, day_and_time};
use crate::certificate::schedule::renew_at;
use crate::certificate::words::one_line;
use crate::certificate::{Identifier, StoredCertificate};
use crate::cli::output;

/// Says it, or gathers it for `--json`.
pub(super) struct Told {
    json: bool,
    data: Data,
}

/// What `--json` shows.
#[derive(Default, Serialize)]
struct Data {
    lineages: Vec<Line>,
    error: Option<String>,
    hint: Option<String>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Adoptable,
    Adopted,
    Failed,
    Refused,
    Undone,
}

#[derive(Default, Serialize)]
struct Line {
    name: String,
    config_dir: Option<String>,
    state: Option<State>,
    identifiers: Vec<String>,
    not_after: Option<String>,
    server: Option<String>,
    /// Those that use it, or would.
    vhosts: Vec<String>,
    /// Ours.
    certificates: Vec<String>,
    renew_at: Option<String>,
    /// Names in it that no vhost here wants.
    left_out: Vec<String>,
    /// What certbot no longer runs.
    hooks: Vec<Hook>,
    reason: Option<String>,
    hint: Option<String>,
    /// The command that gives it back to certbot.
    undo: Option<String>,
}

#[derive(Serialize)]
struct Hook {
    kind: &'static str,
    command: String,
}

/// The command that gives it back; `None` where it was not certbot's to renew before.
fn undo(found: &Found) -> Option<String> {
    let conf = &found.lineage.conf;
    (conf.renews() || conf.is_marked()).then(|| undo_command(found))
}

pub(super) fn undo_command(found: &Found) -> String {
    command(found, " --undo")
}

fn command(found: &Found, option: &str) -> String {
    let Lineage {
        config_dir, name, ..
    } = &found.lineage;
    let name = word(name);
    match config_dir == Path::new(CERTBOT) {
        true => format!("vhostd adopt{option} {name}"),
        false => {
            let config_dir = word(&shown(config_dir));
            format!("vhostd adopt{option} --config-dir {config_dir} {name}")
        }
    }
}

/// As a shell reads it: who copies the command means this one word.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./_-".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

impl Told {
    pub(super) fn new(json: bool) -> Self {
        let data = Data::default();
        Self { json, data }
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.json
    }

    pub(super) fn end(self) {
        if self.json {
            output::json(&self.data);
        }
    }

    /// Nothing could be looked at.
    pub(super) fn failed(&mut self, error: &str, hint: Option<&str>) {
        if self.json {
            self.data.error = Some(format!("failed to {error}"));
            self.data.hint = hint.map(str::to_owned);
            return;
        }
        output::error(&format!("failed to {error}"));
        output::hint(hint);
    }

    pub(super) fn nothing(&self, config_dir: &Path) {
        if !self.json {
            let directory = config_dir.display();
            output::line(&format!("certbot has no certificates in {directory}"));
        }
    }

    pub(super) fn unknown(&mut self, name: &str, error: &LineageError) {
        self.refuse(name, &error.to_string(), Some("`vhostd adopt` lists them"));
    }

    pub(super) fn unreadable(&mut self, name: &str, error: &LineageError) {
        self.refuse(name, &error.to_string(), None);
    }

    fn refuse(&mut self, name: &str, reason: &str, hint: Option<&str>) {
        if !self.json {
            output::error(&format!("{name} cannot be adopted: {reason}"));
            output::hint(hint);
        }
        self.data.lineages.push(Line {
            name: name.to_owned(),
            state: Some(State::Refused),
            reason: Some(reason.to_owned()),
            hint: hint.map(str::to_owned),
            ..Line::default()
        });
    }

    pub(super) fn refused(&mut self, found: &Found, refusal: &Refusal) {
        self.note(found, State::Refused, |line| {
            line.reason = Some(refusal.to_string());
            line.hint = Some(refusal.hint().to_owned());
        });
        if !self.json {
            let name = &found.lineage.name;
            output::error(&format!("{name} cannot be adopted: {refusal}"));
            output::hint(Some(refusal.hint()));
        }
    }

    /// What is so, and what could be done.
    pub(super) fn listed(&mut self, found: &Found) {
        let (state, refusal) = match &found.standing {
            Standing::Adoptable(_) => (State::Adoptable, None),
            Standing::Adopted(_) => (State::Adopted, None),
            Standing::Refused(refusal) => (State::Refused, Some(refusal)),
        };
        self.note(found, state, |line| {
            line.reason = refusal.map(ToString::to_string);
            line.hint = refusal.map(|refusal| refusal.hint().to_owned());
        });
        if self.json {
            return;
        }
        let name = &found.lineage.name;
        output::line(&format!("{}{}", output::strong(name), described(found)));
        match &found.standing {
            Standing::Adoptable(uses) => {
                let vhosts: Vec<_> = uses.iter().map(|it| it.vhost.as_str()).collect();
                let vhosts = vhosts.join(", ");
                let good = output::good("can be adopted");
                let command = command(found, "");
                output::line(&format!("  {good} for {vhosts}: `{command}`"));
                self.losses(found);
            }
            Standing::Adopted(_) => {
                let undo = undo(found).map(|undo| format!("; to undo: `{undo}`"));
                output::line(&format!("  adopted{}", undo.unwrap_or_default()));
            }
            Standing::Refused(refusal) => {
                let doubtful = output::doubtful("cannot be adopted");
                output::line(&format!("  {doubtful}: {refusal}"));
            }
        }
    }

    pub(super) fn imported(&self, found: &Found, stored: &[StoredCertificate]) {
        for stored in stored.iter().filter(|_| !self.json) {
            let (name, until) = (&stored.name, day_and_time(stored.validity.not_after));
            output::line(&match stored.adopted {
                true => format!("  imported  {name}, valid until {until}"),
                false => format!("  kept      {name}, vhostd's own, valid until {until}"),
            });
        }
        if !self.json && stored.is_empty() {
            output::line(&format!("  {}: nothing to import", found.lineage.name));
        }
    }

    pub(super) fn adopted(&mut self, found: &Found, stored: &[StoredCertificate]) {
        let next = stored.iter().map(|it| renew_at(it.validity, None)).min();
        self.note(found, State::Adopted, |line| {
            line.certificates = stored.iter().map(|it| it.name.to_string()).collect();
            line.renew_at = next.map(day_and_time);
        });
        if self.json {
            return;
        }
        let name = &found.lineage.name;
        let when = next.map(day_and_time);
        let when = when.map_or_else(String::new, |at| format!(", at {at} or when its CA says"));
        output::success(&format!(
            "{name} is adopted: vhostd renews it{when}; certbot does not any more"
        ));
        self.losses(found);
        let live = shown(&found.lineage.live());
        for stored in stored {
            let ours = found.certificates.join(stored.name.as_str());
            let ours = shown(&ours.join("current"));
            output::warning(&format!(
                "what else reads {live} gets no renewal any more: let it read {ours}"
            ));
        }
        output::hint(
            undo(found)
                .map(|undo| format!("to undo: `{undo}`"))
                .as_deref(),
        );
    }

    /// What comes to an end with certbot's renewal.
    fn losses(&self, found: &Found) {
        for (kind, command) in found.lineage.conf.hooks() {
            let command = one_line(command.as_bytes());
            output::warning(&format!("certbot's {kind} will not run for it: {command}"));
        }
        for script in &found.lineage.scripts {
            let script = script.display();
            output::warning(&format!("certbot's {script} will not run for it"));
        }
        if !found.left_out.is_empty() {
            let names = listed(&found.left_out);
            output::warning(&format!(
                "no vhost here wants {names}: vhostd's renewal will not have it"
            ));
        }
    }

    pub(super) fn not_adopted(&mut self, found: &Found, why: &str, hint: Option<&str>) {
        self.note(found, State::Failed, |line| {
            line.reason = Some(why.to_owned());
            line.hint = hint.map(str::to_owned);
        });
        if !self.json {
            let name = &found.lineage.name;
            output::error(&format!("{name} is not adopted, certbot goes on: {why}"));
            output::hint(hint);
        }
    }

    pub(super) fn undone(&mut self, name: &str, changed: bool) {
        self.data.lineages.push(Line {
            name: name.to_owned(),
            state: Some(State::Undone),
            ..Line::default()
        });
        if self.json {
            return;
        }
        if !changed {
            output::success(&format!("certbot renews {name}: nothing to undo"));
            return;
        }
        output::success(&format!("certbot renews {name} again"));
        output::hint(Some(
            "vhostd goes on with its own copy while a vhost file wants it",
        ));
    }

    pub(super) fn not_undone(&mut self, name: &str, error: &AdoptError) {
        self.data.lineages.push(Line {
            name: name.to_owned(),
            state: Some(State::Failed),
            reason: Some(format!("failed to {error}")),
            hint: error.hint().map(str::to_owned),
            ..Line::default()
        });
        if !self.json {
            output::error(&format!("{name}: failed to {error}"));
            output::hint(error.hint());
        }
    }

    fn note(&mut self, found: &Found, state: State, further: impl FnOnce(&mut Line)) {
        let lineage = &found.lineage;
        let uses = match &found.standing {
            Standing::Adoptable(uses) | Standing::Adopted(uses) => uses.as_slice(),
            Standing::Refused(_) => &[],
        };
        let chain = found.material.as_ref().map(|material| &material.chain);
        let identifiers = chain.iter().flat_map(|chain| &chain.identifiers);
        let mut line = Line {
            name: lineage.name.clone(),
            config_dir: Some(shown(&lineage.config_dir)),
            state: Some(state),
            identifiers: identifiers.map(ToString::to_string).collect(),
            not_after: chain.map(|chain| day_and_time(chain.validity.not_after)),
            server: lineage.conf.server().map(str::to_owned),
            vhosts: uses.iter().map(|it| it.vhost.clone()).collect(),
            certificates: uses.iter().map(|it| it.wanted.name.to_string()).collect(),
            left_out: found.left_out.iter().map(ToString::to_string).collect(),
            hooks: hooks(found),
            undo: undo(found).filter(|_| matches!(state, State::Adopted)),
            ..Line::default()
        };
        further(&mut line);
        self.data.lineages.push(line);
    }
}

fn hooks(found: &Found) -> Vec<Hook> {
    let own = found.lineage.conf.hooks().into_iter();
    let own = own.map(|(kind, command)| (kind, command.to_owned()));
    let scripts = found.lineage.scripts.iter();
    let scripts = scripts.map(|path| ("script", shown(path)));
    let hooks = own.chain(scripts);
    hooks
        .map(|(kind, command)| Hook { kind, command })
        .collect()
}

fn described(found: &Found) -> String {
    match &found.material {
        None => String::new(),
        Some(material) => {
            let until = day_and_time(material.chain.validity.not_after);
            let names = listed(&material.chain.identifiers);
            format!(": {names}, until {until}")
        }
    }
}

fn listed(identifiers: &[Identifier]) -> String {
    let names = identifiers.iter().map(ToString::to_string);
    // a name in a certificate can hold any ASCII
    one_line(names.collect::<Vec<_>>().join(", ").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_command_is_read_by_a_shell_as_it_is_meant() {
        assert_eq!(word("/srv/le-1"), "/srv/le-1");
        assert_eq!(word("/srv/my certs"), "'/srv/my certs'");
        assert_eq!(word("a'b$(c)"), r"'a'\''b$(c)'");
        assert_eq!(word(""), "''");
    }
}
