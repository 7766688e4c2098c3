//! `vhostd status`

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Exit, open, output, verdict};
use crate::certificate::Issuer;
use crate::certificate::ledger::Ledger;
use crate::certificate::schedule::{Attempts, CertificateState, RetryAdvice, renew_at};
use crate::certificate::{CertificateName, Identifier, StoredCertificate, WantedCertificate};
use crate::clock;
use crate::installation::Installation;
use crate::obtain::is_good;
use crate::reconcile::proof::answering;
use crate::settings::Settings;
use crate::status::{StatusRecord, VhostState, VhostStatus};

#[derive(Args, Debug)]
pub(super) struct Status {
    /// Only this vhost
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Print data for programs
    #[arg(long)]
    json: bool,
}

/// The contract's form.
#[derive(Serialize)]
struct Shown {
    generation: ShownGeneration,
    nginx: ShownNginx,
    vhosts: Vec<VhostStatus>,
    certificates: Vec<ShownCertificate>,
    warnings: Vec<String>,
    pinned: Option<u64>,
    error: Option<String>,
}

#[derive(Serialize)]
struct ShownGeneration {
    active: u64,
    /// `None` while nginx is down, or where somebody else answers.
    serving: Option<u64>,
    activated_at: Option<String>,
}

#[derive(Serialize)]
struct ShownNginx {
    version: String,
    pid: Option<i32>,
    running: bool,
}

#[derive(Serialize)]
struct ShownCertificate {
    name: String,
    identifiers: Vec<String>,
    state: CertificateWord,
    issuer: &'static str,
    not_before: Option<String>,
    not_after: Option<String>,
    renew_at: Option<String>,
    attempts: u32,
    last_error: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum CertificateWord {
    Valid,
    /// Wanted, not there, nothing went wrong yet.
    Pending,
    /// The last attempts failed; another is scheduled.
    Failing,
    /// Retrying is useless until something is changed.
    Invalid,
    Placeholder,
}

/// As `vhostd status` without arguments.
pub(super) fn show(settings: &Settings) {
    let all = Status {
        name: None,
        json: false,
    };
    all.run(settings);
}

impl Status {
    pub(super) fn run(self, settings: &Settings) -> Exit {
        let installation = match open(settings.clone()) {
            Ok(installation) => installation,
            Err(exit) => return exit,
        };
        let shown = match shown(&installation, self.name.as_deref()) {
            Ok(shown) => shown,
            Err(why) => {
                output::error(&format!("failed to {why}"));
                return Exit::Failed;
            }
        };
        if let Some(name) = &self.name
            && shown.vhosts.is_empty()
        {
            output::error(&format!("there is no vhost `{name}`"));
            return Exit::Usage;
        }
        if self.json {
            output::json(&shown);
        } else {
            print(&shown, clock::system()());
        }
        Exit::Done
    }
}

fn shown(installation: &Installation, name: Option<&str>) -> Result<Shown, String> {
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let active = installation
        .generations
        .active()
        .map_err(|e| words(&e))?
        .manifest;
    let record = StatusRecord::read(&installation.settings.state_dir);
    let survey = installation.survey().map_err(|e| words(&e))?;
    let master = installation.host_nginx.master(&survey).ok();
    // a worker that outlived its master answers, and is no running nginx
    let serving = master
        .as_ref()
        .and_then(|_| answering(installation.nginx(), &active));
    let last = installation.generations.history().map_err(|e| words(&e))?;
    let activated_at = last.last(active.number).map(|entry| entry.at);
    let record_or = |field: fn(&StatusRecord) -> Option<String>| record.as_ref().and_then(field);
    let vhosts: Vec<VhostStatus> = record
        .iter()
        .flat_map(|record| record.vhosts.clone())
        .collect();
    let vhosts: Vec<VhostStatus> = vhosts
        .into_iter()
        .map(|vhost| match (vhost.state, serving) {
            // the record is older than what made nginx stop serving it
            (VhostState::Serving, None) => VhostStatus {
                state: VhostState::Pending,
                ..vhost
            },
            _ => vhost,
        })
        .filter(|vhost| {
            name.is_none_or(|name| verdict::matches(name, &vhost.name, &vhost.server_names))
        })
        .collect();
    Ok(Shown {
        generation: ShownGeneration {
            active: active.number,
            serving,
            activated_at: activated_at.and_then(rfc3339),
        },
        nginx: ShownNginx {
            version: installation.host_nginx.version.clone(),
            pid: master.as_ref().map(|master| master.pid),
            running: master.is_some(),
        },
        certificates: certificates(installation, &vhosts, name.is_none())?,
        vhosts,
        warnings: record
            .iter()
            .flat_map(|record| record.warnings.clone())
            .collect(),
        pinned: record.as_ref().and_then(|record| record.pinned),
        error: record_or(|record| record.error.clone()),
    })
}

fn certificates(
    installation: &Installation,
    vhosts: &[VhostStatus],
    all: bool,
) -> Result<Vec<ShownCertificate>, String> {
    let (inventory, _) = installation
        .certificates
        .inventory()
        .map_err(|error| error.to_string())?;
    let attempts = Ledger::new(&installation.settings.state_dir)
        .attempts()
        .map_err(|error| error.to_string())?;
    let now = clock::system()();
    let record = StatusRecord::read(&installation.settings.state_dir);
    let wanted: BTreeMap<CertificateName, WantedCertificate> = record
        .into_iter()
        .flat_map(|record| record.wanted)
        .map(|wanted| (wanted.name.clone(), wanted))
        .collect();
    let named = |name: &CertificateName| {
        all || vhosts
            .iter()
            .any(|vhost| vhost.certificate.as_deref() == Some(name.as_str()))
    };
    let mut shown: Vec<_> = wanted
        .values()
        .filter(|wanted| named(&wanted.name))
        .map(|wanted| {
            let stored = inventory.certificates.get(&wanted.name);
            let placeholder = inventory.placeholders.get(&wanted.name);
            let good = is_good(wanted, stored, now);
            let shown = stored.or(placeholder);
            of_wanted(wanted, shown, good, attempts.get(&wanted.name), now)
        })
        .collect();
    // removed vhosts' certificates are kept until they expire, and not renewed
    let unwanted = inventory
        .certificates
        .values()
        .filter(|stored| all && !wanted.contains_key(&stored.name));
    shown.extend(unwanted.map(|stored| ShownCertificate {
        renew_at: None,
        ..of_stored(stored)
    }));
    Ok(shown)
}

fn of_wanted(
    wanted: &WantedCertificate,
    stored: Option<&StoredCertificate>,
    good: bool,
    attempts: Option<&Attempts>,
    now: OffsetDateTime,
) -> ShownCertificate {
    let mut shown = match stored {
        Some(stored) => of_stored(stored),
        None => ShownCertificate {
            name: wanted.name.to_string(),
            identifiers: words(&wanted.identifiers),
            state: CertificateWord::Pending,
            issuer: issuer(wanted.issuer),
            not_before: None,
            not_after: None,
            renew_at: None,
            attempts: 0,
            last_error: None,
        },
    };
    if !good && shown.state == CertificateWord::Valid {
        // expired, or without a name that is wanted now
        shown.state = CertificateWord::Pending;
    }
    // failures of what is not wanted any more say nothing about this one
    let about = |attempts: &&Attempts| attempts.is_about(&wanted.identifiers, wanted.issuer);
    if let Some(attempts) = attempts.filter(about) {
        shown.attempts = attempts.failures;
        shown.last_error.clone_from(&attempts.last_error);
        if !good {
            shown.state = match attempts.retry {
                RetryAdvice::Useless => CertificateWord::Invalid,
                _ => CertificateWord::Failing,
            };
        }
        // a failed attempt before its time leaves the time as it was
        let state = CertificateState::of(wanted, stored, Some(attempts), now);
        if !matches!(state, CertificateState::Valid { .. }) {
            shown.renew_at = attempts.next.and_then(rfc3339);
        }
    }
    shown.issuer = issuer(wanted.issuer);
    shown
}

fn of_stored(stored: &StoredCertificate) -> ShownCertificate {
    let placeholder = stored.issuer == Issuer::Placeholder;
    ShownCertificate {
        name: stored.name.to_string(),
        identifiers: words(&stored.identifiers),
        state: match placeholder {
            true => CertificateWord::Placeholder,
            false => CertificateWord::Valid,
        },
        issuer: issuer(stored.issuer),
        not_before: rfc3339(stored.validity.not_before),
        not_after: rfc3339(stored.validity.not_after),
        renew_at: match placeholder {
            true => None,
            false => rfc3339(renew_at(stored.validity)),
        },
        attempts: 0,
        last_error: None,
    }
}

fn issuer(issuer: Issuer) -> &'static str {
    match issuer {
        Issuer::Acme => "acme",
        // a placeholder stands in for what ACME will issue
        Issuer::Placeholder => "acme",
        Issuer::Internal => "internal",
    }
}

fn words(identifiers: &[Identifier]) -> Vec<String> {
    identifiers.iter().map(ToString::to_string).collect()
}

fn rfc3339(at: OffsetDateTime) -> Option<String> {
    at.replace_nanosecond(0).ok()?.format(&Rfc3339).ok()
}

fn print(shown: &Shown, now: OffsetDateTime) {
    let nginx = match shown.nginx.running {
        true => output::good("running"),
        false => output::bad("not running"),
    };
    let pinned = shown.pinned.map_or_else(String::new, |number| {
        format!(", pinned to the vhosts of {number}")
    });
    output::line(&format!(
        "nginx {} {nginx} · generation {} active{}{pinned}\n",
        shown.nginx.version,
        shown.generation.active,
        match shown.generation.serving {
            None if !shown.nginx.running => String::new(),
            Some(serving) if serving == shown.generation.active => ", serving".into(),
            Some(serving) => output::bad(&format!(", but {serving} answers")),
            None => output::doubtful(", nothing answers"),
        }
    ));
    if shown.vhosts.is_empty() {
        output::line("no vhosts yet: drop a file into the vhosts directory");
    } else {
        print_vhosts(shown, now);
    }
    for warning in &shown.warnings {
        output::warning(warning);
    }
    if let Some(error) = &shown.error {
        output::error(error);
    }
}

fn print_vhosts(shown: &Shown, now: OffsetDateTime) {
    let name_width = width(shown.vhosts.iter().map(|vhost| vhost.name.len()), "VHOST");
    let names = |vhost: &VhostStatus| match vhost.server_names.len() {
        0 => "-".to_owned(),
        1 => vhost.server_names[0].clone(),
        more => format!("{} (+{})", vhost.server_names[0], more - 1),
    };
    let names_width = width(shown.vhosts.iter().map(|vhost| names(vhost).len()), "NAMES");
    let header = format!(
        "{:<name_width$}  {:<names_width$}  {:<9}  CERTIFICATE",
        "VHOST", "NAMES", "STATE"
    );
    output::line(&output::faint(&header));
    for vhost in &shown.vhosts {
        let state = match vhost.state {
            VhostState::Serving => output::good(&format!("{:<9}", "serving")),
            VhostState::Pending => output::doubtful(&format!("{:<9}", "pending")),
            VhostState::Rejected => output::bad(&format!("{:<9}", "rejected")),
            VhostState::Stale => output::doubtful(&format!("{:<9}", "stale")),
        };
        let certificate = certificate_words(vhost, shown, now);
        output::line(&format!(
            "{:<name_width$}  {:<names_width$}  {state}  {certificate}",
            vhost.name,
            names(vhost)
        ));
    }
    // what all vhosts wait for is said once, below
    let own_reason = |vhost: &&VhostStatus| vhost.reason.is_some() && vhost.reason != shown.error;
    for vhost in shown.vhosts.iter().filter(own_reason) {
        let at = vhost
            .line
            .map_or_else(String::new, |line| format!(":{line}"));
        let reason = vhost.reason.as_deref().unwrap_or_default();
        output::line("");
        output::warning(&format!("{}{at}: {reason}", vhost.file.display()));
        output::hint(vhost.hint.as_deref());
        if let Some(words) = &vhost.nginx {
            output::line(&format!("nginx: {words}"));
        }
    }
    for certificate in shown
        .certificates
        .iter()
        .filter(|certificate| certificate.last_error.is_some())
    {
        output::line("");
        let error = certificate.last_error.as_deref().unwrap_or_default();
        output::warning(&format!(
            "{}: {} failed attempt{}: {error}",
            certificate.name,
            certificate.attempts,
            if certificate.attempts == 1 { "" } else { "s" }
        ));
        let next = certificate.renew_at.as_deref().unwrap_or("-");
        output::hint(Some(&format!(
            "tried again at {next}; `vhostd renew {}` tries now",
            certificate.name
        )));
    }
}

fn width(lengths: impl Iterator<Item = usize>, header: &str) -> usize {
    lengths.max().unwrap_or_default().max(header.len())
}

fn certificate_words(vhost: &VhostStatus, shown: &Shown, now: OffsetDateTime) -> String {
    let Some(name) = &vhost.certificate else {
        return match vhost.state {
            VhostState::Rejected => String::new(),
            _ => "none (plain HTTP)".into(),
        };
    };
    let Some(certificate) = shown
        .certificates
        .iter()
        .find(|certificate| certificate.name == *name)
    else {
        return "pending".into();
    };
    let until = certificate
        .not_after
        .as_deref()
        .and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
    let days = until.map_or(0, |until| (until - now).whole_days());
    let instead = match until {
        Some(until) if until < now => "expired",
        _ => "placeholder",
    };
    match certificate.state {
        CertificateWord::Valid => format!("{}, {days} days left", certificate.issuer),
        CertificateWord::Pending => "pending".into(),
        CertificateWord::Placeholder => output::doubtful("placeholder, browsers warn"),
        CertificateWord::Failing => output::bad(&format!("{instead}, failing")),
        CertificateWord::Invalid => output::bad(&format!("{instead}, cannot be obtained")),
    }
}
