//! W: what every command works on: the settings, nginx, the stores and the secrets, opened once.

mod repair; // W what is damaged in the state directory → what is known elsewhere, or a refusal

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use time::{Duration, OffsetDateTime};

use crate::atomic_file::{self, WriteError};
use crate::certificate::account::{AccountError, AccountKey};
use crate::certificate::answers::ChallengeFiles;
use crate::certificate::internal::InternalCa;
use crate::certificate::ledger::{Ledger, LedgerError};
use crate::certificate::store::{CertificateStore, StoreError};
use crate::certificate::{
    CertificateInventory, CertificateName, Challenge, Identifier, Issuer, StoredCertificate,
    WantedCertificate,
};
use crate::control::permission::AdminGroup;
use crate::desired::{CertificateFiles, Features, Owners, Probe, RESERVED_NAME};
use crate::generation::manifest::Manifest;
use crate::generation::{GenerationError, GenerationStore};
use crate::nginx::dump::Survey;
use crate::nginx::features::{ProbeFeaturesError, binary_version, features};
use crate::nginx::process::NoMaster;
use crate::nginx::{self, HostNginx, LocateError, Logs, Nginx};
use crate::reconcile::last_look::LastLook;
use crate::reconcile::neighbours::advice;
use crate::render::{TemplateError, Templates};
use crate::settings::{KeyType, Settings};

pub use repair::RepairError;

/// vhostd on this host.
#[derive(Debug)]
pub struct Installation {
    pub settings: Settings,
    pub host_nginx: HostNginx,
    pub generations: GenerationStore,
    pub certificates: CertificateStore,
    pub ledger: Ledger,
    pub internal_ca: InternalCa,
    pub templates: Templates,
    account: AccountKey,
    pub has_ipv6: bool,
    probe_secret: String,
    /// Looked up when the settings are read.
    pub admin_group: Option<AdminGroup>,
    /// What was repaired, until somebody is told.
    repaired: Mutex<Vec<String>>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error(transparent)]
    Nginx(#[from] LocateError),
    #[error("read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("draw a secret: the system gave no randomness")]
    Randomness,
    #[error(transparent)]
    Repair(#[from] RepairError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Nothing is lost but space; the next run tries again.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    #[error(transparent)]
    Generation(#[from] GenerationError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whose a name is could not be read; guessing could give it away.
#[derive(Debug, thiserror::Error)]
pub enum OwnersError {
    #[error("read the owners of names in {}: {source}", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("read the owners of names in {}: it is missing", .0.display())]
    Missing(PathBuf),
    #[error("read the owners of names in {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What an interrupted write left could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    #[error(transparent)]
    Certificate(#[from] StoreError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl OpenError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Nginx(LocateError::NoBinary(_)) => {
                Some("install nginx (`apt install nginx`), or set `nginx.binary`")
            }
            Self::Account(AccountError::Parse { .. }) => {
                Some("put a backup of it there; without one, remove it, and a new account is made")
            }
            Self::Repair(error) => error.hint(),
            Self::Read { source, .. } | Self::Write(WriteError { source, .. }) => {
                match source.kind() {
                    io::ErrorKind::PermissionDenied => Some("run it as root, after `vhostd setup`"),
                    io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StorageFull => {
                        Some("what served before still serves")
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

impl Installation {
    /// Opens the state directory, creating what is missing in it; runs `nginx -V`.
    pub fn open(settings: Settings, now: OffsetDateTime) -> Result<Self, OpenError> {
        let state = &settings.state_dir;
        atomic_file::create_directory(state, 0o700)?;
        let generations = GenerationStore::new(state);
        atomic_file::create_directory(&generations.directory(), 0o700)?;
        atomic_file::create_directory(&nginx::scratch(state), 0o700)?;
        let probe_secret = probe_secret(state)?;
        let host_nginx = HostNginx::locate(&settings, &probe_secret)?;
        let judge = host_nginx.certificate_trial();
        let installation = Self {
            host_nginx,
            certificates: CertificateStore::with_judge(state, Some(Arc::new(judge))),
            ledger: Ledger::new(state),
            internal_ca: InternalCa::new(state).permitting(settings.internal_ca.permit.clone()),
            templates: Templates::with_overrides(overrides(&settings.templates_dir)?)?,
            account: AccountKey::open(state, &settings.acme.directory)?,
            has_ipv6: has_ipv6(),
            probe_secret,
            admin_group: settings.admin_group.as_deref().map(admin_group),
            repaired: Mutex::default(),
            generations,
            settings,
        };
        installation.repair(now)?;
        Ok(installation)
    }

    /// The account key of the first CA, which a command may have changed since this was opened.
    pub fn account(&self) -> AccountKey {
        self.account.reread().unwrap_or_else(|error| {
            tracing::error!("failed to {error}");
            self.account.clone()
        })
    }

    /// Where nginx finds answers for other account keys than the first CA's; `None`: there are none.
    pub fn challenge_files(&self) -> Option<PathBuf> {
        let several = !self.settings.acme.fallbacks.is_empty() || self.account().is_changing();
        let files = || ChallengeFiles::below(&self.settings.runtime_dir);
        several.then(|| files().directory().to_path_buf())
    }

    pub fn nginx(&self) -> &dyn Nginx {
        &self.host_nginx
    }

    /// Which nginx judges: another one may judge otherwise.
    pub fn nginx_build(&self, survey: &Survey) -> String {
        let binary = binary_version(&self.host_nginx.binary);
        let binary = binary.map_or_else(String::new, |binary| binary.to_string());
        let modules = survey.load_modules.join(" ");
        format!("{} {binary} {modules}", self.host_nginx.version)
    }

    pub fn nginx_is_down(&self, survey: &Survey) -> bool {
        matches!(
            self.host_nginx.master(survey),
            Err(NoMaster::NotRunning { .. })
        )
    }

    /// The process id of nginx's verified master.
    pub fn master(&self, survey: &Survey) -> Option<i32> {
        self.host_nginx.master(survey).ok().map(|master| master.pid)
    }

    /// What this nginx can do with those modules.
    pub fn features(
        &self,
        modules: &[String],
        probe: &Probe,
    ) -> Result<Features, ProbeFeaturesError> {
        features(
            &self.host_nginx.binary,
            modules,
            &probe.certificate,
            &self.settings.state_dir,
        )
    }

    /// What is known of the hand-written configuration: what nginx said last, what the active generation
    /// was made for, or, before the first, what nginx says now.
    pub fn survey(&self) -> Result<Survey, GenerationError> {
        if let Some(look) = LastLook::read(&self.settings.state_dir) {
            return Ok(look.survey);
        }
        let active = self.generations.active()?.manifest;
        if active.number > 0 {
            return Ok(active.survey);
        }
        let path = self.generations.path(0);
        let accepted = self.host_nginx.test(&path, &path, &Logs::default());
        Ok(accepted.map(|accepted| accepted.survey).unwrap_or_default())
    }

    /// What nginx says now about the hand-written configuration beside the active generation.
    pub fn fresh_survey(&self) -> Option<Survey> {
        let path = self
            .generations
            .path(self.generations.active_number().ok()?);
        let accepted = self.host_nginx.test(&path, &path, &Logs::default()).ok()?;
        Some(accepted.survey)
    }

    /// What the admin is to know or to change about the hand-written files beside `served`.
    pub fn advice(&self, survey: &Survey, served: &Manifest, now: OffsetDateTime) -> Vec<String> {
        let speaks_https = !served.https.is_empty();
        let probe = speaks_https.then(|| self.probe(now).ok()).flatten();
        let features = probe.and_then(|probe| self.features(&survey.load_modules, &probe).ok());
        let http2_in_listen = features.is_some_and(|features| !features.http2_directive);
        advice::of(&self.settings.nginx, survey, served, http2_in_listen)
    }

    /// The location that proves a generation, and the certificate of the reserved name.
    pub fn probe(&self, now: OffsetDateTime) -> Result<Probe, StoreError> {
        let stored = self.shared_placeholder(now)?;
        Ok(Probe {
            secret: self.probe_secret.clone(),
            certificate: CertificateFiles::from(&stored),
        })
    }

    /// The certificate of the reserved name, which also stands in for others until they are there.
    pub fn shared_placeholder(&self, now: OffsetDateTime) -> Result<StoredCertificate, StoreError> {
        self.certificates
            .ensure_placeholder(&reserved_certificate(), now)
    }

    /// Who had each name first. A missing file is a fresh start where nothing was ever activated.
    pub fn owners(&self) -> Result<Owners, OwnersError> {
        let path = self.owners_path();
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| OwnersError::Damaged { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match self.generations.active_number() {
                    Ok(1..) => Err(OwnersError::Missing(path)),
                    _ => Ok(Owners::default()),
                }
            }
            Err(source) => Err(OwnersError::Read { path, source }),
        }
    }

    pub fn save_owners(&self, owners: &Owners) -> Result<(), OwnersError> {
        let path = self.owners_path();
        if path.is_file() && self.owners().is_ok_and(|known| known == *owners) {
            return Ok(());
        }
        Ok(atomic_file::write_json(&path, owners, 0o600)?)
    }

    /// Removes what interrupted writes left in the state and runtime directories. Call it under the
    /// lock of the state directory.
    pub fn sweep(&self, now: OffsetDateTime) -> Result<(), SweepError> {
        self.certificates.sweep(&self.ledger)?;
        self.ledger.sweep()?;
        let accounts = self.settings.state_dir.join("accounts");
        atomic_file::sweep_dead(&accounts)?;
        for entry in fs::read_dir(&accounts).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                atomic_file::sweep_dead(&entry.path())?;
            }
        }
        let internal_ca = self.settings.state_dir.join("internal-ca");
        ChallengeFiles::below(&self.settings.runtime_dir).sweep(now)?;
        atomic_file::sweep_dead(&internal_ca)?;
        atomic_file::sweep_dead(&internal_ca.join("retired"))?;
        Ok(atomic_file::sweep_dead(&self.settings.runtime_dir)?)
    }

    fn owners_path(&self) -> PathBuf {
        self.settings.state_dir.join("owners.json")
    }

    /// Removes certificates from files that no vhost file of their owner names any more. Call it once
    /// what serves is settled, under the lock of the generations.
    pub fn abandon_files(
        &self,
        inventory: &CertificateInventory,
        wanted: &[WantedCertificate],
    ) -> Result<(), PruneError> {
        let is_wanted = |stored: &StoredCertificate| {
            let mut wanted = wanted.iter();
            wanted.any(|it| it.name == stored.name && stored.uid.is_none_or(|uid| uid == it.uid))
        };
        let from_files = inventory.certificates.values();
        let from_files = from_files.filter(|stored| stored.issuer == Issuer::File);
        let mut abandoned = from_files.filter(|stored| !is_wanted(stored)).peekable();
        if abandoned.peek().is_none() {
            return Ok(());
        }
        let active = self.generations.active()?.manifest;
        let serving = active.certificates.into_iter().collect();
        for stored in abandoned {
            self.certificates.abandon(&stored.name, &serving)?;
        }
        Ok(())
    }

    /// Removes certificates and placeholders that neither a vhost nor a kept generation needs; none
    /// while a generation does not tell what it needs. Call it under the lock of the generations.
    pub fn prune_certificates(
        &self,
        wanted: &[WantedCertificate],
        now: OffsetDateTime,
    ) -> Result<(), PruneError> {
        let mut keep = BTreeSet::new();
        for number in self.generations.numbers()? {
            keep.extend(self.generations.earlier_manifest(number)?.certificates);
        }
        let mut names: BTreeSet<CertificateName> =
            wanted.iter().map(|wanted| wanted.name.clone()).collect();
        names.insert(reserved_certificate().name);
        for removed in self.certificates.prune(&keep, &names, now)? {
            tracing::debug!("removed {}, which nothing needs", removed.display());
        }
        let is_needed = |name: &CertificateName| {
            Ok(names.contains(name) || self.certificates.newest(name)?.is_some())
        };
        self.ledger.prune(is_needed, now - FAILURES_ARE_KEPT)
    }
}

/// Of a vhost that is gone: longer than any limit of a CA counts.
const FAILURES_ARE_KEPT: Duration = Duration::days(30);

fn reserved_certificate() -> WantedCertificate {
    let first = Identifier::Dns(RESERVED_NAME.into());
    WantedCertificate {
        name: CertificateName::of(&first),
        identifiers: vec![first],
        issuer: Issuer::Internal,
        profile: None,
        key_type: KeyType::default(),
        challenge: Challenge::default(),
        files: None,
        uid: 0,
        app: None,
    }
}

/// 128 random bits, kept: the location under which nginx tells its generation is nobody else's to
/// know.
fn probe_secret(state_dir: &Path) -> Result<String, OpenError> {
    let path = state_dir.join("probe-secret");
    match fs::read(&path) {
        Ok(known) if known.len() == 32 && known.iter().all(u8::is_ascii_hexdigit) => {
            return Ok(String::from_utf8_lossy(&known).into_owned());
        }
        // it is nothing but random: where it is damaged, another one is as good
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(OpenError::Read { path, source }),
    }
    let mut bytes = [0_u8; 16];
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| OpenError::Randomness)?;
    let secret: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    atomic_file::write(&path, secret.as_bytes(), 0o600)?;
    Ok(secret)
}

/// The admin's templates, by name; a missing directory has none.
fn overrides(directory: &Path) -> Result<BTreeMap<String, String>, OpenError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| OpenError::Read { path, source }
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        entries => entries.map_err(failed(directory))?,
    };
    let mut overrides = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(failed(directory))?.path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        if let Some(name) = name.filter(|name| name.ends_with(".conf")) {
            let text = fs::read_to_string(&path).map_err(failed(&path))?;
            overrides.insert(name, text);
        }
    }
    Ok(overrides)
}

fn admin_group(name: &str) -> AdminGroup {
    let group = nix::unistd::Group::from_name(name).ok().flatten();
    AdminGroup {
        name: name.to_owned(),
        gid: group.map(|group| group.gid.as_raw()),
    }
}

/// Whether the host has any IPv6 address.
pub(crate) fn has_ipv6() -> bool {
    fs::read_to_string("/proc/net/if_inet6").is_ok_and(|addresses| !addresses.trim().is_empty())
}
