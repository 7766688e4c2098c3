//! `vhostd setup`

use clap::Args;

use super::{Exit, open, output};
use crate::preparation::{self, Change, PreparationError};
use crate::settings::Settings;

#[derive(Args, Debug)]
pub(super) struct Setup {
    /// Take the include line back; certificates, accounts and generations stay
    #[arg(long)]
    undo: bool,
}

impl Setup {
    pub(super) fn run(self, settings: Settings) -> Exit {
        let installation = match preparation::directories(&settings) {
            Ok(()) => open(settings),
            Err(error) => return failed(&error.into()),
        };
        let installation = match installation {
            Ok(installation) => installation,
            Err(exit) => return exit,
        };
        let changes = match self.undo {
            true => preparation::undo(&installation),
            false => preparation::prepare(&installation),
        };
        match changes {
            Ok(changes) => {
                changes.iter().for_each(say);
                output::success(match self.undo {
                    true => {
                        "nginx no longer reads vhostd's configuration; the state directory is untouched"
                    }
                    false => "this host is prepared",
                });
                if !self.undo {
                    let directory = installation.settings.vhosts_dir.display();
                    output::hint(Some(&format!(
                        "drop a vhost file into {directory}, then `systemctl enable --now vhostd` or `vhostd reload --wait`"
                    )));
                }
                Exit::Done
            }
            Err(error) => failed(&error),
        }
    }
}

fn say(change: &Change) {
    match change {
        Change::Done(what) => output::line(&format!("  {what}")),
        Change::Warning(what) => output::warning(what),
    }
}

fn failed(error: &PreparationError) -> Exit {
    output::error(&format!("failed to {error}"));
    output::hint(error.hint().as_deref());
    Exit::Failed
}
