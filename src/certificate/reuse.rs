//! R: the key of a renewal: a new one, or the one that is there.

use std::fs;

use crate::certificate::CertificateRequest;
use crate::certificate::key::{KeyError, PrivateKeyPem};

/// Takes a while: not on the daemon's loop. A stored key that cannot be read, or is of another type,
/// is followed by a new one: a certificate with another key is better than none.
pub fn key(request: &CertificateRequest) -> Result<PrivateKeyPem, KeyError> {
    let Some(path) = &request.reuse_key else {
        return PrivateKeyPem::generate(request.key_type);
    };
    let stored = fs::read_to_string(path).map(PrivateKeyPem::new);
    match stored {
        Ok(key) if key.is_of(request.key_type) => Ok(key),
        Ok(_) => PrivateKeyPem::generate(request.key_type),
        Err(error) => {
            tracing::warn!(identifier = %request.name, "a new key instead of {}: {error}", path.display());
            PrivateKeyPem::generate(request.key_type)
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::certificate::{Identifier, Issuer, WantedCertificate};
    use crate::settings::KeyType;

    #[test]
    fn a_key_is_used_again_only_where_that_is_asked_for_and_it_is_of_the_right_type() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("privkey.pem");
        let stored = PrivateKeyPem::generate(KeyType::EcdsaP256).unwrap();
        fs::write(&path, stored.expose()).unwrap();
        let names = vec![Identifier::Dns("a.example".into())];
        let wanted = WantedCertificate::new(names, Issuer::Acme).unwrap();
        let new = CertificateRequest::new(&wanted, None, None);
        let again = CertificateRequest {
            reuse_key: Some(path),
            ..new.clone()
        };
        let lost = CertificateRequest {
            reuse_key: Some(directory.path().join("lost.pem")),
            ..new.clone()
        };
        let is_stored = |request: &CertificateRequest, key_type| {
            let request = CertificateRequest {
                key_type,
                ..request.clone()
            };
            let key = key(&request).unwrap();
            assert!(key.is_of(key_type));
            key.expose() == stored.expose()
        };
        assert!(is_stored(&again, KeyType::EcdsaP256));
        assert!(!is_stored(&again, KeyType::EcdsaP384));
        assert!(!is_stored(&new, KeyType::EcdsaP256));
        assert!(!is_stored(&lost, KeyType::EcdsaP256));
    }
}
