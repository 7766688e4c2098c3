//! P: what a reconcile came to, in words and as an exit status.

use super::Exit;
use super::output;
use crate::certificate::CertificateName;
use crate::reconcile::report::{Outcome, Report};

/// Whether a command's NAME means this vhost: its app, itself, or one of its names.
pub(super) fn matches(name: &str, vhost: &str, server_names: &[String]) -> bool {
    vhost == name
        || vhost.split('#').next() == Some(name)
        || server_names
            .iter()
            .any(|server_name| server_name == name || unbracketed(server_name) == name)
}

/// An IPv6 address as people write it, too.
fn unbracketed(name: &str) -> &str {
    name.trim_matches(['[', ']'])
}

/// The part of `report` that a command with NAMEs speaks of; without NAMEs, all of it.
pub(super) fn concerning(mut report: Report, names: &[String]) -> Report {
    if names.is_empty() {
        return report;
    }
    let vhosts: Vec<_> = report
        .vhosts
        .iter()
        .filter(|vhost| any_matches(names, &vhost.name, &vhost.server_names))
        .collect();
    report.rejected.retain(|rejected| {
        let app = |vhost: &str| vhost.split('#').next() == Some(&rejected.name);
        any_matches(names, &rejected.name, &[]) || vhosts.iter().any(|vhost| app(&vhost.name))
    });
    // of each type of key one
    let theirs = |name: &String| {
        let base = CertificateName::from_file_name(name).map(|name| name.base().to_owned());
        vhosts
            .iter()
            .any(|vhost| base.is_some() && vhost.certificate == base)
    };
    report.certificates.ordered.retain(theirs);
    report.certificates.pending.retain(theirs);
    report.certificates.failed.retain(theirs);
    report
}

fn any_matches(names: &[String], vhost: &str, server_names: &[String]) -> bool {
    names.iter().any(|name| matches(name, vhost, server_names))
}

/// The NAMEs that no vhost and no rejected file has.
pub(super) fn unknown<'a>(names: &'a [String], report: &Report) -> Vec<&'a String> {
    let known = |name: &&String| {
        report
            .rejected
            .iter()
            .any(|rejected| matches(name, &rejected.name, &[]))
            || report
                .vhosts
                .iter()
                .any(|vhost| matches(name, &vhost.name, &vhost.server_names))
    };
    names.iter().filter(|name| !known(name)).collect()
}

pub(super) fn exit(report: &Report, wait: bool) -> Exit {
    let missing = !report.certificates.pending.is_empty() || !report.certificates.failed.is_empty();
    if !report.succeeded() {
        Exit::Failed
    } else if !report.rejected.is_empty() {
        Exit::Rejected
    } else if wait && missing {
        Exit::CertificateMissing
    } else {
        Exit::Done
    }
}

/// The lines after the steps.
pub(super) fn say(report: &Report, wait: bool) {
    for warning in &report.warnings {
        output::warning(warning);
    }
    for rejected in &report.rejected {
        output::rejected(rejected, text_of(&rejected.file).as_deref());
        output::warning(&match rejected.stale {
            true => format!(
                "{} is rejected; its last good version keeps serving",
                rejected.name
            ),
            false => format!("{} is rejected and not served", rejected.name),
        });
    }
    if let Some(error) = &report.error {
        output::error(error);
        output::hint(report.hint.as_deref());
    }
    let generation = report.generation;
    let ms: f64 = report.steps.iter().map(|step| step.ms).sum();
    match (report.outcome, report.error.is_some()) {
        (Outcome::Unchanged, false) => {
            output::success(&format!("already up to date (generation {generation})"))
        }
        (Outcome::Activated, false) => {
            output::success(&format!("generation {generation} serves, after {ms:.0} ms"))
        }
        (Outcome::Rejected | Outcome::RolledBack, _) => {
            output::error(&format!(
                "nothing changed, generation {generation} is still active"
            ));
        }
        (_, true) => {}
    }
    certificates(report, wait);
}

fn certificates(report: &Report, wait: bool) {
    let summary = &report.certificates;
    if !summary.ordered.is_empty() {
        output::success(&format!(
            "certificates obtained: {}",
            summary.ordered.join(", ")
        ));
    }
    if !summary.failed.is_empty() {
        output::warning(&format!(
            "certificates not obtained: {}",
            summary.failed.join(", ")
        ));
        output::hint(Some("`vhostd status` says why, and when it is tried again"));
    }
    if !summary.pending.is_empty() {
        output::warning(&format!(
            "certificates still to come: {}",
            summary.pending.join(", ")
        ));
        if !wait {
            output::hint(Some("`vhostd reload --wait` waits for them"));
        }
    }
}

/// The file again, for the picture of its error; only what the reconcile would read, too.
pub(super) fn text_of(file: &std::path::Path) -> Option<String> {
    let listing = crate::vhost::source::read(file.parent()?).ok()?;
    let found = listing
        .files
        .into_iter()
        .find(|candidate| candidate.path == file)?;
    found.text.ok()
}
