//! `vhostd rollback`

use clap::Args;

use super::reload::{announce, failed, request, through_daemon};
use super::{Exit, open, output, runtime, verdict};
use crate::control::Request;
use crate::generation::manifest::Reason;
use crate::reconcile;
use crate::reconcile::report::{Report, Step};
use crate::settings::Settings;

#[derive(Args, Debug)]
pub(super) struct Rollback {
    /// The generation to return to; default: the one that served before
    #[arg(value_name = "N")]
    generation: Option<u64>,
    /// Print data for programs
    #[arg(long)]
    json: bool,
}

impl Rollback {
    pub(super) fn run(self, settings: Settings) -> Exit {
        let Some(runtime) = runtime() else {
            return Exit::Failed;
        };
        let generation = self.generation;
        let asked = Request::Rollback { generation };
        let report = match runtime.block_on(through_daemon(&settings, &asked, self.json)) {
            Err(exit) => return exit,
            Ok(Some(report)) => report,
            Ok(None) => match self.by_itself(settings) {
                Err(exit) => return exit,
                Ok(report) => report,
            },
        };
        if self.json {
            output::json(&report);
        } else {
            verdict::say(&report, false);
            if report.succeeded() {
                output::hint(Some(
                    "it holds until a vhost file changes or you run `vhostd reload`; the files themselves were not touched",
                ));
            }
        }
        verdict::exit(&report, false)
    }

    fn by_itself(&self, settings: Settings) -> Result<Report, Exit> {
        let installation = open(settings)?;
        let mut show = |step: &Step| announce(step, self.json);
        let applied = reconcile::roll_back_to(
            &installation,
            self.generation,
            &request(Reason::Rollback),
            &mut show,
        );
        applied
            .map(|applied| applied.report)
            .map_err(|error| failed(&error))
    }
}
