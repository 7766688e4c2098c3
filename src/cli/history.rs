//! `vhostd history`

use clap::Args;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use super::{Exit, output, reload};
use crate::control::Question;
use crate::generation::GenerationStore;
use crate::generation::history::Proof;
use crate::overview::{Past, PastGeneration, past};
use crate::settings::Settings;

#[derive(Args, Debug)]
pub(super) struct History {
    /// Print data for programs
    #[arg(long)]
    json: bool,
}

impl History {
    pub(super) fn run(self, settings: &Settings) -> Exit {
        let past = match shown(settings) {
            Ok(past) => past,
            Err(exit) => return exit,
        };
        if self.json {
            output::json(&past);
        } else if past.generations.is_empty() {
            output::line("no generation has been activated yet");
        } else {
            let lines = past.generations.iter().map(as_line);
            lines.for_each(|line| output::line(&line));
        }
        Exit::Done
    }
}

/// As `status`: of the daemon, or as it is on disk.
fn shown(settings: &Settings) -> Result<Past, Exit> {
    if let Some(past) = reload::asked(settings, Question::History)? {
        return Ok(past);
    }
    past(&GenerationStore::new(&settings.state_dir)).map_err(|error| {
        output::error(&format!("failed to {error}"));
        output::hint(error.hint());
        Exit::Failed
    })
}

fn as_line(entry: &PastGeneration) -> String {
    let minute = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    let at = entry.activated_at.as_deref().unwrap_or_default();
    let at = OffsetDateTime::parse(at, &Rfc3339).ok();
    let at = at
        .and_then(|at| at.format(&minute).ok())
        .unwrap_or_default();
    let state = match entry.result {
        Proof::RolledBack => output::bad(&format!(
            "rolled back: {}",
            entry.error.as_deref().unwrap_or("")
        )),
        _ if entry.active => output::good("active"),
        Proof::NginxDown => output::doubtful("nginx was down"),
        Proof::Unknown => output::doubtful("not known: the history was lost"),
        Proof::Proven if entry.kept => String::new(),
        Proof::Proven => output::faint("no longer kept"),
    };
    let reason = entry.reason.to_string();
    format!(
        "{:>6}  {at} UTC  {reason:<11}  {:<24}  {state}",
        entry.generation, entry.changes
    )
    .trim_end()
    .to_owned()
}
