//! P: what is stored, and which of it a vhost serves.

use std::collections::BTreeMap;

use time::OffsetDateTime;

use super::{CertificateName, StoredCertificate, WantedCertificate};
use crate::settings::KeyType;

/// What is in the store: the newest good version of each certificate, and the placeholders.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CertificateInventory {
    pub certificates: BTreeMap<CertificateName, StoredCertificate>,
    pub placeholders: BTreeMap<CertificateName, StoredCertificate>,
}

impl CertificateInventory {
    /// What a vhost that wants `wanted` serves now.
    ///
    /// The certificate of that name while it is valid and from the wanted issuer's kind or any
    /// other real one (a working certificate is better than a warning page), else the placeholder;
    /// `None` where neither exists yet.
    pub fn serving(
        &self,
        wanted: &WantedCertificate,
        now: OffsetDateTime,
    ) -> Option<&StoredCertificate> {
        self.real(wanted, now)
            .or_else(|| self.placeholders.get(&wanted.name))
    }

    /// What a vhost serves that wants all of these: of each kind of key one (nginx takes no more).
    /// A placeholder is alone: a client that prefers its kind of key must not get it while another
    /// certificate is good. None where not even a placeholder is there.
    pub fn served(
        &self,
        wanted: &[WantedCertificate],
        now: OffsetDateTime,
    ) -> Vec<&StoredCertificate> {
        let mut served: Vec<&StoredCertificate> = Vec::new();
        for stored in wanted.iter().filter_map(|wanted| self.real(wanted, now)) {
            let kind = |stored: &StoredCertificate| stored.key_type.map(KeyType::is_ecdsa);
            if served.iter().all(|other| kind(other) != kind(stored)) {
                served.push(stored);
            }
        }
        if served.is_empty() {
            let placeholder = |wanted: &WantedCertificate| self.placeholders.get(&wanted.name);
            served.extend(wanted.iter().find_map(placeholder));
        }
        served
    }

    /// The stored certificate that a vhost may serve that wants `wanted`: not that of another user, who
    /// had the name before.
    pub fn stored(&self, wanted: &WantedCertificate) -> Option<&StoredCertificate> {
        let stored = self.certificates.get(&wanted.name);
        stored.filter(|stored| stored.uid.is_none_or(|uid| uid == wanted.uid))
    }

    fn real(&self, wanted: &WantedCertificate, now: OffsetDateTime) -> Option<&StoredCertificate> {
        self.stored(wanted)
            // it was checked when it was stored: one from the future tells of our clock, not of it
            .filter(|stored| now <= stored.validity.not_after)
            .filter(|stored| stored.covers_any(&wanted.identifiers))
    }
}
