//! `vhostd renew`

mod rehearsal; // `vhostd renew --dry-run`

use std::sync::Arc;

use clap::Args;

use rehearsal::rehearse;

use super::reload::{self, ask_daemon, request};
use super::stop::until_stopped;
use super::{Exit, hooks, open, output, runtime};
use crate::clock;
use crate::control::{Line, RenewalResult, Renewed, RenewedCertificate, Request};
use crate::generation::manifest::Reason;
use crate::installation::Installation;
use crate::notice::herald;
use crate::notice::observe::News;
use crate::obtain::{Obtaining, Selection, renew};
use crate::reconcile;
use crate::reconcile::report::Step;
use crate::settings::Settings;
use crate::status::StatusRecord;

#[derive(Args, Debug)]
pub(super) struct Renew {
    /// Vhosts, server names or certificates; default: all that are due
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Renew even what is not due
    #[arg(long)]
    force: bool,
    /// Order from the CA's staging area, and install nothing
    #[arg(long)]
    dry_run: bool,
    /// Print data for programs
    #[arg(long)]
    json: bool,
}

impl Renew {
    /// `names` now, due or not.
    pub(super) fn forced(names: Vec<String>) -> Self {
        Self {
            names,
            force: true,
            dry_run: false,
            json: false,
        }
    }

    pub(super) fn run(self, settings: Settings) -> Exit {
        match self.obtain(settings) {
            Ok(renewed) => self.conclude(&renewed),
            Err(exit) => exit,
        }
    }

    pub(super) fn obtain(&self, settings: Settings) -> Result<Renewed, Exit> {
        let Some(runtime) = runtime() else {
            return Err(Exit::Failed);
        };
        if self.dry_run {
            return rehearse(&self.names, &settings, &runtime);
        }
        let request = Request::Renew {
            names: self.names.clone(),
            force: self.force,
        };
        let (mut renewed, mut failure) = (None, None);
        let asked = ask_daemon(&settings, &request, self.json, |line| match line {
            Line::Renewed(ended) => renewed = Some(ended),
            Line::Error(error) => failure = Some(error),
            Line::Warning(risk) => output::warning(&risk),
            Line::Step(_) | Line::Report(_) => {}
        });
        match runtime.block_on(asked)? {
            false => self.by_itself(settings, &runtime),
            true => match (renewed, failure) {
                (Some(renewed), _) => Ok(renewed),
                (None, Some(failure)) => {
                    output::failure(&failure.message, failure.hint.as_deref(), self.json);
                    Err(match failure.exit {
                        2 => Exit::Usage,
                        _ => Exit::Failed,
                    })
                }
                (None, None) => Err(Exit::Failed),
            },
        }
    }

    fn by_itself(
        &self,
        settings: Settings,
        runtime: &tokio::runtime::Runtime,
    ) -> Result<Renewed, Exit> {
        let installation = Arc::new(open(settings)?);
        let mut news = News::of(installation.clone());
        let renewed = self.obtain_with(&installation, &mut news, runtime);
        if news.nginx_runs() {
            herald::look_at_what_is_served(&installation, &clock::system());
        }
        hooks::tell(news);
        renewed
    }

    fn obtain_with(
        &self,
        installation: &Installation,
        news: &mut News,
        runtime: &tokio::runtime::Runtime,
    ) -> Result<Renewed, Exit> {
        let mut refresh = || {
            let mut quiet = |_: &Step| {};
            let request = request(Reason::Certificate);
            let applied = reconcile::refresh(installation, &request, &mut quiet);
            news.reconciled(&applied);
            applied.map_err(|error| reload::failed(&error, self.json))
        };
        let applied = refresh()?;
        if !applied.report.succeeded() {
            output::warning(
                applied
                    .report
                    .error
                    .as_deref()
                    .unwrap_or("the vhosts could not be activated"),
            );
        }
        let record = StatusRecord::read(&installation.settings.state_dir);
        let vhosts = record
            .map(|record| record.certificates_of_vhosts())
            .unwrap_or_default();
        let selection =
            Selection::new(&self.names, self.force, &applied.wanted, &vhosts).map_err(|name| {
                output::error(&format!("there is no vhost or certificate `{name}`"));
                Exit::Usage
            })?;
        let failed = |error| output::failed(&error);
        let obtaining = Obtaining::new(installation, clock::system()).map_err(failed)?;
        let warn = |risk: String| output::warning(&risk);
        let renewing = renew(&obtaining, &applied.wanted, &selection, warn);
        let renewed = until_stopped(runtime, renewing)?.map_err(failed)?;
        let any = renewed
            .certificates
            .iter()
            .any(|one| one.result == RenewalResult::Renewed);
        if any {
            let report = refresh()?.report;
            if let Some(unserved) = report.unserved() {
                output::error(&unserved);
                output::hint(report.hint.as_deref());
                return Err(Exit::Failed);
            }
        }
        Ok(renewed)
    }

    fn conclude(&self, renewed: &Renewed) -> Exit {
        let failed = renewed
            .certificates
            .iter()
            .any(|one| one.result == RenewalResult::Failed || !one.missing_identifiers.is_empty());
        if self.json {
            output::json(renewed);
        } else {
            say(renewed);
        }
        match failed {
            true => Exit::CertificateMissing,
            false => Exit::Done,
        }
    }
}

/// Of a URL, with its port.
pub(super) fn host(directory: &str) -> &str {
    let behind = directory.split_once("://").map_or(directory, |(_, it)| it);
    behind.split('/').next().unwrap_or_default()
}

/// What was renewed all the same.
fn say_missing(one: &RenewedCertificate) {
    let (name, missing) = (&one.name, one.missing_identifiers.join(", "));
    if !missing.is_empty() {
        let why = one.error.as_deref().unwrap_or("failed before");
        output::warning(&format!("{name}: without {missing}: failed to {why}"));
        output::hint(Some(&format!(
            "it is tried again by itself; `vhostd renew {name}` tries now"
        )));
    }
}

pub(super) fn say(renewed: &Renewed) {
    let mut nothing = true;
    for one in &renewed.certificates {
        let until = one.not_after.as_deref().unwrap_or("-");
        let next = one.next.as_deref().unwrap_or("-");
        match one.result {
            RenewalResult::Renewed => {
                let by = one
                    .directory
                    .as_deref()
                    .map_or_else(String::new, |directory| format!(" by {}", host(directory)));
                output::success(&format!("{} renewed{by}, valid until {until}", one.name));
                say_missing(one);
            }
            RenewalResult::NotDue => {
                output::line(&format!(
                    "  {} is valid until {until}, renewed at {next}",
                    one.name
                ));
                continue;
            }
            RenewalResult::Rehearsed => {
                output::success(&format!(
                    "{} could be renewed: the staging CA issued one, which is not installed",
                    one.name
                ));
            }
            RenewalResult::Failed if one.next.is_none() => {
                let error = one.error.as_deref().unwrap_or("failed");
                output::error(&format!("{} could not be renewed: {error}", one.name));
            }
            RenewalResult::Failed => {
                output::error(&format!(
                    "{}: {}",
                    one.name,
                    one.error.as_deref().unwrap_or("failed")
                ));
                output::hint(Some(&format!("tried again at {next}")));
            }
        }
        for warning in &one.warnings {
            output::warning(warning);
        }
        if let Some(limit) = &one.limit {
            output::warning(&format!("{}: {limit}", one.name));
        }
        nothing = false;
    }
    if nothing {
        output::success("no certificate is due");
    }
}
