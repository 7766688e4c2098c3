//! `vhostd check`

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::{Exit, output};
use crate::clock;
use crate::desired::{self, Candidate, Given, Owners};
use crate::diagnostic::Diagnostic;
use crate::generation::GenerationStore;
use crate::installation::has_ipv6;
use crate::policy::Policy;
use crate::reconcile::intent::parse_alone;
use crate::reconcile::last_look::LastLook;
use crate::reconcile::neighbours;
use crate::reconcile::report::{Rejected, misnamed, rejected};
use crate::settings::Settings;
use crate::vhost::reach::{self, Budget};
use crate::vhost::source::{self, Listing, VhostFile};
use crate::vhost::{App, AppName, LocalUser, ServerName};

#[derive(Args, Debug)]
pub(super) struct Check {
    /// Files with any name and place, or `-`; default: the whole directory
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print data for programs
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Default)]
struct Findings {
    checked: usize,
    rejected: Vec<Rejected>,
    warnings: Vec<String>,
    texts: BTreeMap<PathBuf, String>,
    /// Files that could not be read at all.
    unreadable: Vec<String>,
    /// Who reads the files of a `root`, as far as the active generation knows.
    worker: LocalUser,
    /// What is left of the looks for links.
    budget: Budget,
}

#[derive(Serialize)]
struct Shown<'a> {
    checked: usize,
    rejected: &'a [Rejected],
    warnings: &'a [String],
}

impl Check {
    pub(super) fn run(self, settings: &Settings) -> Exit {
        let directory = match source::read(&settings.vhosts_dir) {
            Ok(directory) => directory,
            // a FILE can be checked anywhere
            Err(_) if !self.files.is_empty() => Listing::default(),
            Err(error) => {
                output::error(&format!("failed to {error}"));
                output::hint(Some("run `vhostd setup`, or name the files to check"));
                return Exit::Failed;
            }
        };
        let mut findings = Findings {
            worker: worker(settings),
            ..Findings::default()
        };
        if self.files.is_empty() {
            findings.checked += directory.refused.len();
            findings.rejected.extend(misnamed(&directory.refused));
            findings.examine(directory.files, settings);
        } else {
            for file in &self.files {
                findings.examine_alone(file, &directory.files, settings);
            }
        }
        if self.json {
            output::json(&Shown {
                checked: findings.checked,
                rejected: &findings.rejected,
                warnings: &findings.warnings,
            });
            findings.say_unreadable();
        } else {
            findings.say();
        }
        match (findings.unreadable.is_empty(), findings.rejected.is_empty()) {
            (false, _) => Exit::Failed,
            (true, false) => Exit::Rejected,
            (true, true) => Exit::Done,
        }
    }
}

pub(super) fn worker(settings: &Settings) -> LocalUser {
    let active = GenerationStore::new(&settings.state_dir).active();
    active.map_or_else(
        |_| LocalUser::default(),
        |active| LocalUser::named(&active.manifest.survey.user),
    )
}

impl Findings {
    /// The whole directory, as a reload would see it.
    fn examine(&mut self, files: Vec<VhostFile>, settings: &Settings) {
        self.checked += files.len();
        let (mut candidates, mut given) = (Vec::new(), given(settings, &files));
        let worker = self.worker.clone();
        let mut policy = Policy::new(settings, &worker, has_ipv6());
        for file in &files {
            self.remember(file);
            match parse_alone(file, &mut policy, clock::system()()) {
                Ok((app, warnings)) => {
                    self.warn(&app, warnings);
                    candidates.push(candidate(app, file));
                }
                Err(errors) => {
                    given.silent.insert(file.app.clone(), file.path.clone());
                    self.reject(&file.app, errors);
                }
            }
        }
        let accepted = desired::accept(candidates, &given);
        self.rejected.extend(rejected(&accepted.rejections));
    }

    /// One file that may replace one of the directory: the one of its name, or else the one that
    /// has all of its names now.
    fn examine_alone(&mut self, path: &Path, directory: &[VhostFile], settings: &Settings) {
        self.checked += 1;
        let file = match source::read_one(path) {
            Ok(file) => file,
            Err(error) => return self.unreadable.push(error.to_string()),
        };
        self.remember(&file);
        let worker = self.worker.clone();
        let mut policy = Policy::new(settings, &worker, has_ipv6());
        let app = match parse_alone(&file, &mut policy, clock::system()()) {
            Ok((app, warnings)) => {
                self.warn(&app, warnings);
                app
            }
            Err(errors) => return self.reject(&file.app, errors),
        };
        let (mut others, mut given) = (Vec::new(), given(settings, directory));
        for other in directory.iter().filter(|other| other.app != app.name) {
            match parse_alone(other, &mut policy, clock::system()()) {
                Ok((parsed, _)) => others.push(candidate(parsed, other)),
                Err(_) => {
                    given.silent.insert(other.app.clone(), other.path.clone());
                }
            }
        }
        let me = app.name.clone();
        if !directory.iter().any(|other| other.app == me)
            && let Some(replaced) = replaced(&app, &others, &given)
        {
            others.retain(|other| other.app.name != replaced);
            given.silent.remove(&replaced);
        }
        others.push(candidate(app, &file));
        let accepted = desired::accept(others, &given);
        let mine = accepted
            .rejections
            .into_iter()
            .filter(|rejection| rejection.app == me)
            .collect::<Vec<_>>();
        self.rejected.extend(rejected(&mine));
    }

    fn warn(&mut self, app: &App, warnings: Vec<String>) {
        self.warnings.extend(warnings);
        let unreachable = reach::inspect(app, &self.worker, &mut self.budget, true);
        let unreachable = unreachable.iter().map(ToString::to_string);
        self.warnings.extend(unreachable);
    }

    fn reject(&mut self, app: &AppName, diagnostics: Vec<Diagnostic>) {
        let rejection = desired::Rejection {
            app: app.clone(),
            diagnostics,
            stale: false,
        };
        self.rejected.extend(rejected(&[rejection]));
    }

    fn remember(&mut self, file: &VhostFile) {
        if let Ok(text) = &file.text {
            self.texts.insert(file.path.clone(), text.clone());
        }
    }

    fn say(&self) {
        for warning in &self.warnings {
            output::warning(warning);
        }
        for rejected in &self.rejected {
            output::rejected(rejected, self.texts.get(&rejected.file).map(String::as_str));
        }
        self.say_unreadable();
        let plural = |count: usize, word: &str| {
            format!("{count} {word}{}", if count == 1 { "" } else { "s" })
        };
        let files = plural(self.checked, "file");
        match self.rejected.len() {
            0 if self.unreadable.is_empty() => {
                output::success(&format!("{files} checked, no errors"));
            }
            0 => output::error(&format!(
                "{files} checked, {} could not be read",
                self.unreadable.len()
            )),
            errors => output::error(&format!("{files} checked, {}", plural(errors, "error"))),
        }
    }

    fn say_unreadable(&self) {
        for error in &self.unreadable {
            output::error(&format!("failed to {error}"));
        }
    }
}

pub(super) fn candidate(app: App, file: &VhostFile) -> Candidate {
    Candidate {
        app,
        modified: file.modified,
        fallback: None,
    }
}

/// The only one of the directory that has a name of `app`; what does not parse has those that it owns.
fn replaced(app: &App, others: &[Candidate], given: &Given) -> Option<AppName> {
    let asked: BTreeSet<&ServerName> = names(app).collect();
    let parsed = others.iter().map(|other| &other.app);
    let parsed = parsed.filter(|other| names(other).any(|name| asked.contains(name)));
    let owners = asked.iter().filter_map(|name| given.owners.owner(name));
    let silent = owners.filter(|owner| given.silent.contains_key(*owner));
    let sharing: BTreeSet<&AppName> = parsed.map(|other| &other.name).chain(silent).collect();
    match sharing.len() {
        1 => sharing.into_iter().next().cloned(),
        _ => None,
    }
}

fn names(app: &App) -> impl Iterator<Item = &ServerName> {
    let vhosts = app.vhosts.iter();
    vhosts.flat_map(|vhost| vhost.all_names().map(|name| &name.value))
}

/// `check` needs no privilege: where the owners cannot be read, files alone decide. `files` are those of
/// the directory.
pub(super) fn given(settings: &Settings, files: &[VhostFile]) -> Given {
    let owners: Owners = std::fs::read(settings.state_dir.join("owners.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let now = clock::system()();
    let present = files.iter().map(|file| file.app.clone()).collect();
    let files = files.iter().map(|file| (file.app.clone(), file.identity));
    let (owners, _) = owners.follow(&files.collect(), now);
    let owners = owners.without_absent(&present, now);
    let survey = match LastLook::read(&settings.state_dir) {
        Some(look) => look.survey,
        None => {
            let active = GenerationStore::new(&settings.state_dir).active();
            active.map(|it| it.manifest.survey).unwrap_or_default()
        }
    };
    Given {
        owners,
        hand_written: neighbours::names(&survey, &settings.nginx),
        patterns: neighbours::name_patterns(&survey, &settings.nginx),
        entrances: Some(neighbours::entrances(settings, &survey, has_ipv6())),
        ..Given::default()
    }
}
