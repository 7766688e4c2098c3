//! W: what lets nginx start before the certificate is there.

use rcgen::{DnType, ExtendedKeyUsagePurpose};
use time::{Duration, OffsetDateTime};

use super::{CertificateStore, StoreError, checked, home, newest};
use crate::certificate::key::{self, KeyError, PrivateKeyPem};
use crate::certificate::{
    CertificateRequest, IssuedCertificate, Issuer, StoredCertificate, WantedCertificate,
};
use crate::settings::KeyType;

impl CertificateStore {
    /// The self-signed certificate that lets nginx start before the real one is there: the newest
    /// one that covers the identifiers and is valid, else a new one of ten years. An ECDSA key, so
    /// that the disk takes longer than the key.
    pub fn ensure_placeholder(
        &self,
        wanted: &WantedCertificate,
        now: OffsetDateTime,
    ) -> Result<StoredCertificate, StoreError> {
        let directory = home(&self.shared.placeholders, checked(&wanted.name)?);
        let versions = self.versions(&directory, &wanted.name, &mut Vec::new())?;
        let usable = newest(&versions)
            .map(|version| &version.certificate)
            .filter(|placeholder| {
                placeholder.covers(&wanted.identifiers) && placeholder.validity.is_usable(now)
            });
        if let Some(placeholder) = usable {
            return Ok(placeholder.clone());
        }
        let request = CertificateRequest {
            issuer: Issuer::Placeholder,
            ..CertificateRequest::new(wanted, None, None)
        };
        let issued = self_signed(&request, now)?;
        self.add(&self.shared.placeholders, &issued, &request, now)
    }
}

pub(super) fn self_signed(
    request: &CertificateRequest,
    now: OffsetDateTime,
) -> Result<IssuedCertificate, KeyError> {
    self_signed_with(KeyType::EcdsaP256, request, now)
}

pub(super) fn self_signed_with(
    key_type: KeyType,
    request: &CertificateRequest,
    now: OffsetDateTime,
) -> Result<IssuedCertificate, KeyError> {
    let key_pem = PrivateKeyPem::generate(key_type)?;
    let mut parameters = key::parameters(&request.identifiers)?;
    // whoever meets it in a browser should see what it is
    parameters
        .distinguished_name
        .push(DnType::CommonName, "vhostd placeholder");
    parameters.not_before = now - Duration::DAY;
    parameters.not_after = now + PLACEHOLDER_LIFETIME;
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = parameters
        .self_signed(&key_pem.pair()?)
        .map_err(KeyError::Sign)?;
    Ok(IssuedCertificate {
        chain_pem: certificate.pem(),
        key_pem,
        origin: None,
        adopted: false,
    })
}

const PLACEHOLDER_LIFETIME: Duration = Duration::days(3650);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::Identifier;

    #[test]
    fn a_placeholder_is_reused_while_it_covers_the_names() {
        let directory = tempfile::tempdir().unwrap();
        let store = CertificateStore::new(directory.path());
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let wanted = |names: &[&str]| {
            let identifiers = names
                .iter()
                .map(|name| Identifier::Dns((*name).into()))
                .collect();
            WantedCertificate::new(identifiers, Issuer::Acme).unwrap()
        };
        let one = wanted(&["a.example"]);
        let first = store.ensure_placeholder(&one, now).unwrap();
        assert_eq!(store.ensure_placeholder(&one, now).unwrap(), first);
        assert!(first.validity.not_after > now + Duration::days(3600));
        let two = wanted(&["a.example", "b.example"]);
        let second = store.ensure_placeholder(&two, now).unwrap();
        assert_ne!(second.serial, first.serial);
        assert_eq!(store.ensure_placeholder(&two, now).unwrap(), second);
        assert!(store.inventory().unwrap().0.certificates.is_empty());
    }
}
