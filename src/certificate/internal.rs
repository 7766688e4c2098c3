//! W: vhostd's own CA (`tls: internal`).
//!
//! `internal-ca/root.key` (0600) and `root.pem` (0644), made once, with the first certificate that
//! needs them. Whoever trusts `root.pem` trusts every `tls: internal` vhost of this host.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

use crate::atomic_file::{self, WriteError};
use crate::certificate::chain::{Chain, ChainError};
use crate::certificate::key::{self, KeyError, PrivateKeyPem};
use crate::certificate::schedule::RetryAdvice;
use crate::certificate::{CertificateRequest, IssuedCertificate, Validity};
use crate::settings::KeyType;

/// The CA below a state directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct InternalCa {
    directory: PathBuf,
}

/// The root, read and checked.
struct Root {
    pem: String,
    key: PrivateKeyPem,
    validity: Validity,
}

/// Why the internal CA issued nothing.
#[derive(Debug, thiserror::Error)]
pub enum InternalError {
    #[error("use the internal CA, which ended at {0}: remove its directory and trust the new root")]
    Expired(OffsetDateTime),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("use the internal CA: {} is there, its key is not", .0.display())]
    KeyMissing(PathBuf),
    #[error("read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("use the root of the internal CA: {0}")]
    Root(#[from] ChainError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl InternalCa {
    /// Touches no file.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            directory: state_dir.join("internal-ca"),
        }
    }

    /// The certificate to trust, PEM; there once something was issued or [`Self::ensure`] ran.
    pub fn root_path(&self) -> PathBuf {
        self.directory.join("root.pem")
    }

    /// Makes the CA where there is none.
    pub fn ensure(&self, now: OffsetDateTime) -> Result<(), InternalError> {
        self.root(now).map(drop)
    }

    /// Signs a certificate of seven days for exactly these identifiers, with a new key.
    pub fn issue(
        &self,
        request: &CertificateRequest,
        now: OffsetDateTime,
    ) -> Result<IssuedCertificate, InternalError> {
        let root = self.root(now)?;
        if !root.validity.contains(now) {
            return Err(InternalError::Expired(root.validity.not_after));
        }
        let key_pem = PrivateKeyPem::generate(request.key_type.unwrap_or(KeyType::EcdsaP256))?;
        let mut parameters = key::parameters(&request.identifiers)?;
        parameters.not_before = (now - BACKDATED).max(root.validity.not_before);
        parameters.not_after = (now + LIFETIME).min(root.validity.not_after);
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        parameters.use_authority_key_identifier_extension = true;
        let issuer =
            rcgen::Issuer::from_ca_cert_pem(&root.pem, root.key.pair()?).map_err(KeyError::Sign)?;
        let leaf = parameters
            .signed_by(&key_pem.pair()?, &issuer)
            .map_err(KeyError::Sign)?;
        Ok(IssuedCertificate {
            chain_pem: leaf.pem(),
            key_pem,
        })
    }

    fn root(&self, now: OffsetDateTime) -> Result<Root, InternalError> {
        atomic_file::create_directory(&self.directory, 0o755)?;
        let _lock = self.lock()?;
        let key_path = self.directory.join("root.key");
        let (key, pem) = match (read(&key_path)?, read(&self.root_path())?) {
            (Some(key), Some(pem)) => (PrivateKeyPem::new(key), pem),
            // somebody trusts that root: another one must not take its place unasked
            (None, Some(_)) => return Err(InternalError::KeyMissing(self.root_path())),
            (key, None) => {
                let key = match key {
                    Some(key) => PrivateKeyPem::new(key),
                    None => PrivateKeyPem::generate(KeyType::EcdsaP256)?,
                };
                // the key first: a crash in between leaves a key that nobody has trusted yet
                atomic_file::write(&key_path, key.expose().as_bytes(), 0o600)?;
                let pem = root_certificate(&key.pair()?, now)?;
                atomic_file::write(&self.root_path(), pem.as_bytes(), 0o644)?;
                (key, pem)
            }
        };
        let certificate = Chain::parse_root(&pem)?;
        certificate.check_key(&key)?;
        Ok(Root {
            pem,
            key,
            validity: certificate.validity,
        })
    }

    /// Two processes that need the CA at once must not make two.
    fn lock(&self) -> Result<fs::File, InternalError> {
        let path = self.directory.join("lock");
        let file = atomic_file::lock_file(&path)?;
        match file.lock() {
            Ok(()) => Ok(file),
            Err(source) => Err(InternalError::Read { path, source }),
        }
    }
}

impl InternalError {
    /// Will trying again help, without a person?
    pub fn retry(&self) -> RetryAdvice {
        match self {
            Self::Expired(_) | Self::KeyMissing(_) | Self::Root(_) => RetryAdvice::Useless,
            Self::Key(_) | Self::Read { .. } | Self::Write(_) => RetryAdvice::Retry,
        }
    }
}

fn root_certificate(key: &KeyPair, now: OffsetDateTime) -> Result<String, KeyError> {
    let mut parameters = key::parameters(&[])?;
    // several hosts' roots in one browser are told apart by name
    let digest = Sha256::digest(key.public_key_raw());
    let digest: String = digest
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let name = format!("vhostd internal CA {digest}");
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.not_before = now - BACKDATED;
    parameters.not_after = now + ROOT_LIFETIME;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = parameters.self_signed(key).map_err(KeyError::Sign)?;
    Ok(root.pem())
}

fn read(path: &Path) -> Result<Option<String>, InternalError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(InternalError::Read {
            path: path.to_path_buf(),
            source,
        }),
    }
}

/// Browsers with a clock that is behind accept a new certificate too.
const BACKDATED: Duration = Duration::hours(1);
/// Nobody revokes what our CA has signed: a stolen key is good for this long. Renewed at half of it,
/// so that a CA that cannot sign, or a disk that is full over a long weekend, is no outage yet.
const LIFETIME: Duration = Duration::days(7);
const ROOT_LIFETIME: Duration = Duration::days(3650);

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)]

    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

    use super::*;
    use crate::certificate::schedule::renew_at;
    use crate::certificate::{Identifier, Issuer, WantedCertificate};

    fn request(names: &[Identifier]) -> CertificateRequest {
        let wanted = WantedCertificate::new(names.to_vec(), Issuer::Internal).unwrap();
        CertificateRequest::new(&wanted, None, None)
    }

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_leaf_verifies_against_the_root_for_its_names_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let ca = InternalCa::new(directory.path());
        let names = [
            Identifier::Dns("a.example".into()),
            Identifier::Ip("192.0.2.1".parse().unwrap()),
        ];
        let issued = ca.issue(&request(&names), now()).unwrap();
        let leaf = CertificateDer::from_pem_slice(issued.chain_pem.as_bytes()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(ca.root_path()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .unwrap();
        let verify = |name: &str, days: i64| {
            let at = (now() + Duration::days(days)).unix_timestamp() as u64;
            let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(at));
            let name = ServerName::try_from(name.to_owned()).unwrap();
            verifier
                .verify_server_cert(&leaf, &[], &name, &[], at)
                .is_ok()
        };
        assert!(verify("a.example", 0));
        assert!(verify("192.0.2.1", 6));
        assert!(!verify("b.example", 0));
        assert!(!verify("a.example", 8));
    }

    #[test]
    fn a_leaf_lasts_a_week_and_is_renewed_at_half_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let ca = InternalCa::new(directory.path());
        let request = request(&[Identifier::Dns("a.example".into())]);
        let leaf = Chain::parse(&ca.issue(&request, now()).unwrap().chain_pem).unwrap();
        assert_eq!(leaf.validity.not_after - now(), Duration::WEEK);
        let renewed = renew_at(leaf.validity) - now();
        assert!(renewed > Duration::days(3) && renewed <= Duration::hours(84));
    }

    #[test]
    fn the_root_is_made_once_and_its_key_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let ca = InternalCa::new(directory.path());
        ca.ensure(now()).unwrap();
        let root = fs::read(ca.root_path()).unwrap();
        InternalCa::new(directory.path())
            .ensure(now() + Duration::DAY)
            .unwrap();
        assert_eq!(fs::read(ca.root_path()).unwrap(), root);
        assert_eq!(mode(&ca.root_path()), 0o644);
        assert_eq!(mode(&directory.path().join("internal-ca/root.key")), 0o600);
    }

    #[test]
    fn a_crash_between_key_and_root_is_mended() {
        let directory = tempfile::tempdir().unwrap();
        let ca = InternalCa::new(directory.path());
        ca.ensure(now()).unwrap();
        fs::remove_file(ca.root_path()).unwrap();
        ca.ensure(now()).unwrap();
        assert!(ca.root_path().exists());
    }

    #[test]
    fn a_root_without_its_key_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let ca = InternalCa::new(directory.path());
        ca.ensure(now()).unwrap();
        fs::remove_file(directory.path().join("internal-ca/root.key")).unwrap();
        let error = ca.ensure(now()).unwrap_err();
        assert!(matches!(error, InternalError::KeyMissing(_)));
        assert_eq!(error.retry(), RetryAdvice::Useless);
    }

    #[test]
    fn a_leaf_never_outlives_the_root() {
        let directory = tempfile::tempdir().unwrap();
        let ca = InternalCa::new(directory.path());
        ca.ensure(now()).unwrap();
        let request = request(&[Identifier::Dns("a.example".into())]);
        let late = now() + Duration::days(3645);
        let leaf = Chain::parse(&ca.issue(&request, late).unwrap().chain_pem).unwrap();
        assert_eq!(leaf.validity.not_after, now() + ROOT_LIFETIME);
        let error = ca
            .issue(&request, now() + Duration::days(3651))
            .unwrap_err();
        assert!(matches!(error, InternalError::Expired(_)));
    }
}
