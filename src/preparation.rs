//! W: `vhostd setup`: the directories, generation 0 and the one line by which nginx reads us; and
//! all of that taken back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::atomic_file::{self, WriteError};
use crate::clock;
use crate::generation::GenerationError;
use crate::installation::{Installation, SweepError};
use crate::nginx::process::NoMaster;
use crate::nginx::{Logs, ReloadError, TestError};
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
                    "move {} away, or set `nginx.include` to another file",
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
    let include = &settings.nginx.include;
    let locked = installation.generations.lock(Duration::from_secs(60))?;
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
        Some(text) if *text == line => {}
        Some(text) if !is_ours(text) => {
            return Err(PreparationError::ForeignInclude(include.clone()));
        }
        _ => atomic_file::write(include, line.as_bytes(), 0o644)?,
    }
    let active = installation.generations.active_number()?;
    let path = locked.store().path(active);
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
    for server in &accepted.survey.servers {
        if neighbours::is_implicit_catch_all(server) {
            changes.push(Change::Warning(format!(
                "{}:{} answers unknown names only because it comes first; add `default_server` to its `listen` to keep that",
                server.file.display(),
                server.line
            )));
        }
    }
    changes.extend(master::advice(&accepted.survey).map(Change::Warning));
    Ok(changes)
}

/// Removes the include line and tells nginx; also where an earlier undoing was killed in between.
pub fn undo(installation: &Installation) -> Result<Vec<Change>, PreparationError> {
    let include = &installation.settings.nginx.include;
    let _locked = installation.generations.lock(Duration::from_secs(60))?;
    sweep(installation)?;
    let survey = installation.survey()?;
    let mut changes = Vec::new();
    match read(include)? {
        None => {
            changes.push(Change::Done(format!("{} was not there", include.display())));
            let active = installation.generations.active()?.manifest;
            if proof::answering(installation.nginx(), &active).is_none() {
                return Ok(changes);
            }
        }
        Some(text) if !is_ours(&text) => {
            return Err(PreparationError::ForeignInclude(include.clone()));
        }
        Some(_) => {
            atomic_file::remove(include)?;
            changes.push(Change::Done(format!("removed {}", include.display())));
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
    if let Some(directory) = installation.settings.nginx.include.parent() {
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
