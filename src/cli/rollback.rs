//! `vhostd rollback`

use std::sync::Arc;

use clap::Args;

use super::reload::{announce, failed, request, through_daemon};
use super::{Exit, hooks, open, output, runtime, verdict};
use crate::control::Request;
use crate::generation::manifest::Reason;
use crate::notice::observe::News;
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
        let (report, news) = match runtime.block_on(through_daemon(&settings, &asked, self.json)) {
            Err(exit) => return exit,
            Ok(Some(report)) => (report, None),
            Ok(None) => match self.by_itself(settings) {
                Err(exit) => return exit,
                Ok((report, news)) => (report, Some(news)),
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
        news.into_iter().for_each(hooks::tell);
        verdict::exit(&report, false)
    }

    fn by_itself(&self, settings: Settings) -> Result<(Report, News), Exit> {
        let installation = Arc::new(open(settings)?);
        let mut news = News::of(installation.clone());
        let mut show = |step: &Step| announce(step, self.json);
        let applied = reconcile::roll_back_to(
            &installation,
            self.generation,
            &request(Reason::Rollback),
            &mut show,
        );
        // what was not rolled back is the caller's to know, and changed nothing
        let applied = applied.map_err(|error| failed(&error))?;
        news.applied(&applied);
        Ok((applied.report, news))
    }
}
