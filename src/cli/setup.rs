//! `vhostd setup`

use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::{Exit, output};
use crate::clock;
use crate::installation::Installation;
use crate::preparation::{self, Change, PreparationError};
use crate::settings::Settings;

#[derive(Args, Debug)]
pub(super) struct Setup {
    /// Take the include line back; certificates, accounts and generations stay
    #[arg(long)]
    undo: bool,
    /// Print data for programs
    #[arg(long)]
    json: bool,
}

/// What `--json` shows.
#[derive(Serialize)]
struct Prepared {
    /// What was made, or taken back.
    done: Vec<String>,
    warnings: Vec<String>,
    error: Option<String>,
    hint: Option<String>,
}

impl Setup {
    pub(super) fn run(self, settings: Settings) -> Exit {
        let vhosts_dir = settings.vhosts_dir.clone();
        let changes = self.changes(settings);
        if self.json {
            output::json(&Prepared::of(&changes));
            return match changes {
                Ok(_) => Exit::Done,
                Err(_) => Exit::Failed,
            };
        }
        match changes {
            Ok(changes) => {
                changes.iter().for_each(say);
                self.conclude(&vhosts_dir);
                Exit::Done
            }
            Err((error, hint)) => {
                output::error(&error);
                output::hint(hint.as_deref());
                Exit::Failed
            }
        }
    }

    /// The error, and what to do about it.
    fn changes(&self, settings: Settings) -> Result<Vec<Change>, (String, Option<String>)> {
        let failed = |error: PreparationError| (format!("failed to {error}"), error.hint());
        preparation::directories(&settings).map_err(|error| failed(error.into()))?;
        let installation = Installation::open(settings, clock::system()()).map_err(|error| {
            let hint = error.hint().map(str::to_owned);
            (format!("failed to {error}"), hint)
        })?;
        match self.undo {
            true => preparation::undo(&installation).map_err(failed),
            false => preparation::prepare(&installation).map_err(failed),
        }
    }

    fn conclude(&self, vhosts_dir: &Path) {
        if self.undo {
            output::success(
                "nginx no longer reads vhostd's configuration; the state directory is untouched",
            );
            return;
        }
        output::success("this host is prepared");
        output::hint(Some(&format!(
            "drop a vhost file into {}, then `systemctl enable --now vhostd` or `vhostd reload --wait`",
            vhosts_dir.display()
        )));
    }
}

impl Prepared {
    fn of(changes: &Result<Vec<Change>, (String, Option<String>)>) -> Self {
        let mut prepared = Self {
            done: Vec::new(),
            warnings: Vec::new(),
            error: None,
            hint: None,
        };
        match changes {
            Ok(changes) => {
                for change in changes {
                    match change {
                        Change::Done(what) => prepared.done.push(what.clone()),
                        Change::Warning(what) => prepared.warnings.push(what.clone()),
                    }
                }
            }
            Err((error, hint)) => {
                prepared.error = Some(error.clone());
                prepared.hint.clone_from(hint);
            }
        }
        prepared
    }
}

fn say(change: &Change) {
    match change {
        Change::Done(what) => output::line(&format!("  {what}")),
        Change::Warning(what) => output::warning(what),
    }
}
