//! R: what is the case now: what is on disk, and what the last reconcile said.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use time::{Duration, OffsetDateTime};

use super::change::{CertificateSeen, Failing, Observed, Unapplied, Version};
use crate::certificate::attempts::{Attempts, RetryAdvice};
use crate::certificate::schedule::{CertificateState, Memory, renew_at};
use crate::certificate::{Issuer, StoredCertificate, Terms, WantedCertificate};
use crate::installation::Installation;
use crate::reconcile::report::Report;
use crate::reconcile::{Applied, ReconcileError};
use crate::served::ServedRecord;
use crate::status::StatusRecord;
use crate::vhost::AppName;

/// What is known of the last reconcile.
#[derive(Clone, Debug)]
pub struct News {
    pub installation: Arc<Installation>,
    /// `None`: as the status on disk says.
    pub wanted: Option<Arc<Vec<WantedCertificate>>>,
    /// `None`: there was none yet.
    pub reconciled: Option<Reconciled>,
    /// How often a person asked for a look.
    pub asked: u64,
}

#[derive(Clone, Debug)]
pub enum Reconciled {
    Applied {
        report: Arc<Report>,
        /// The apps of whose files it says nothing, because a rollback holds them. `None`: it speaks of
        /// no vhost file as it is.
        held: Option<BTreeSet<AppName>>,
    },
    /// Nothing could even be decided: a fragment that fits "failed to …".
    Failed(String),
}

impl News {
    pub fn of(installation: Arc<Installation>) -> Self {
        Self {
            installation,
            wanted: None,
            reconciled: None,
            asked: 0,
        }
    }

    pub fn applied(&mut self, applied: &Applied) {
        self.wanted = Some(Arc::new(applied.wanted.clone()));
        self.reconciled = Some(Reconciled::Applied {
            report: Arc::new(applied.report.clone()),
            held: applied.held.clone(),
        });
    }

    pub fn failed(&mut self, error: &ReconcileError) {
        self.reconciled = Some(Reconciled::Failed(error.to_string()));
    }

    pub fn reconciled(&mut self, reconciled: &Result<Applied, ReconcileError>) {
        match reconciled {
            Ok(applied) => self.applied(applied),
            Err(error) => self.failed(error),
        }
    }

    /// Whether nobody has to look because of it: the daemon reconciles every few seconds.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let same = match (&self.reconciled, &other.reconciled) {
            (
                Some(Reconciled::Applied { report, held }),
                Some(Reconciled::Applied {
                    report: before,
                    held: held_before,
                }),
            ) => {
                report.generation == before.generation
                    && report.error == before.error
                    && report.nginx_running == before.nginx_running
                    && report.nginx_upgrading == before.nginx_upgrading
                    && report.rejected == before.rejected
                    && held == held_before
            }
            (Some(Reconciled::Failed(now)), Some(Reconciled::Failed(before))) => now == before,
            _ => false,
        };
        same && self.wanted == other.wanted && self.asked == other.asked
    }

    /// Whether nginx ran when somebody looked last.
    pub fn nginx_runs(&self) -> bool {
        match &self.reconciled {
            Some(Reconciled::Applied { report, .. }) => {
                report.nginx_running && !report.nginx_upgrading
            }
            _ => false,
        }
    }
}

pub fn observe(news: &News, now: OffsetDateTime, patience: Duration) -> Observed {
    let state_dir = &news.installation.settings.state_dir;
    let mut seen = Observed {
        patience,
        served: ServedRecord::read(state_dir).map(|record| record.differences),
        ..Observed::default()
    };
    if let Err(error) = certificates(news, now, &mut seen) {
        // the reconcile fails of that, too, and this is told all the same
        tracing::debug!("failed to {error}");
    }
    match &news.reconciled {
        None => {}
        Some(Reconciled::Failed(message)) => {
            seen.applied = Some(Err(Unapplied {
                error: format!("failed to {message}"),
                hint: None,
            }));
        }
        Some(Reconciled::Applied { report, held }) => {
            seen.nginx_running = Some(report.nginx_running);
            // an nginx that is down or being upgraded takes nothing, and says nothing about it
            if report.nginx_running && !report.nginx_upgrading {
                let unapplied = report.error.clone().map(|error| Unapplied {
                    error,
                    hint: report.hint.clone(),
                });
                seen.applied = Some(unapplied.map_or(Ok(()), Err));
            }
            seen.rejected = held.is_some().then(|| report.rejected.clone());
            seen.held = held.clone().unwrap_or_default();
        }
    }
    seen
}

fn certificates(news: &News, now: OffsetDateTime, seen: &mut Observed) -> Result<(), String> {
    let installation = &news.installation;
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let (inventory, _) = installation
        .certificates
        .inventory()
        .map_err(|e| words(&e))?;
    let stored = inventory.certificates.iter();
    let stored = stored.map(|(name, stored)| (name.clone(), stored.serial.clone()));
    seen.stored = Some(stored.collect());
    let wanted = match &news.wanted {
        Some(wanted) => wanted.clone(),
        None => match StatusRecord::read(&installation.settings.state_dir) {
            Some(record) => Arc::new(record.wanted),
            None => return Ok(()),
        },
    };
    let memories = installation.ledger.memories().map_err(|e| words(&e))?;
    let active = installation.generations.active().map_err(|e| words(&e))?;
    let served: BTreeSet<_> = active.manifest.certificates.iter().collect();
    let terms = Terms::from(&installation.settings.acme);
    let nothing = Memory::default();
    let certificates = wanted.iter().map(|wanted| {
        let stored = inventory.stored(wanted);
        let memory = memories.get(&wanted.name).unwrap_or(&nothing);
        let is_served = |stored: &StoredCertificate| {
            let directory = stored.chain.parent().map(Path::to_path_buf);
            directory.is_some_and(|directory| served.contains(&directory))
        };
        let attempts = memory.attempts.as_ref();
        let state = CertificateState::of(wanted, stored, memory, &terms, now);
        let missing = stored.map_or_else(Vec::new, |it| it.missing(&wanted.identifiers));
        let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
        let usable = stored.filter(|it| it.validity.is_usable(now));
        let failing = attempts.and_then(|it| failing(it, wanted, now, seen.patience));
        let failing = failing.map(|failing| Failing {
            next: failing.next.or(state.next()).filter(|next| *next > now),
            // most of it was obtained
            is_useless: failing.is_useless && (missing.is_empty() || usable.is_none()),
            ..failing
        });
        let by_files = wanted.issuer == Issuer::File;
        CertificateSeen {
            name: wanted.name.clone(),
            identifiers: wanted.identifiers.iter().map(ToString::to_string).collect(),
            version: stored.map(|stored| Version {
                serial: stored.serial.clone(),
                validity: stored.validity,
                renew_at: (!by_files)
                    .then(|| renew_at(stored.validity, memory.suggestion(&stored.serial))),
                is_served: is_served(stored),
            }),
            missing,
            is_settled: match by_files {
                true => failing.is_none() && stored.is_some_and(|it| it.validity.is_usable(now)),
                false => matches!(state, CertificateState::Valid { .. }),
            },
            failing,
        }
    });
    let certificates = certificates.collect();
    seen.certificates = Some(certificates);
    Ok(())
}

/// `None`: nothing failed, or something else did. What a CA would not allow yet, and so was not even
/// tried, is as little there as what was tried in vain.
fn failing(
    attempts: &Attempts,
    wanted: &WantedCertificate,
    now: OffsetDateTime,
    patience: Duration,
) -> Option<Failing> {
    attempts.is_for(wanted).then(|| Failing {
        error: attempts.last_error.clone().unwrap_or_default(),
        next: attempts.next.filter(|next| *next > now),
        is_useless: attempts.retry == RetryAdvice::Useless,
        tell_at: match wanted.issuer {
            // two files are replaced one after the other, by hand or over a network
            Issuer::File if attempts.failed_at <= now => attempts.failed_at + patience * 3,
            _ => now,
        },
    })
}

/// How this host calls itself: of many that report to one channel, which one it is.
pub fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "this host".to_owned(),
        name => crate::diagnostic::printable(name),
    }
}
