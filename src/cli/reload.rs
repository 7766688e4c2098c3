//! `vhostd reload`

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::de::DeserializeOwned;

use super::stop::until_stopped;
use super::{Exit, hooks, open, output, runtime, verdict};
use crate::certificate::Issuer;
use crate::clock;
use crate::control::{Line, Question, Request, client};
use crate::generation::manifest::Reason;
use crate::installation::Installation;
use crate::notice::observe::News;
use crate::obtain::{Obtaining, obtain_due, obtain_internal};
use crate::reconcile::pin::{self, Requester};
use crate::reconcile::report::{CertificateSummary, Report, Step};
use crate::reconcile::{self, Applied, ReconcileError};
use crate::settings::Settings;

#[derive(Args, Debug)]
pub(super) struct Reload {
    /// Let the exit status speak of these vhosts only
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Also wait for the certificates
    #[arg(long)]
    wait: bool,
    /// Print data for programs
    #[arg(long)]
    json: bool,
}

/// Whoever else reconciles is waited for this long.
pub(super) const LOCK_LIMIT: Duration = Duration::from_secs(120);

impl Reload {
    pub(super) fn run(self, settings: Settings) -> Exit {
        let Some(runtime) = runtime() else {
            return Exit::Failed;
        };
        let request = Request::Reload {
            wait: self.wait,
            names: self.names.clone(),
        };
        let answer = runtime.block_on(through_daemon(&settings, &request, self.json));
        match answer {
            Err(exit) => exit,
            Ok(Some(report)) => self.conclude(report),
            Ok(None) => {
                let installation = match open(settings) {
                    Ok(installation) => Arc::new(installation),
                    Err(exit) => return exit,
                };
                let mut news = News::of(installation.clone());
                let exit = match self.by_itself(&installation, &mut news, &runtime) {
                    Err(exit) => exit,
                    Ok(report) => self.conclude(report),
                };
                hooks::tell(news);
                exit
            }
        }
    }

    fn by_itself(
        &self,
        installation: &Installation,
        news: &mut News,
        runtime: &tokio::runtime::Runtime,
    ) -> Result<Report, Exit> {
        let mut run = |reason, reloads| {
            let request = request(reason);
            let mut show = |step: &Step| announce(step, self.json);
            let applied = reconcile::reconcile(installation, &request, reloads, &mut show);
            news.reconciled(&applied);
            applied.map_err(|error| failed(&error, self.json))
        };
        let reload = pin::Reload {
            by: Requester::Admin,
            names: self.names.clone(),
        };
        let applied = run(Reason::Reload, vec![reload])?;
        if !applied.report.succeeded() {
            return Ok(applied.report);
        }
        let failed = |error| output::failed(&error);
        let obtaining = Obtaining::new(installation, clock::system()).map_err(failed)?;
        let (summary, stored) = if self.wait {
            let summary = until_stopped(runtime, obtain_due(&obtaining, &applied.wanted))?;
            let summary = summary.map_err(failed)?;
            let stored = !summary.ordered.is_empty();
            (summary, stored)
        } else {
            let stored = sign_internal(installation, &applied, runtime)?;
            let mut summary = CertificateSummary::default();
            let added = summary.add_failing(&obtaining, &applied.wanted);
            added.map_err(failed)?;
            (summary, stored)
        };
        let mut report = match stored {
            false => applied.report,
            true => run(Reason::Certificate, Vec::new())?.report,
        };
        report.certificates = summary;
        Ok(report)
    }

    fn conclude(&self, report: Report) -> Exit {
        let unknown = verdict::unknown(&self.names, &report);
        let concerning = verdict::concerning(report.clone(), &self.names);
        if self.json {
            output::json(&report);
        } else {
            verdict::say(&concerning, self.wait);
        }
        for name in &unknown {
            output::error(&format!("there is no vhost `{name}`"));
        }
        match unknown.is_empty() {
            true => verdict::exit(&concerning, self.wait),
            false => Exit::Usage,
        }
    }
}

/// Without a daemon: obtains what vhostd's own CA has yet to sign, and was not signed under the lock.
/// Whether there is something new to serve.
pub(super) fn sign_internal(
    installation: &Installation,
    applied: &Applied,
    runtime: &tokio::runtime::Runtime,
) -> Result<bool, Exit> {
    let mut issuers = applied.wanted.iter().map(|wanted| wanted.issuer);
    if !applied.report.succeeded() || issuers.all(|issuer| issuer != Issuer::Internal) {
        return Ok(false);
    }
    let failed = |error| output::failed(&error);
    let obtaining = Obtaining::new(installation, clock::system()).map_err(failed)?;
    let signing = obtain_internal(&obtaining, &applied.wanted);
    until_stopped(runtime, signing)?.map_err(failed)
}

/// Asks the daemon, where one runs; `None` where none does. `json`: what is printed is for programs.
pub(super) async fn through_daemon(
    settings: &Settings,
    request: &Request,
    json: bool,
) -> Result<Option<Report>, Exit> {
    let mut report = None;
    let mut failure = None;
    let asked = ask_daemon(settings, request, json, |line| match line {
        Line::Step(step) => announce(&step, json),
        Line::Report(ended) => report = Some(*ended),
        Line::Error(error) => failure = Some(error),
        Line::Renewed(_) | Line::Warning(_) => {}
    });
    if !asked.await? {
        return Ok(None);
    }
    match (report, failure) {
        (Some(report), _) => Ok(Some(report)),
        (None, Some(failure)) => {
            let error = format!("failed to {}", failure.message);
            output::failure(&error, failure.hint.as_deref(), json);
            Err(if failure.exit == 2 {
                Exit::Usage
            } else {
                Exit::Failed
            })
        }
        (None, None) => Err(Exit::Failed),
    }
}

/// What the daemon answers, where one runs that can.
pub(super) fn asked<T: DeserializeOwned>(
    settings: &Settings,
    question: Question,
) -> Result<Option<T>, Exit> {
    let Some(runtime) = runtime() else {
        return Err(Exit::Failed);
    };
    let socket = settings.control_socket();
    let answer = runtime.block_on(async {
        match client::connect(&socket).await {
            Ok(Some(stream)) => client::look(stream, &socket, question).await,
            // who may not talk to the daemon may still read what is on disk, or is told that he may not
            _ => Ok(None),
        }
    });
    match answer {
        Ok(Some(Ok(answer))) => Ok(Some(answer)),
        // what its own disk keeps from it may be readable all the same
        Ok(Some(Err(failure))) => {
            output::warning(&format!("the daemon failed to {}", failure.message));
            output::hint(failure.hint.as_deref());
            Ok(None)
        }
        Ok(None) | Err(_) => Ok(None),
    }
}

/// Whether a daemon was there to be asked.
pub(super) async fn ask_daemon(
    settings: &Settings,
    request: &Request,
    json: bool,
    each: impl FnMut(Line),
) -> Result<bool, Exit> {
    let socket = settings.control_socket();
    let failed = |error: client::ControlError| {
        output::failure(&format!("failed to {error}"), error.hint(), json);
        Exit::Failed
    };
    let Some(stream) = client::connect(&socket).await.map_err(failed)? else {
        return Ok(false);
    };
    client::ask(stream, &socket, request, each)
        .await
        .map_err(failed)?;
    Ok(true)
}

pub(super) fn request(reason: Reason) -> reconcile::Request {
    reconcile::Request {
        reason,
        now: clock::system()(),
        lock_limit: LOCK_LIMIT,
    }
}

pub(super) fn announce(step: &Step, quiet: bool) {
    if !quiet {
        output::step(step);
    }
}

pub(super) fn failed(error: &ReconcileError, json: bool) -> Exit {
    let nothing = "nothing was changed; what served before still serves";
    let hint = error.hint().unwrap_or(nothing);
    output::failure(&format!("failed to {error}"), Some(hint), json);
    Exit::Failed
}
