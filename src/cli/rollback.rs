//! `vhostd rollback`

use std::sync::Arc;

use clap::Args;

use super::reload::{announce, failed, request, sign_internal, through_daemon};
use super::{Exit, hooks, open, output, runtime, verdict};
use crate::control::Request;
use crate::generation::manifest::Reason;
use crate::notice::observe::News;
use crate::reconcile;
use crate::reconcile::report::{Report, Step};
use crate::reconcile::rollback::{self, roll_back_to};
use crate::settings::Settings;
use crate::vhost::AppName;

#[derive(Args, Debug)]
pub(super) struct Rollback {
    /// Apps, as their files are called, default: all; and the generation to return to, default: the
    /// newest one whose vhosts differ from those that serve
    #[arg(value_name = "NAME|N")]
    words: Vec<String>,
    /// The generation to return to; every other word is an app then
    #[arg(long, value_name = "N")]
    to: Option<u64>,
    /// Print data for programs
    #[arg(long)]
    json: bool,
}

impl Rollback {
    pub(super) fn run(self, settings: Settings) -> Exit {
        let rollback = match meant(&self.words, self.to) {
            Ok(rollback) => rollback,
            Err(error) => {
                let hint = "as in `vhostd rollback hello --to 12`";
                output::failure(&error, Some(hint), self.json);
                return Exit::Usage;
            }
        };
        let Some(runtime) = runtime() else {
            return Exit::Failed;
        };
        let asked = Request::from(rollback.clone());
        let (report, news) = match runtime.block_on(through_daemon(&settings, &asked, self.json)) {
            Err(exit) => return exit,
            Ok(Some(report)) => (report, None),
            Ok(None) => match self.by_itself(&rollback, settings, &runtime) {
                Err(exit) => return exit,
                Ok((report, news)) => (report, Some(news)),
            },
        };
        if self.json {
            output::json(&report);
        } else {
            verdict::say(&report, false);
            if report.succeeded() {
                output::hint(Some(&holds_until(&rollback.apps)));
            }
        }
        news.into_iter().for_each(hooks::tell);
        verdict::exit(&report, false)
    }

    fn by_itself(
        &self,
        rollback: &rollback::Rollback,
        settings: Settings,
        runtime: &tokio::runtime::Runtime,
    ) -> Result<(Report, News), Exit> {
        let installation = Arc::new(open(settings)?);
        let mut news = News::of(installation.clone());
        let mut show = |step: &Step| announce(step, self.json);
        let asked = request(Reason::Rollback);
        let applied = roll_back_to(&installation, rollback, &asked, &mut show);
        // what was not rolled back is the caller's to know, and changed nothing
        let applied = applied.map_err(|error| failed(&error, self.json))?;
        news.applied(&applied);
        let report = match sign_internal(&installation, &applied, runtime)? {
            false => applied.report,
            true => {
                let request = request(Reason::Certificate);
                let refreshed = reconcile::refresh(&installation, &request, &mut |_| {});
                news.reconciled(&refreshed);
                refreshed.map_err(|error| failed(&error, self.json))?.report
            }
        };
        Ok((report, news))
    }
}

/// A number is a generation, a word an app; beside `--to` every word is an app.
fn meant(words: &[String], to: Option<u64>) -> Result<rollback::Rollback, String> {
    let mut meant = rollback::Rollback {
        generation: to,
        apps: Vec::new(),
    };
    for word in words {
        match word.parse::<u64>() {
            Ok(number) if to.is_none() => {
                if let Some(other) = meant.generation.replace(number) {
                    return Err(format!("there are two generations, {other} and {number}"));
                }
            }
            _ => {
                let app: AppName = word
                    .parse()
                    .map_err(|_| format!("`{word}` is neither an app nor a generation"))?;
                if !meant.apps.contains(&app) {
                    meant.apps.push(app);
                }
            }
        }
    }
    Ok(meant)
}

fn holds_until(apps: &[AppName]) -> String {
    let names: Vec<&str> = apps.iter().map(AppName::as_str).collect();
    let until = match names.as_slice() {
        [] => "a vhost file changes (for that app) or you run `vhostd reload`".to_owned(),
        [name] => format!("its vhost file changes or you run `vhostd reload {name}`"),
        _ => format!(
            "one of their vhost files changes (for that app) or you run `vhostd reload {}`",
            names.join(" ")
        ),
    };
    format!("it holds until {until}; the files themselves were not touched")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_generation_a_word_an_app_and_beside_to_every_word_is_an_app() {
        let meant = |words: &[&str], to| {
            let words: Vec<String> = words.iter().map(ToString::to_string).collect();
            let meant = meant(&words, to)?;
            let apps: Vec<String> = meant.apps.iter().map(ToString::to_string).collect();
            Ok::<_, String>((meant.generation, apps.join(" ")))
        };
        for (words, to, expected) in [
            (&[][..], None, (None, "")),
            (&["12"], None, (Some(12), "")),
            (&["a"], None, (None, "a")),
            (&["a", "b", "12"], None, (Some(12), "a b")),
            (&["12", "a"], None, (Some(12), "a")),
            (&[], Some(3), (Some(3), "")),
            (&["12", "a", "a"], Some(3), (Some(3), "12 a")),
        ] {
            let expected = (expected.0, expected.1.to_owned());
            assert_eq!(meant(words, to), Ok(expected), "{words:?} {to:?}");
        }
        for words in [&["1", "2"][..], &["a#2"], &["../a"], &[""]] {
            assert!(meant(words, None).is_err(), "{words:?}");
        }
    }
}
