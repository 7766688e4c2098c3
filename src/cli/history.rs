//! `vhostd history`

use clap::Args;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use super::{Exit, output};
use crate::generation::history::{self, HistoryEntry, Proof};
use crate::generation::{GenerationError, GenerationStore};
use crate::settings::Settings;

#[derive(Args, Debug)]
pub(super) struct History {
    /// Print data for programs
    #[arg(long)]
    json: bool,
}

impl History {
    pub(super) fn run(self, settings: &Settings) -> Exit {
        let store = GenerationStore::new(&settings.state_dir);
        let (active, kept, history) = match read(&store) {
            Ok(read) => read,
            Err(error) => {
                output::error(&format!("failed to {error}"));
                output::hint(error.hint());
                return Exit::Failed;
            }
        };
        let newest_first = || history.entries().iter().rev();
        if self.json {
            let entries: Vec<_> = newest_first()
                .map(|entry| as_json(entry, active, &kept))
                .collect();
            output::json(&serde_json::json!({ "active": active, "generations": entries }));
        } else if history.entries().is_empty() {
            output::line("no generation has been activated yet");
        } else {
            newest_first().for_each(|entry| output::line(&as_line(entry, active, &kept)));
        }
        Exit::Done
    }
}

fn read(store: &GenerationStore) -> Result<(u64, Vec<u64>, history::History), GenerationError> {
    Ok((store.active_number()?, store.numbers()?, store.history()?))
}

fn as_json(entry: &HistoryEntry, active: u64, kept: &[u64]) -> serde_json::Value {
    serde_json::json!({
        "generation": entry.generation,
        "activated_at": entry.at.format(&Rfc3339).ok(),
        "reason": entry.reason,
        "result": entry.result,
        "changes": entry.changes,
        "error": entry.why,
        "active": entry.generation == active,
        "kept": kept.contains(&entry.generation),
    })
}

fn as_line(entry: &HistoryEntry, active: u64, kept: &[u64]) -> String {
    let minute = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    let at = entry.at.format(&minute).unwrap_or_default();
    let state = match entry.result {
        Proof::RolledBack => output::bad(&format!(
            "rolled back: {}",
            entry.why.as_deref().unwrap_or("")
        )),
        _ if entry.generation == active => output::good("active"),
        Proof::NginxDown => output::doubtful("nginx was down"),
        Proof::Unknown => output::doubtful("not known: the history was lost"),
        Proof::Proven if kept.contains(&entry.generation) => String::new(),
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
