//! R: what `vhostd status` and `vhostd history` show: read from what is on disk, and asked of nginx.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::certificate::Issuer;
use crate::certificate::attempts::{Attempts, RetryAdvice};
use crate::certificate::dns01::record::certificate_of;
use crate::certificate::ledger::{Ledger, LedgerError};
use crate::certificate::renewal_info::Suggestion;
use crate::certificate::schedule::{self, CertificateState, renew_at};
use crate::certificate::{
    CertificateName, Identifier, StoredCertificate, Terms, WantedCertificate,
};
use crate::clock;
use crate::generation::history::Proof;
use crate::generation::manifest::{Manifest, Reason};
use crate::generation::{GenerationError, GenerationStore};
use crate::installation::Installation;
use crate::notice::change::Difference;
use crate::notice::memory::Memory;
use crate::obtain::is_good;
use crate::reconcile::proof::answering;
use crate::served::ServedRecord;
use crate::settings::{KeyType, Settings};
use crate::status::{StatusRecord, VhostState, VhostStatus};
use crate::vhost::LocalUser;
use crate::vhost::parse::parse;
use crate::vhost::reach::{self, Budget};

/// What `vhostd status` shows, in the contract's form.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Overview {
    pub generation: GenerationShown,
    pub nginx: NginxShown,
    pub vhosts: Vec<VhostStatus>,
    pub certificates: Vec<CertificateShown>,
    /// What orders have put into DNS and nobody has taken out yet.
    #[serde(default)]
    pub texts_in_dns: Vec<TextShown>,
    pub warnings: Vec<String>,
    pub pinned: Option<u64>,
    pub error: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct GenerationShown {
    pub active: u64,
    /// `None` while nginx is down, or where somebody else answers.
    pub serving: Option<u64>,
    pub activated_at: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NginxShown {
    pub version: String,
    pub pid: Option<i32>,
    pub running: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CertificateShown {
    pub name: String,
    /// What is wanted; of a certificate that is not wanted any more, its own.
    pub identifiers: Vec<String>,
    /// Those of them that the certificate does not have.
    #[serde(default)]
    pub missing_identifiers: Vec<String>,
    /// That of its key; `None` of one that vhostd never asks for, and from an older daemon.
    #[serde(default)]
    pub key_type: Option<KeyType>,
    pub state: CertificateWord,
    pub issuer: String,
    /// Of the ACME CA that it is from.
    #[serde(default)]
    pub directory: Option<String>,
    pub not_before: Option<String>,
    pub not_after: Option<String>,
    pub renew_at: Option<String>,
    /// When the CA wants it renewed (RFC 9773); `None`: it said nothing, and the lifetime decides.
    pub suggestion: Option<SuggestionShown>,
    pub attempts: u32,
    pub last_error: Option<String>,
    /// Whether nginx was seen to show it to visitors; `None`: nobody looked yet.
    #[serde(default)]
    pub served: Option<ServedShown>,
    /// What looked odd at the last order.
    #[serde(default)]
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ServedShown {
    /// When all names had been asked for.
    pub checked_at: Option<String>,
    /// Its names that show another one.
    pub differs: Vec<Difference>,
}

/// A TXT record of dns-01 (RFC 8555 §8.4).
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct TextShown {
    /// That it was put there for.
    pub certificate: String,
    /// Where it is, at the end of the CNAMEs.
    pub name: String,
    pub zone: String,
    pub value: String,
    /// The one of the settings that has put it there.
    pub provider: String,
    /// Why it could not be taken out; `None`: its order is under way, or was killed.
    pub error: Option<String>,
}

impl CertificateShown {
    /// Whether it is the certificate of that name, or one of a further type of key beside it.
    pub fn is_of(&self, name: &str) -> bool {
        CertificateName::from_file_name(&self.name).is_some_and(|own| own.base() == name)
    }

    /// The type of its key, where it is a further one.
    pub fn further(&self) -> Option<KeyType> {
        CertificateName::from_file_name(&self.name)?.further()
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct SuggestionShown {
    pub start: Option<String>,
    pub end: Option<String>,
    pub explanation_url: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateWord {
    Valid,
    /// Wanted, not there, nothing went wrong yet.
    Pending,
    /// The last attempts failed; another is scheduled.
    Failing,
    /// Retrying is useless until something is changed.
    Invalid,
    Placeholder,
}

/// What `vhostd history` shows, the newest first.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Past {
    pub active: u64,
    pub generations: Vec<PastGeneration>,
}

/// One activation.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PastGeneration {
    pub generation: u64,
    /// RFC 3339.
    pub activated_at: Option<String>,
    pub reason: Reason,
    pub result: Proof,
    /// Apps that came, changed or went: `+shop ~hello -old`.
    pub changes: String,
    /// Why it was rolled back.
    pub error: Option<String>,
    pub active: bool,
    /// Whether it is still there to return to.
    pub kept: bool,
}

/// Reads what is on disk and asks nginx. `failure`: what keeps the daemon from reconciling.
pub fn overview(installation: &Installation, failure: Option<&str>) -> Result<Overview, String> {
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let active = installation
        .generations
        .active()
        .map_err(|e| words(&e))?
        .manifest;
    let record = StatusRecord::read(&installation.settings.state_dir);
    let survey = installation.survey().map_err(|e| words(&e))?;
    let master = match installation.host_nginx.master(&survey) {
        Ok(master) => Some(master.pid),
        // two of them, for a while
        Err(error) => error.running(),
    };
    // a worker that outlived its master answers, and is no running nginx
    let serving = master
        .as_ref()
        .and_then(|_| answering(installation.nginx(), &active));
    let last = installation.generations.history().map_err(|e| words(&e))?;
    let activated_at = last.last(active.number).map(|entry| entry.at);
    let vhosts = record.iter().flat_map(|record| record.vhosts.clone());
    let vhosts = vhosts
        .map(|vhost| match (vhost.state, serving) {
            // the record is older than what made nginx stop serving it
            (VhostState::Serving, None) => VhostStatus {
                state: VhostState::Pending,
                ..vhost
            },
            _ => vhost,
        })
        .collect();
    let mut warnings: Vec<String> = record
        .iter()
        .flat_map(|record| record.warnings.clone())
        .collect();
    let advice = installation.advice(&survey, &active, clock::system()());
    for warning in installation.exposures().into_iter().chain(advice) {
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
    let settings = &installation.settings;
    warnings.extend(unreachable(&active, settings));
    let memory = Memory::read(&settings.state_dir).unwrap_or_default();
    warnings.extend(memory.warnings(&settings.hooks));
    let recorded = record.as_ref().and_then(|record| record.error.clone());
    Ok(Overview {
        generation: GenerationShown {
            active: active.number,
            serving,
            activated_at: activated_at.and_then(rfc3339),
        },
        nginx: NginxShown {
            version: installation.host_nginx.version.clone(),
            pid: master,
            running: master.is_some(),
        },
        certificates: certificates(installation)?,
        texts_in_dns: texts_in_dns(&installation.ledger).map_err(|e| words(&e))?,
        vhosts,
        warnings,
        pinned: record.as_ref().and_then(|record| record.pinned),
        // what could not be written down is known to the daemon alone
        error: failure
            .map(|failure| format!("failed to {failure}"))
            .or(recorded),
    })
}

/// What nginx's user cannot reach of the apps that serve: as it is now, as apps come and go.
fn unreachable(active: &Manifest, settings: &Settings) -> Vec<String> {
    let worker = LocalUser::named(&active.survey.user);
    let (mut budget, mut warnings) = (Budget::default(), Vec::new());
    for (name, source) in &active.apps {
        let (roots, tls) = (&settings.roots, settings.tls_defaults());
        if let Ok(app) = parse(name, &source.file, &source.text, roots, &tls) {
            let found = reach::inspect(&app, &worker, &mut budget, false);
            warnings.extend(found.iter().map(ToString::to_string));
        }
    }
    warnings
}

fn certificates(installation: &Installation) -> Result<Vec<CertificateShown>, String> {
    let (inventory, _) = installation
        .certificates
        .inventory()
        .map_err(|error| error.to_string())?;
    let memories = Ledger::new(&installation.settings.state_dir)
        .memories()
        .map_err(|error| error.to_string())?;
    let terms = Terms::from(&installation.settings.acme);
    let nothing = schedule::Memory::default();
    let now = clock::system()();
    let record = StatusRecord::read(&installation.settings.state_dir);
    let wanted: BTreeMap<CertificateName, WantedCertificate> = record
        .into_iter()
        .flat_map(|record| record.wanted)
        .map(|wanted| (wanted.name.clone(), wanted))
        .collect();
    let mut shown: Vec<_> = wanted
        .values()
        .map(|wanted| {
            let stored = inventory.stored(wanted);
            let placeholder = inventory.placeholders.get(&wanted.name);
            let good = is_good(wanted, stored, now);
            let shown = stored.or(placeholder);
            let memory = memories.get(&wanted.name).unwrap_or(&nothing);
            let state = CertificateState::of(wanted, shown, memory, &terms, now);
            of_wanted(wanted, shown, good, memory, &state)
        })
        .collect();
    // removed vhosts' certificates are kept until they expire, and not renewed
    let unwanted = inventory
        .certificates
        .values()
        .filter(|stored| !wanted.contains_key(&stored.name));
    if let Some(record) = ServedRecord::read(&installation.settings.state_dir) {
        for certificate in &mut shown {
            certificate.served = Some(served(&record, &certificate.identifiers));
        }
    }
    shown.extend(unwanted.map(|stored| CertificateShown {
        renew_at: None,
        ..of_stored(stored, None)
    }));
    Ok(shown)
}

fn texts_in_dns(ledger: &Ledger) -> Result<Vec<TextShown>, LedgerError> {
    let mut shown = Vec::new();
    for name in ledger.all_presented()? {
        let presented = ledger.presented(&name)?.into_iter();
        shown.extend(presented.map(|it| TextShown {
            certificate: certificate_of(&name).to_owned(),
            name: it.record.target,
            zone: it.record.zone,
            value: it.record.value,
            provider: it.provider,
            error: it.error,
        }));
    }
    Ok(shown)
}

fn of_wanted(
    wanted: &WantedCertificate,
    stored: Option<&StoredCertificate>,
    good: bool,
    memory: &schedule::Memory,
    state: &CertificateState,
) -> CertificateShown {
    let suggestion = stored.and_then(|stored| memory.suggestion(&stored.serial));
    let mut shown = match stored {
        Some(stored) => of_stored(stored, suggestion),
        None => CertificateShown {
            name: wanted.name.to_string(),
            identifiers: words(&wanted.identifiers),
            missing_identifiers: Vec::new(),
            key_type: Some(wanted.key_type),
            state: CertificateWord::Pending,
            issuer: issuer(wanted.issuer),
            directory: None,
            not_before: None,
            not_after: None,
            renew_at: None,
            suggestion: None,
            attempts: 0,
            last_error: None,
            served: None,
            warnings: Vec::new(),
        },
    };
    let usable = shown.state == CertificateWord::Valid;
    let missing = stored.map_or_else(Vec::new, |stored| stored.missing(&wanted.identifiers));
    if !missing.is_empty() {
        shown.identifiers = words(&wanted.identifiers);
        shown.missing_identifiers = words(&missing);
    }
    if !good && shown.state == CertificateWord::Valid {
        // expired, or without a name that is wanted now
        shown.state = CertificateWord::Pending;
    }
    // failures of what is not wanted any more say nothing about this one
    let about = |attempts: &&Attempts| attempts.is_for(wanted);
    if let Some(attempts) = memory.attempts.as_ref().filter(about) {
        shown.attempts = attempts.failures;
        shown.last_error.clone_from(&attempts.last_error);
        if !good {
            shown.state = match (attempts.retry, attempts.failures) {
                // for the other names it does what it should
                _ if usable && !missing.is_empty() => CertificateWord::Failing,
                (RetryAdvice::Useless, _) => CertificateWord::Invalid,
                // nothing was tried: the CA would not allow it yet
                (_, 0) => CertificateWord::Pending,
                _ => CertificateWord::Failing,
            };
        }
        // a failed attempt before its time leaves the time as it was
        if !matches!(state, CertificateState::Valid { .. }) {
            shown.renew_at = state.next().or(attempts.next).and_then(rfc3339);
        }
    }
    let remarks = memory.remarks.as_ref();
    if let Some(remarks) = remarks.filter(|it| it.identifiers == wanted.identifiers) {
        shown.warnings = remarks.warnings();
    }
    shown.issuer = issuer(wanted.issuer);
    shown
}

fn of_stored(stored: &StoredCertificate, suggestion: Option<&Suggestion>) -> CertificateShown {
    let placeholder = stored.issuer == Issuer::Placeholder;
    CertificateShown {
        name: stored.name.to_string(),
        identifiers: words(&stored.identifiers),
        missing_identifiers: Vec::new(),
        key_type: stored.key_type,
        state: match placeholder {
            true => CertificateWord::Placeholder,
            false => CertificateWord::Valid,
        },
        issuer: issuer(stored.issuer),
        directory: stored.origin.as_ref().map(|it| it.directory.clone()),
        not_before: rfc3339(stored.validity.not_before),
        not_after: rfc3339(stored.validity.not_after),
        renew_at: match stored.issuer {
            // the one of files is somebody else's affair
            Issuer::File | Issuer::Placeholder => None,
            Issuer::Acme | Issuer::Internal => rfc3339(renew_at(stored.validity, suggestion)),
        },
        suggestion: suggestion.map(|suggestion| SuggestionShown {
            start: rfc3339(suggestion.start),
            end: rfc3339(suggestion.end),
            explanation_url: suggestion.explanation_url.clone(),
        }),
        attempts: 0,
        last_error: None,
        served: None,
        warnings: Vec::new(),
    }
}

/// What the last look at the listeners says of the certificate's names.
fn served(record: &ServedRecord, identifiers: &[String]) -> ServedShown {
    let is_mine = |host: &str| {
        let zone = host.split_once('.').map(|(_, zone)| format!("*.{zone}"));
        identifiers
            .iter()
            .any(|it| it == host || Some(it) == zone.as_ref())
    };
    let mine = record.differences.iter().filter(|it| is_mine(&it.host));
    ServedShown {
        checked_at: rfc3339(record.checked_at),
        differs: mine.cloned().collect(),
    }
}

fn issuer(issuer: Issuer) -> String {
    let word = match issuer {
        Issuer::Acme => "acme",
        Issuer::File => "file",
        // a placeholder stands in for what ACME will issue
        Issuer::Placeholder => "acme",
        Issuer::Internal => "internal",
    };
    word.to_owned()
}

fn words(identifiers: &[Identifier]) -> Vec<String> {
    identifiers.iter().map(ToString::to_string).collect()
}

fn rfc3339(at: OffsetDateTime) -> Option<String> {
    at.replace_nanosecond(0).ok()?.format(&Rfc3339).ok()
}

/// Reads what is on disk.
pub fn past(store: &GenerationStore) -> Result<Past, GenerationError> {
    let (active, kept, history) = (store.active_number()?, store.numbers()?, store.history()?);
    let newest_first = history.entries().iter().rev();
    let generations = newest_first.map(|entry| PastGeneration {
        generation: entry.generation,
        activated_at: entry.at.format(&Rfc3339).ok(),
        reason: entry.reason,
        result: entry.result,
        changes: entry.changes.clone(),
        error: entry.why.clone(),
        active: entry.generation == active,
        kept: kept.contains(&entry.generation),
    });
    Ok(Past {
        active,
        generations: generations.collect(),
    })
}
