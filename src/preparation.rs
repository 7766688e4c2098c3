//! W: `vhostd setup`: the directories, generation 0 and the one line by which nginx reads us; and
//! all of that taken back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::atomic_file::{self, WriteError};
use crate::clock;
use crate::generation::GenerationError;
use crate::generation::manifest::{Manifest, ServedName};
use crate::installation::{Installation, SweepError};
use crate::nginx::dump::Survey;
use crate::nginx::process::NoMaster;
use crate::nginx::{Logs, ReloadError, TestError};
use crate::reconcile::intent::{self, Reading};
use crate::reconcile::last_look::LastLook;
use crate::reconcile::neighbours::advice;
use crate::reconcile::pin::Reload;
use crate::reconcile::{master, neighbours, proof};
use crate::settings::Settings;

/// What setup did or noticed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    Done(String),
    Warning(String),
}

#[derive(Debug, thiserror::Error)]
pub enum PreparationError {
    #[error(transparent)]
    Generation(#[from] GenerationError),
    #[error("write {}: it holds something else", .0.display())]
    ForeignInclude(PathBuf),
    #[error("make nginx read {}: {} does not include it", include.display(), config.display())]
    NotIncluded { include: PathBuf, config: PathBuf },
    #[error("read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Reload(#[from] ReloadError),
    #[error(transparent)]
    Sweep(#[from] SweepError),
    #[error("add the include line: {0}")]
    Test(#[from] TestError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl PreparationError {
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::ForeignInclude(path) => {
                format!(
                    "move {} away, take vhostd's line out of it by hand, or set `nginx.include` to another file",
                    path.display()
                )
            }
            Self::NotIncluded { include, config } => format!(
                "add `include {}/*.conf;` inside `http {{ }}` of {}, then run `vhostd setup` again",
                include.parent().unwrap_or(Path::new("/")).display(),
                config.display()
            ),
            Self::Test(_) => {
                "run `nginx -t` and mend what it names, then run `vhostd setup` again".into()
            }
            Self::Write(error) => match error.source.kind() {
                io::ErrorKind::PermissionDenied => "run it as root".into(),
                io::ErrorKind::NotFound => format!(
                    "make the directory {}, or set `nginx.include` to a file that nginx reads",
                    error.path.parent().unwrap_or(Path::new("/")).display()
                ),
                _ => return None,
            },
            _ => return None,
        })
    }
}

/// The directories that must be there before anything is opened.
pub fn directories(settings: &Settings) -> Result<(), WriteError> {
    atomic_file::create_directory(&settings.vhosts_dir, 0o755)?;
    atomic_file::create_directory(&settings.state_dir, 0o700)?;
    atomic_file::create_directory(&settings.runtime_dir, 0o755)
}

/// Makes nginx read `current/http.conf`. Where nginx does not accept that, nothing is left of it.
pub fn prepare(installation: &Installation) -> Result<Vec<Change>, PreparationError> {
    let settings = &installation.settings;
    let locked = installation.generations.lock(Duration::from_secs(60))?;
    let include = &installation.host_nginx.include_file();
    sweep(installation)?;
    let mut changes = vec![
        Change::Done(format!(
            "vhosts directory   {}",
            settings.vhosts_dir.display()
        )),
        Change::Done(format!(
            "state directory    {}",
            settings.state_dir.display()
        )),
    ];
    let line = include_line(settings);
    let before = read(include)?;
    match &before {
        // by hand, inside a file of the admin's
        Some(text) if text.lines().any(|it| it.trim() == line.trim()) => {}
        Some(text) if !is_ours(text) => {
            return Err(PreparationError::ForeignInclude(include.clone()));
        }
        _ => atomic_file::write(include, line.as_bytes(), 0o644)?,
    }
    let active = installation.generations.active_number()?;
    let path = locked.store().path(active);
    let files = installation.host_nginx.included_files();
    let accepted = installation.nginx().test(&path, &path, &Logs::default());
    let accepted = match accepted {
        Ok(accepted) => accepted,
        Err(error) => {
            take_back(include, before.as_deref())?;
            return Err(match error {
                TestError::NotIncluded { .. } => PreparationError::NotIncluded {
                    include: include.clone(),
                    config: settings.nginx.config.clone(),
                },
                error => error.into(),
            });
        }
    };
    changes.push(Change::Done(format!(
        "include line       {}",
        include.display()
    )));
    let survey = accepted.survey;
    let unknown = advice::unknown_names(&settings.nginx, &survey, installation.has_ipv6);
    let unknown = unknown
        .iter()
        .map(|who| format!("unknown names      {who}"));
    changes.extend(unknown.map(Change::Done));
    let served = expected(installation, &survey)?;
    let warnings = installation.advice(&survey, &served, served.created_at);
    let warnings = warnings.into_iter().chain(master::advice(&survey));
    changes.extend(warnings.map(Change::Warning));
    LastLook { files, survey }.write(&settings.state_dir)?;
    Ok(changes)
}

/// What will be served beside the hand-written files: on all of our sockets, the names of the vhost
/// files that are there. Files that cannot be read are `reload`'s to tell.
fn expected(installation: &Installation, survey: &Survey) -> Result<Manifest, PreparationError> {
    let settings = &installation.settings.nginx;
    let sockets = |port| {
        let listeners = neighbours::listeners(settings, survey, installation.has_ipv6, port);
        listeners.iter().map(|it| it.address).collect::<Vec<_>>()
    };
    let mut served = installation.generations.active()?.manifest;
    (served.http, served.https) = (sockets(settings.http_port), sockets(settings.https_port));
    let reading = Reading {
        absences: None,
        reloads: vec![Reload::OF_ALL],
    };
    let Ok(intent) = intent::read(installation, reading) else {
        return Ok(served);
    };
    for vhost in intent.candidates.iter().flat_map(|it| &it.app.vhosts) {
        served
            .names
            .extend(vhost.all_names().map(|name| ServedName {
                vhost: vhost.name.clone(),
                host: ServedName::host(&name.value),
                leaf: None,
                further_leaves: Vec::new(),
                config: String::new(),
            }));
    }
    Ok(served)
}

/// Removes the include line and tells nginx; also where an earlier undoing was killed in between.
pub fn undo(installation: &Installation) -> Result<Vec<Change>, PreparationError> {
    let _locked = installation.generations.lock(Duration::from_secs(60))?;
    sweep(installation)?;
    let survey = installation.survey()?;
    let include = installation.host_nginx.include_file();
    let line = include_line(&installation.settings);
    let mut changes = Vec::new();
    // first the one that nginx reads; an earlier place may have a line, too
    let all = installation.host_nginx.include_files();
    let others = all.into_iter().filter(|path| *path != include);
    for path in std::iter::once(include.clone()).chain(others) {
        match read(&path)? {
            None => {}
            Some(text) if text == line || (path == include && is_ours(&text)) => {
                atomic_file::remove(&path)?;
                changes.push(Change::Done(format!("removed {}", path.display())));
            }
            // another installation's
            Some(_) if path != include => {}
            Some(_) => return Err(PreparationError::ForeignInclude(path)),
        }
    }
    if changes.is_empty() {
        changes.push(Change::Done(format!("{} was not there", include.display())));
        let active = installation.generations.active()?.manifest;
        if proof::answering(installation.nginx(), &active).is_none() {
            return Ok(changes);
        }
    }
    match installation.nginx().reload(&survey) {
        Ok(_) => changes.push(Change::Done(
            "nginx was told to read its configuration again".into(),
        )),
        Err(ReloadError::NoMaster(NoMaster::NotRunning { .. })) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(changes)
}

/// What an interrupted run left, also beside the include line, which only setup writes.
fn sweep(installation: &Installation) -> Result<(), PreparationError> {
    installation.sweep(clock::system()())?;
    let includes = installation.host_nginx.include_files();
    let parents = includes.iter().filter_map(|include| include.parent());
    for directory in parents.filter(|directory| directory.is_dir()) {
        atomic_file::sweep_dead(directory)?;
    }
    Ok(())
}

fn include_line(settings: &Settings) -> String {
    format!("include {}/http.conf;\n", settings.current().display())
}

fn is_ours(text: &str) -> bool {
    let text = text.trim();
    text.is_empty()
        || (text.lines().count() == 1
            && text.starts_with("include ")
            && text.ends_with("/current/http.conf;"))
}

fn read(path: &Path) -> Result<Option<String>, PreparationError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PreparationError::Read {
            path: path.to_path_buf(),
            source,
        }),
    }
}

fn take_back(include: &Path, before: Option<&str>) -> Result<(), WriteError> {
    match before {
        Some(text) => atomic_file::write(include, text.as_bytes(), 0o644),
        None => atomic_file::remove(include),
    }
}
