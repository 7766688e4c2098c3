//! W: every vhost with TLS has something to serve: from our own CA or from files at once, else a
//! placeholder.
//!
//! All others wait for the lock, so only what is quickly made is made here, for [`AT_ONCE`]: apps
//! get theirs in turns. The rest is obtained later, like certificates of other CAs.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{Candidate, ReconcileError};
use crate::certificate::anchors::Anchors;
use crate::certificate::attempts::{Attempts, RetryAdvice};
use crate::certificate::preflight::{Remark, Remarks};
use crate::certificate::{
    CertificateRequest, Identifier, Issuer, StoredCertificate, WantedCertificate,
};
use crate::certificate::{key, pem_files};
use crate::reconcile::proof::fingerprint;

/// What became of an attempt: it is made again at every look, and concerns no other certificate.
type Attempt = Result<StoredCertificate, ReconcileError>;

/// How long certificates and placeholders are made under the lock: some forty with ECDSA keys, or two
/// or three with RSA keys.
const AT_ONCE: Duration = Duration::from_millis(400);

/// The certificate of the reserved name, as a placeholder of others.
struct Shared {
    placeholder: StoredCertificate,
    /// Whose vhosts serve it now: they get no placeholders of their own, for which nginx would be
    /// reloaded.
    hosts: BTreeSet<String>,
}

impl Candidate<'_> {
    pub(super) fn provide_certificates(&mut self) -> Result<(), ReconcileError> {
        self.take_along_certificates()?;
        self.prepare_internal_ca();
        let now = self.request.now;
        let ends = self.making_ends.get_or_insert(Instant::now() + AT_ONCE);
        let ends = *ends;
        let shared = self.shared()?;
        for wanted in in_turns(&self.wanted) {
            let attempt = match wanted.issuer {
                Issuer::File => self.take_in(wanted)?,
                Issuer::Internal => match is_quick(wanted) && Instant::now() < ends {
                    true => self.issue(wanted)?,
                    false => self.leave(wanted),
                },
                Issuer::Acme | Issuer::Placeholder => None,
            };
            match attempt {
                Some(Ok(stored)) => {
                    let name = wanted.name.clone();
                    self.inventory.certificates.insert(name, stored);
                }
                Some(Err(error)) => {
                    let warning = format!("{}: failed to {error}", wanted.name);
                    // it is tried again with every attempt of the pass
                    if !self.warnings.contains(&warning) {
                        self.warnings.push(warning);
                    }
                }
                None => {}
            }
            // a further type of key has none: it is not waited for
            let first = wanted.name.further().is_none();
            if first && self.inventory.serving(wanted, now).is_none() {
                let placeholder = self.placeholder(wanted, &shared, ends)?;
                let name = wanted.name.clone();
                self.inventory.placeholders.insert(name, placeholder);
            }
        }
        self.warn_of_chains()
    }

    /// Certificates go with a vhost file that gets another owner, and those whose owner was not written
    /// down are those of the vhost that asks for them.
    fn take_along_certificates(&mut self) -> Result<(), ReconcileError> {
        for wanted in &self.wanted {
            let mut chowned = self.intent.chowned.iter();
            let former = chowned.find(|(app, _)| Some(app.as_str()) == wanted.app.as_deref());
            let former = former.map(|(_, uid)| *uid);
            let stored = self.inventory.certificates.get_mut(&wanted.name);
            let goes_along = |it: &&mut StoredCertificate| {
                it.uid != Some(wanted.uid) && (it.uid.is_none() || it.uid == former)
            };
            let Some(stored) = stored.filter(goes_along) else {
                continue;
            };
            let store = &self.installation.certificates;
            self.warnings.extend(store.give(&wanted.name, wanted.uid)?);
            stored.uid = Some(wanted.uid);
        }
        Ok(())
    }

    /// Its own where there is time to make it, else the one of the reserved name: the names in it
    /// are the least that a visitor is warned of.
    fn placeholder(
        &self,
        wanted: &WantedCertificate,
        shared: &Shared,
        ends: Instant,
    ) -> Result<StoredCertificate, ReconcileError> {
        let (installation, now) = (self.installation, self.request.now);
        let mut names = wanted.identifiers.iter().map(Identifier::to_string);
        let shares = names.any(|name| shared.hosts.contains(&name));
        if shares || Instant::now() >= ends {
            // requests are for the vhost's names, whatever is in it
            return Ok(StoredCertificate {
                name: wanted.name.clone(),
                identifiers: wanted.identifiers.clone(),
                ..shared.placeholder.clone()
            });
        }
        Ok(installation.certificates.ensure_placeholder(wanted, now)?)
    }

    fn shared(&self) -> Result<Shared, ReconcileError> {
        let placeholder = self.installation.shared_placeholder(self.request.now)?;
        let leaf = Some(fingerprint(&placeholder.leaf));
        let names = self.active.names.iter();
        let hosts = names.filter(|name| name.leaf == leaf);
        Ok(Shared {
            hosts: hosts.map(|name| name.host.clone()).collect(),
            placeholder,
        })
    }

    /// A certificate of our own CA that is obtained later. `None`: there is one, or will be.
    fn leave(&self, wanted: &WantedCertificate) -> Option<Attempt> {
        if self.serves_from(Issuer::Internal, wanted) {
            return None;
        }
        let refused = self.installation.internal_ca.check(&wanted.identifiers);
        refused.err().map(|error| Err(error.into()))
    }

    /// What clients will not like about the chains from files that are served.
    fn warn_of_chains(&mut self) -> Result<(), ReconcileError> {
        let (installation, now) = (self.installation, self.request.now);
        let ca_file = installation.settings.acme.ca_file.as_deref();
        let anchors = LazyCell::new(|| Anchors::load(ca_file));
        let from_files = self.wanted.iter().filter(|it| it.issuer == Issuer::File);
        for wanted in from_files {
            let stored = self.inventory.stored(wanted);
            let (Some(stored), Some(files)) = (stored, &wanted.files) else {
                continue;
            };
            if stored.issuer != Issuer::File {
                continue;
            }
            let anchors = match &*anchors {
                Ok(anchors) => anchors,
                Err(error) => {
                    tracing::debug!("chains from files are not judged: {error}");
                    break;
                }
            };
            let first = wanted.identifiers.first();
            let chain = stored.read_chain().ok().zip(first);
            let warnings = chain.map_or_else(Vec::new, |(chain, first)| {
                anchors.warnings(&chain, first, &files.chain, now)
            });
            let warnings = warnings
                .into_iter()
                .map(|it| format!("{}: {it}", wanted.name));
            let mut warnings: Vec<String> = warnings.collect();
            self.record_warnings(wanted, &warnings)?;
            warnings.retain(|warning| !self.warnings.contains(warning));
            self.warnings.append(&mut warnings);
        }
        Ok(())
    }

    /// For `status`, which shows them with the certificate.
    fn record_warnings(
        &self,
        wanted: &WantedCertificate,
        warnings: &[String],
    ) -> Result<(), ReconcileError> {
        let ledger = &self.installation.ledger;
        let remark = |told: &String| Remark {
            about: told.clone(),
            told: told.clone(),
        };
        let remarks = Remarks {
            identifiers: wanted.identifiers.clone(),
            remarks: warnings.iter().map(remark).collect(),
        };
        let known = ledger.remarks_of(&wanted.name)?;
        let known = known.map_or_else(Vec::new, |known| known.remarks);
        match known == remarks.remarks {
            true => Ok(()),
            false => Ok(ledger.record_remarks(&wanted.name, &remarks)?),
        }
    }

    /// One root for all who have none, instead of one for each.
    fn prepare_internal_ca(&self) {
        let internal = self.wanted.iter().filter(|wanted| {
            wanted.issuer == Issuer::Internal && !self.serves_from(Issuer::Internal, wanted)
        });
        let internal = internal.map(|wanted| wanted.identifiers.as_slice());
        let ca = &self.installation.internal_ca;
        if let Err(error) = ca.prepare(internal, self.request.now) {
            // whoever needs the root meets the same error, and says whose certificate it is about
            tracing::debug!("failed to {error}");
        }
    }

    fn serves_from(&self, issuer: Issuer, wanted: &WantedCertificate) -> bool {
        let served = self.inventory.serving(wanted, self.request.now);
        served.is_some_and(|served| served.issuer == issuer)
    }

    /// `None`: there is one, or whoever holds the lock is about to store one.
    fn issue(&self, wanted: &WantedCertificate) -> Result<Option<Attempt>, ReconcileError> {
        if self.serves_from(Issuer::Internal, wanted) {
            return Ok(None);
        }
        let (installation, now) = (self.installation, self.request.now);
        let Some(_lock) = installation.ledger.try_lock(&wanted.name)? else {
            return Ok(None);
        };
        let served = self.inventory.serving(wanted, now);
        let request = CertificateRequest::new(wanted, served, None);
        let issued = installation.internal_ca.issue(&request, now);
        let attempt = issued
            .map_err(ReconcileError::from)
            .and_then(|issued| Ok(installation.certificates.store(&issued, &request, now)?));
        Ok(Some(attempt))
    }

    /// `None`: the files have what is stored, or somebody else takes them in.
    fn take_in(&self, wanted: &WantedCertificate) -> Result<Option<Attempt>, ReconcileError> {
        let Some(files) = &wanted.files else {
            return Ok(None);
        };
        let (installation, now) = (self.installation, self.request.now);
        let newest = self.inventory.stored(wanted);
        let pair = match pem_files::read(files, &wanted.identifiers, now) {
            Ok(pair) if newest.is_some_and(|newest| newest.holds(&pair)) => {
                if installation.ledger.attempts_of(&wanted.name)?.is_some() {
                    installation.ledger.forget_failures(&wanted.name)?;
                }
                return Ok(None);
            }
            pair => pair,
        };
        let Some(_lock) = installation.ledger.try_lock(&wanted.name)? else {
            return Ok(None);
        };
        let request = CertificateRequest::new(wanted, newest, None);
        let attempt = pair.map_err(ReconcileError::from).and_then(|pair| {
            let stored = installation.certificates.store(&pair, &request, now)?;
            tracing::info!(
                identifier = %wanted.name,
                serial = %stored.serial,
                not_after = %stored.validity.not_after,
                "took a certificate from {}",
                files.chain.display()
            );
            Ok(stored)
        });
        match &attempt {
            Ok(_) => installation.ledger.forget_failures(&wanted.name)?,
            Err(error) => self.note(&request, error.to_string())?,
        }
        Ok(Some(attempt))
    }

    /// For `status`; the next look is the next attempt.
    fn note(&self, request: &CertificateRequest, error: String) -> Result<(), ReconcileError> {
        let ledger = &self.installation.ledger;
        let known = ledger.attempts_of(&request.name)?;
        if known.is_some_and(|known| known.last_error.as_ref() == Some(&error)) {
            return Ok(());
        }
        let attempts = Attempts {
            identifiers: request.wanted.clone(),
            issuer: request.issuer,
            challenge: request.challenge.clone(),
            failures: 1,
            failed_at: self.request.now,
            next: None,
            last_error: Some(error),
            retry: RetryAdvice::Retry,
            troubles: BTreeMap::new(),
            failing: Vec::new(),
        };
        Ok(ledger.record_failure(&request.name, &attempts)?)
    }
}

/// Whether nothing has to be waited for but its own key.
fn is_quick(wanted: &WantedCertificate) -> bool {
    wanted.key_type.is_ecdsa() || key::is_rsa_free()
}

/// The first certificate of each app, then the second of each, and so on.
fn in_turns(wanted: &[WantedCertificate]) -> Vec<&WantedCertificate> {
    let mut turns = BTreeMap::new();
    let mut turn = |wanted: &&WantedCertificate| {
        let turn: &mut usize = turns.entry(wanted.app.clone()).or_default();
        *turn += 1;
        *turn
    };
    let mut in_turns: Vec<_> = wanted.iter().map(|it| (turn(&it), it)).collect();
    in_turns.sort_by_key(|(turn, _)| *turn);
    in_turns.into_iter().map(|(_, wanted)| wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apps_get_their_certificates_in_turns() {
        let wanted = |name: &str| {
            let names = vec![Identifier::Dns(format!("{name}.example"))];
            let wanted = WantedCertificate::new(names, Issuer::Internal).unwrap();
            let app = Some(name[..1].into());
            WantedCertificate { app, ..wanted }
        };
        let all = ["a1", "a2", "a3", "b1", "c1", "c2"].map(wanted);
        let names = in_turns(&all).into_iter().map(|it| it.name.base());
        let names: Vec<_> = names.map(|name| &name[..2]).collect();
        assert_eq!(names, ["a1", "b1", "c1", "a2", "c2", "a3"]);
    }
}
