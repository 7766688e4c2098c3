//! `vhostd hooks test`, and what a command tells by itself where no daemon runs.

use std::time::Instant;

use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::task::JoinSet;

use super::{Exit, output, runtime};
use crate::clock;
use crate::notice::Notice;
use crate::notice::herald;
use crate::notice::observe::{News, host_name};
use crate::notice::secret::exposures;
use crate::notice::send::send;
use crate::settings::Settings;
use crate::settings::hooks::Hook;
use crate::settings::proxy::ProxySettings;

#[derive(Args, Debug)]
pub(super) struct Hooks {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Send a test message to every hook, and say what became of each
    Test {
        /// Print data for programs
        #[arg(long)]
        json: bool,
    },
}

#[derive(Serialize)]
struct Tested {
    hooks: Vec<TestedHook>,
}

#[derive(Serialize)]
struct TestedHook {
    hook: String,
    kind: &'static str,
    delivered: bool,
    ms: f64,
    error: Option<String>,
    hint: Option<&'static str>,
}

impl Hooks {
    pub(super) fn run(self, settings: &Settings) -> Exit {
        let Verb::Test { json } = self.verb;
        let hooks = settings.hooks.all();
        if hooks.is_empty() && !json {
            output::error("there is no hook to test");
            output::hint(Some(
                "set `hooks.on_failure` or `hooks.on_change` in the settings: docs/hooks.md",
            ));
            return Exit::Failed;
        }
        let Some(runtime) = runtime() else {
            return Exit::Failed;
        };
        let hooks = hooks.into_iter();
        let hooks = hooks.map(|(label, hook)| (label, hook.clone())).collect();
        let tested = runtime.block_on(test(hooks, &settings.acme.proxy));
        // whoever hangs in a look-up of a name is not waited for
        runtime.shutdown_background();
        let failed = tested.is_empty() || tested.iter().any(|hook| !hook.delivered);
        if json {
            output::json(&Tested { hooks: tested });
        } else {
            tested.iter().for_each(say);
        }
        for exposure in exposures(&settings.hooks) {
            output::warning(&exposure);
        }
        match failed {
            true => Exit::Failed,
            false => Exit::Done,
        }
    }
}

/// All at once, in the order of the settings.
async fn test(hooks: Vec<(String, Hook)>, proxy: &ProxySettings) -> Vec<TestedHook> {
    let notice = Notice::test(clock::system()());
    let host = host_name();
    let mut running = JoinSet::new();
    for (index, (label, hook)) in hooks.into_iter().enumerate() {
        let (notice, host, proxy) = (notice.clone(), host.clone(), proxy.clone());
        running.spawn(async move {
            let begin = Instant::now();
            let sent = send(&hook, &notice, &host, &proxy, herald::ANSWER_LIMIT).await;
            let tested = TestedHook {
                hook: label,
                kind: hook.kind(),
                delivered: sent.is_ok(),
                ms: begin.elapsed().as_secs_f64() * 1000.0,
                hint: sent.as_ref().err().and_then(|error| error.hint()),
                error: sent.err().map(|error| format!("failed to {error}")),
            };
            (index, tested)
        });
    }
    let mut tested = running.join_all().await;
    tested.sort_by_key(|(index, _)| *index);
    tested.into_iter().map(|(_, tested)| tested).collect()
}

fn say(tested: &TestedHook) {
    match &tested.error {
        None => output::success(&format!(
            "{}: delivered in {:.0} ms",
            tested.hook, tested.ms
        )),
        Some(error) => {
            output::error(&format!("{}: {error}", tested.hook));
            output::hint(tested.hint);
        }
    }
}

/// What a daemon would tell by itself.
pub(super) fn tell(news: News) {
    let waiting = herald::tell(news, clock::system());
    for warning in &waiting {
        output::warning(warning);
    }
    if !waiting.is_empty() {
        output::hint(Some("the daemon tries again, or the next command"));
    }
}
