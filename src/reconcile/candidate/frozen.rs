//! R: apps whose very bytes in the active generation are kept, because no text of theirs can be
//! rendered any more.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::Candidate;
use crate::certificate::{Identifier, Issuer, StoredCertificate};
use crate::desired::CertificateFiles;
use crate::generation::manifest::{Manifest, ServedName};
use crate::reconcile::ReconcileError;
use crate::reconcile::proof::fingerprint;
use crate::render::digest_of;
use crate::vhost::{AppName, ServerName};

/// A file of the active generation, whose, and its bytes.
type FrozenFile = (PathBuf, AppName, Vec<u8>);

impl Candidate<'_> {
    /// Apps whose very bytes in the active generation are kept.
    pub(super) fn frozen(&self) -> BTreeSet<AppName> {
        let accepted = |name: &&AppName| self.apps.iter().any(|app| app.name == **name);
        let withheld = self.fallen_to_bytes().filter(accepted);
        let unparsed = self.intent.frozen.iter();
        let unparsed = unparsed.filter(|name| self.active.apps.contains_key(*name));
        withheld.chain(unparsed).cloned().collect()
    }

    /// What the active generation has of them; an app whose file is not what was written is withheld
    /// altogether.
    pub(super) fn frozen_files(
        &mut self,
        apps: &BTreeSet<AppName>,
    ) -> Result<Option<Vec<FrozenFile>>, ReconcileError> {
        let active = self.active;
        let mut found = Vec::new();
        for (path, name) in &active.files {
            if !apps.contains(name) {
                continue;
            }
            let mut written = active.names.iter();
            let written = written.find(|served| served.vhost.app() == name);
            let bytes = self.installation.generations.read(active.number, path)?;
            // what somebody else wrote there was never audited, and is carried nowhere
            let intact = bytes
                .filter(|bytes| written.is_none_or(|served| served.config == digest_of(bytes)));
            match intact {
                Some(bytes) => found.push((path.clone(), name.clone(), bytes)),
                None => return self.withhold_spoilt(name, path).map(|()| None),
            }
        }
        Ok(Some(found))
    }

    /// What the active generation says of those apps stays true.
    pub(super) fn keep_frozen(&self, manifest: &mut Manifest, frozen: &BTreeSet<AppName>) {
        let names = self.active.names.iter();
        let of_frozen = |name: &&ServedName| frozen.contains(name.vhost.app());
        manifest.names.extend(names.filter(of_frozen).cloned());
        for (address, stored) in self.speakers(frozen) {
            let theirs = manifest.names.iter_mut();
            for name in theirs.filter(|name| name.address() == Some(address)) {
                name.leaf = Some(fingerprint(&stored.leaf));
                name.further_leaves.clear();
            }
            let directory = stored.chain.parent().map(Path::to_path_buf);
            manifest.certificates.extend(directory);
        }
        // whose they are is not known, and those that nobody needs go with the next generation
        let certificates = &mut manifest.certificates;
        certificates.extend(self.active.certificates.iter().cloned());
        certificates.sort();
        certificates.dedup();
        manifest.logs.extend(self.active.logs.iter().cloned());
        manifest.logs.sort();
        manifest.logs.dedup();
    }

    /// The certificate of an app whose bytes are kept.
    pub(crate) fn kept_certificate(&self, app: &str) -> Option<String> {
        let names = self.active.names.iter();
        let mut names = names.filter(|name| name.vhost.app().as_str() == app);
        let leaf = names.find_map(|name| name.leaf.as_ref())?;
        let mut stored = self.inventory.certificates.values();
        let stored = stored.find(|stored| fingerprint(&stored.leaf) == *leaf)?;
        Some(stored.name.base().to_owned())
    }

    /// What the default servers speak with for addresses of those apps.
    pub(super) fn kept_addresses(
        &self,
        frozen: &BTreeSet<AppName>,
    ) -> Vec<(IpAddr, CertificateFiles)> {
        let speakers = self.speakers(frozen).into_iter();
        speakers
            .map(|(address, stored)| (address, CertificateFiles::from(stored)))
            .collect()
    }

    /// The addresses of those apps that the active generation serves over TLS.
    pub(super) fn addresses_of(&self, apps: &BTreeSet<AppName>) -> Vec<ServerName> {
        let names = self.active.names.iter();
        let theirs = names.filter(|name| name.leaf.is_some() && apps.contains(name.vhost.app()));
        let addresses = theirs.filter(|name| name.address().is_some());
        addresses
            .filter_map(|name| name.host.parse().ok())
            .collect()
    }

    /// The certificate of each of their addresses: the one that is served, or the one after it.
    fn speakers(&self, frozen: &BTreeSet<AppName>) -> Vec<(IpAddr, &StoredCertificate)> {
        let names = self.active.names.iter();
        let names = names.filter(|name| frozen.contains(name.vhost.app()));
        let speaker = |name: &ServedName| {
            let (address, served) = (name.address()?, name.leaf.as_ref()?);
            let wanted = [Identifier::Ip(address)];
            let real = self.inventory.certificates.values();
            let known = real.chain(self.inventory.placeholders.values());
            let known = known.filter(|stored| {
                stored.covers(&wanted) && self.request.now <= stored.validity.not_after
            });
            let best = known.max_by_key(|stored| {
                let is_served = fingerprint(&stored.leaf) == *served;
                (is_served, stored.issuer != Issuer::Placeholder)
            });
            Some((address, best?))
        };
        names.filter_map(speaker).collect()
    }
}
