//! `vhostd adopt`

mod survey; // R lineages and vhosts → what is to be done about each lineage
mod words; // W what became of it, for people and for programs

use std::path::{Path, PathBuf};

use clap::Args;

use super::reload::{announce, failed, request, sign_internal, through_daemon};
use super::{Exit, open, runtime, verdict};
use crate::adoption::lineage::LineageError;
use crate::adoption::standing::{Standing, Use};
use crate::adoption::{self, AdoptError, Stores, Undone};
use crate::clock;
use crate::control::Request;
use crate::generation::manifest::Reason;
use crate::installation::Installation;
use crate::reconcile;
use crate::reconcile::pin::Reload;
use crate::reconcile::report::Report;
use crate::settings::Settings;
use survey::{Found, Surveyor, all, place};
use words::Told;

#[derive(Args, Debug)]
pub(super) struct Adopt {
    /// certbot's names of certificates, or directories below its `live`; default: list all
    #[arg(value_name = "NAME|DIR")]
    names: Vec<String>,
    /// certbot's configuration directory
    #[arg(long, value_name = "DIR", default_value = CERTBOT)]
    config_dir: PathBuf,
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Let certbot renew them again
    #[arg(long, requires = "names", conflicts_with = "dry_run")]
    undo: bool,
    /// Print data for programs
    #[arg(long)]
    json: bool,
}

impl Adopt {
    pub(super) fn run(self, settings: Settings) -> Exit {
        let mut told = Told::new(self.json);
        let exit = match self.undo {
            true => self.give_back(&mut told),
            false => self.take(settings, &mut told),
        };
        told.end();
        exit
    }

    fn take(&self, settings: Settings, told: &mut Told) -> Exit {
        let surveyor = match Surveyor::new(&settings, clock::system()()) {
            Ok(surveyor) => surveyor,
            Err(error) => {
                told.failed(
                    &error,
                    Some("run it as root; `vhostd setup` prepares a host"),
                );
                return Exit::Failed;
            }
        };
        if self.names.is_empty() {
            return self.list(&surveyor, told);
        }
        let mut exit = Exit::Done;
        let mut adoptable = Vec::new();
        for (config_dir, name) in self.places() {
            match surveyor.find(&config_dir, &name) {
                Err(error @ LineageError::None(_)) => {
                    told.unknown(&name, &error);
                    exit = exit.max(Exit::Usage);
                }
                Err(error) => {
                    told.unreadable(&name, &error);
                    exit = exit.max(Exit::Failed);
                }
                Ok(found) => match found.standing.clone() {
                    Standing::Adoptable(uses) if !self.dry_run => adoptable.push((found, uses)),
                    Standing::Refused(refusal) => {
                        told.refused(&found, &refusal);
                        exit = exit.max(Exit::Failed);
                    }
                    _ => told.listed(&found),
                },
            }
        }
        match adoptable.is_empty() {
            true => exit,
            false => exit.max(adopt(&adoptable, settings, told)),
        }
    }

    fn list(&self, surveyor: &Surveyor, told: &mut Told) -> Exit {
        let names = match all(&self.config_dir) {
            Ok(names) => names,
            Err(error) => {
                let error = format!("list certbot's certificates: {error}");
                told.failed(&error, Some("run it as root"));
                return Exit::Failed;
            }
        };
        if names.is_empty() {
            told.nothing(&self.config_dir);
        }
        for name in names {
            match surveyor.find(&self.config_dir, &name) {
                Ok(found) => told.listed(&found),
                Err(error) => told.unreadable(&name, &error),
            }
        }
        Exit::Done
    }

    fn give_back(&self, told: &mut Told) -> Exit {
        let mut exit = Exit::Done;
        for (config_dir, name) in self.places() {
            match adoption::undo(&config_dir, &name) {
                Ok(undone) => told.undone(&name, undone == Undone::TurnedOn),
                Err(error) => {
                    told.not_undone(&name, &error);
                    exit = exit.max(match error {
                        AdoptError::Lineage(LineageError::None(_)) => Exit::Usage,
                        _ => Exit::Failed,
                    });
                }
            }
        }
        exit
    }

    fn places(&self) -> impl Iterator<Item = (PathBuf, String)> {
        let names = self.names.iter();
        names.map(|name| place(name, &self.config_dir))
    }
}

/// Stores, makes them serve, and then only turns certbot off.
fn adopt(adoptable: &[(Found, Vec<Use>)], settings: Settings, told: &mut Told) -> Exit {
    let installation = match open(settings) {
        Ok(installation) => installation,
        Err(exit) => return exit,
    };
    let stores = Stores {
        certificates: &installation.certificates,
        ledger: &installation.ledger,
    };
    let (mut exit, mut imported) = (Exit::Done, Vec::new());
    for (found, uses) in adoptable {
        let wanted: Vec<_> = uses.iter().map(|it| it.wanted.clone()).collect();
        match adoption::import(&found.lineage, &wanted, stores, clock::system()()) {
            Ok(stored) => {
                told.imported(found, &stored);
                imported.push((found, uses, stored));
            }
            Err(error) => {
                told.not_adopted(found, &format!("failed to {error}"), error.hint());
                exit = Exit::Failed;
            }
        }
    }
    if imported.is_empty() {
        return exit;
    }
    let report = match serve(&installation, told.is_quiet()) {
        Ok(report) => report,
        Err(failed) => return failed,
    };
    for (found, uses, stored) in imported {
        let vhosts: Vec<String> = uses.iter().map(|it| it.vhost.clone()).collect();
        let mine = verdict::concerning(report.clone(), &vhosts);
        if verdict::exit(&mine, false) != Exit::Done {
            let rejected = mine.rejected.first();
            let (why, hint) = match (&mine.error, rejected) {
                (None, Some(rejected)) => (Some(&rejected.reason), rejected.hint.as_deref()),
                (error, _) => (error.as_ref(), mine.hint.as_deref()),
            };
            let why = why.map_or("its vhost is not served", String::as_str);
            told.not_adopted(found, why, hint);
            exit = Exit::Failed;
            continue;
        }
        let undo = words::undo_command(found);
        match adoption::turn_off(&found.lineage.config_dir, &found.lineage.name, &undo) {
            Ok(()) => told.adopted(found, &stored),
            Err(error) => {
                told.not_adopted(found, &format!("failed to {error}"), error.hint());
                exit = Exit::Failed;
            }
        }
    }
    exit
}

/// The manual reload: through the daemon where one runs, else by ourselves under the same lock.
fn serve(installation: &Installation, quiet: bool) -> Result<Report, Exit> {
    let runtime = runtime().ok_or(Exit::Failed)?;
    let settings = &installation.settings;
    let reload = Request::Reload {
        wait: false,
        names: Vec::new(),
    };
    if let Some(report) = runtime.block_on(through_daemon(settings, &reload, quiet))? {
        return Ok(report);
    }
    let mut show = |step: &_| announce(step, quiet);
    let mut run = |reason, reloads| {
        let request = request(reason);
        let applied = reconcile::reconcile(installation, &request, reloads, &mut show);
        applied.map_err(|error| failed(&error, false))
    };
    let applied = run(Reason::Reload, vec![Reload::OF_ALL])?;
    if !sign_internal(installation, &applied, &runtime)? {
        return Ok(applied.report);
    }
    Ok(run(Reason::Certificate, Vec::new())?.report)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

const CERTBOT: &str = "/etc/letsencrypt";
