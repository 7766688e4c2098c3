//! W: vhostd's own CA (`tls: internal`).
//!
//! A root is made with the first certificate that needs one, and may speak only for what is around
//! the names of that moment ([`Scope`]): its key is on this host, and whoever steals it can do no
//! more than that to those who trust the root. A name outside gets a further root, which nobody
//! trusts yet; the roots that are trusted stay as they are.

mod root; // W the roots on disk
pub mod scope; // P what a root may speak for

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
use time::{Duration, OffsetDateTime};

pub use self::root::Root;
use self::scope::Scope;
use crate::atomic_file::{self, WriteError};
use crate::certificate::attempts::RetryAdvice;
use crate::certificate::chain::ChainError;
use crate::certificate::key::{self, KeyError, PrivateKeyPem};
use crate::certificate::reuse;
use crate::certificate::{CertificateRequest, Identifier, IssuedCertificate};

/// The CA below a state directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct InternalCa {
    directory: PathBuf,
    /// What a root that is made may speak for; `None`: what is around the names that it is made for.
    permit: Option<Scope>,
}

/// Why the internal CA issued nothing.
#[derive(Debug, thiserror::Error)]
pub enum InternalError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(
        "use the internal CA: {} is there, its key is not; put a backup of the key there, or run `vhostd ca replace`",
        .0.display()
    )]
    KeyMissing(PathBuf),
    #[error(
        "issue a certificate for {0}, which `internal_ca.permit` does not permit: add it there, then run `vhostd reload`"
    )]
    NotPermitted(Identifier),
    #[error("read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "use {} as a root of the internal CA: {source}; put a backup of it and of its key there, or remove both",
        path.display()
    )]
    Root {
        path: PathBuf,
        #[source]
        source: ChainError,
    },
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl InternalCa {
    /// Touches no file.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            directory: state_dir.join("internal-ca"),
            permit: None,
        }
    }

    /// Roots that are made from now on may speak for `permit`, whatever names they are made for.
    pub fn permitting(self, permit: Option<Scope>) -> Self {
        Self { permit, ..self }
    }

    /// Of the first root, PEM; there once something was issued.
    pub fn root_path(&self) -> PathBuf {
        self.directory.join("root.pem")
    }

    /// The certificates to trust, the first made first. Writes nothing.
    pub fn roots(&self) -> Result<Vec<Root>, InternalError> {
        root::in_use(&self.directory)
    }

    /// What is odd about them, in sentences.
    pub fn advice(&self) -> Vec<String> {
        let roots = self.roots().unwrap_or_default();
        let unlimited = roots.iter().filter(|root| root.scope.is_none());
        let words = unlimited.map(|root| {
            format!(
                "{} may speak for every name, and so may whoever steals its key: it is older than name constraints; `vhostd ca replace` makes one that may not",
                root.name
            )
        });
        words.collect()
    }

    /// What nobody should trust any more.
    pub fn retired(&self) -> Result<Vec<Root>, InternalError> {
        root::retired(&self.directory)
    }

    /// Makes one root for all of `wanted` that have none, each the identifiers of one certificate.
    /// [`Self::issue`] would make one at a time.
    pub fn prepare<'a>(
        &self,
        wanted: impl IntoIterator<Item = &'a [Identifier]>,
        now: OffsetDateTime,
    ) -> Result<(), InternalError> {
        let mut wanted = wanted.into_iter().peekable();
        if wanted.peek().is_none() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let roots = self.roots()?;
        let (mut lacking, mut inherited) = (BTreeSet::new(), Scope::default());
        for identifiers in wanted.filter(|it| self.check(it).is_ok()) {
            match find(&roots, identifiers, now)? {
                Some(signer) if signer.has_successor => continue,
                signer => inherited.extend(signer.and_then(|it| it.root.scope.as_ref())),
            }
            lacking.extend(identifiers);
        }
        match lacking.is_empty() {
            true => Ok(()),
            false => self
                .make(&lacking, &inherited, !roots.is_empty(), now)
                .map(drop),
        }
    }

    /// Signs a certificate of seven days for exactly these identifiers, with a new key.
    pub fn issue(
        &self,
        request: &CertificateRequest,
        now: OffsetDateTime,
    ) -> Result<IssuedCertificate, InternalError> {
        let (root, key) = self.signer(&request.identifiers, now)?;
        let key_pem = reuse::key(request)?;
        let mut parameters = key::parameters(&request.identifiers)?;
        // rcgen takes it from the key, which may be used again
        parameters.serial_number = Some(key::serial_number()?);
        parameters.not_before = (now - BACKDATED).max(root.validity.not_before);
        parameters.not_after = now + LIFETIME;
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        parameters.use_authority_key_identifier_extension = true;
        let issuer =
            rcgen::Issuer::from_ca_cert_pem(&root.pem, key.pair()?).map_err(KeyError::Sign)?;
        let leaf = parameters
            .signed_by(&key_pem.pair()?, &issuer)
            .map_err(KeyError::Sign)?;
        Ok(IssuedCertificate {
            chain_pem: leaf.pem(),
            key_pem,
            origin: None,
            adopted: false,
        })
    }

    /// Takes every root out of use, their keys too, and makes one for `identifiers`.
    pub fn replace(
        &self,
        identifiers: &BTreeSet<&Identifier>,
        now: OffsetDateTime,
    ) -> Result<Root, InternalError> {
        let _lock = self.lock()?;
        for root in self.roots()? {
            root::retire(&self.directory, &root)?;
        }
        self.make(identifiers, &Scope::default(), false, now)
    }

    /// The first root that may sign this, which is the one that people have trusted longest.
    fn signer(
        &self,
        identifiers: &[Identifier],
        now: OffsetDateTime,
    ) -> Result<(Root, PrivateKeyPem), InternalError> {
        let _lock = self.lock()?;
        let roots = self.roots()?;
        let found = find(&roots, identifiers, now)?;
        let mut inherited = Scope::default();
        inherited.extend(found.as_ref().and_then(|it| it.root.scope.as_ref()));
        let names = identifiers.iter().collect();
        match found {
            Some(found) if found.has_successor => Ok((found.root.clone(), found.key)),
            Some(found) => {
                self.make(&names, &inherited, true, now)?;
                Ok((found.root.clone(), found.key))
            }
            None => {
                self.check(identifiers)?;
                let made = self.make(&names, &inherited, !roots.is_empty(), now)?;
                match made.key()? {
                    Some(key) => Ok((made, key)),
                    None => Err(InternalError::KeyMissing(made.path)),
                }
            }
        }
    }

    /// `inherited`: what the root that this one succeeds may speak for. `further`: there are others,
    /// which people may trust already.
    fn make(
        &self,
        identifiers: &BTreeSet<&Identifier>,
        inherited: &Scope,
        further: bool,
        now: OffsetDateTime,
    ) -> Result<Root, InternalError> {
        let around = || {
            let mut scope = Scope::around(identifiers.iter().copied());
            scope.extend([inherited]);
            scope
        };
        let scope = self.permit.clone().unwrap_or_else(around);
        let root = root::make(&self.directory, &scope, now)?;
        let (name, path) = (&root.name, root.path.display());
        match further {
            false => tracing::info!("made {name} at {path}"),
            true => tracing::warn!(
                "made {name} at {path}: it has to be trusted as well, see `vhostd ca show`"
            ),
        }
        Ok(root)
    }

    /// Whether the operator wants certificates for these.
    pub fn check(&self, identifiers: &[Identifier]) -> Result<(), InternalError> {
        let permit = self.permit.as_ref();
        let refused = |it: &&Identifier| permit.is_some_and(|permit| !permit.permits(it));
        match identifiers.iter().find(refused) {
            None => Ok(()),
            Some(refused) => Err(InternalError::NotPermitted(refused.clone())),
        }
    }

    /// Two processes that need the CA at once must not make two roots.
    fn lock(&self) -> Result<fs::File, InternalError> {
        atomic_file::create_directory(&self.directory, 0o755)?;
        let path = self.directory.join("lock");
        let file = atomic_file::lock_file(&path)?;
        if let Err(source) = file.lock() {
            return Err(InternalError::Read { path, source });
        }
        root::finish_retiring(&self.directory)?;
        Ok(file)
    }
}

impl InternalError {
    /// Will trying again help, without a person?
    pub fn retry(&self) -> RetryAdvice {
        match self {
            Self::KeyMissing(_) | Self::NotPermitted(_) | Self::Root { .. } => RetryAdvice::Useless,
            Self::Key(_) | Self::Read { .. } | Self::Write(_) => RetryAdvice::Retry,
        }
    }
}

/// Who signs.
struct Signer<'a> {
    root: &'a Root,
    key: PrivateKeyPem,
    /// Whether it, or another that people can trust meanwhile, signs in a year, too.
    has_successor: bool,
}

/// `None`: a root has to be made.
fn find<'a>(
    roots: &'a [Root],
    identifiers: &[Identifier],
    now: OffsetDateTime,
) -> Result<Option<Signer<'a>>, InternalError> {
    let (mut signer, mut keyless): (Option<Signer<'a>>, _) = (None, None);
    let usable = |root: &&Root| root.permits(identifiers) && root.lasts(now, LIFETIME);
    for root in roots.iter().filter(usable) {
        let succeeds = root.lasts(now, SUCCESSION);
        match (&mut signer, root.key()?) {
            (Some(signer), Some(_)) => signer.has_successor |= succeeds,
            (None, Some(key)) => {
                signer = Some(Signer {
                    root,
                    key,
                    has_successor: succeeds,
                });
            }
            (_, None) => keyless = keyless.or(Some(root)),
        }
    }
    match (signer, keyless) {
        // somebody trusts that root: another one must not take its place unasked
        (None, Some(root)) => Err(InternalError::KeyMissing(root.path.clone())),
        (signer, _) => Ok(signer),
    }
}

/// Browsers with a clock that is behind accept a new certificate too.
const BACKDATED: Duration = Duration::hours(1);
/// Nobody revokes what our CA has signed: a stolen key is good for this long. Renewed at half of it,
/// so that a CA that cannot sign, or a disk that is full over a long weekend, is no outage yet.
const LIFETIME: Duration = Duration::days(7);
/// So long before a root ends there is another, for people to trust in time.
const SUCCESSION: Duration = Duration::days(365);

#[cfg(test)]
mod tests;
