//! W: one account at one CA, or at each of several: how a client is made.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::AcmeClient;
use super::session::Account;
use crate::certificate::account::{AccountError, AccountKey};
use crate::certificate::answers::ChallengeFiles;
use crate::certificate::dns01::Dns01;
use crate::certificate::http::{AcmeHttp, HttpError};
use crate::settings::ca::{CaSettings, ExternalAccount};
use crate::settings::proxy::ProxySettings;
use crate::settings::{AcmeSettings, Settings};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) key: AccountKey,
    pub(super) http: AcmeHttp,
    pub(super) email: Option<String>,
    pub(super) external_account: Option<ExternalAccount>,
    pub(super) ca_file: Option<PathBuf>,
    /// Where its answers are that nginx does not give by itself.
    pub(super) answers: Option<ChallengeFiles>,
    /// nginx answers by itself for its key.
    pub(super) is_first: bool,
    /// One of several: messages say which.
    pub(super) is_named: bool,
    pub(super) patience: Patience,
    pub(super) account: tokio::sync::Mutex<Account>,
}

/// How long a CA is waited for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Patience {
    /// For the whole answer to one request.
    pub answer: Duration,
    /// For a whole order; Let's Encrypt takes a few seconds. What is left is resumed.
    pub order: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            order: Duration::from_secs(90),
        }
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum AcmeClientError {
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error(transparent)]
    Http(#[from] HttpError),
}

impl AcmeClient {
    /// Reads or makes the account key. The network is not asked for anything: a CA that is out of
    /// reach keeps nobody from starting.
    pub fn new(settings: &AcmeSettings, state_dir: &Path) -> Result<Self, AcmeClientError> {
        Self::with_patience(settings, state_dir, Patience::default())
    }

    /// As [`AcmeClient::new`], for a CA that is waited for longer or shorter.
    pub fn with_patience(
        settings: &AcmeSettings,
        state_dir: &Path,
        patience: Patience,
    ) -> Result<Self, AcmeClientError> {
        let key = AccountKey::open(state_dir, &settings.directory)?;
        let client = Self::of_key(&first(settings), &settings.proxy, key, patience)?;
        Ok(client.shared())
    }

    /// One for each CA, in the order in which they are tried. nginx answers by itself for the first.
    pub fn all(settings: &Settings) -> Result<Vec<Self>, AcmeClientError> {
        Self::each(settings).into_iter().collect()
    }

    /// As [`AcmeClient::all`], where one whose account cannot be opened is to hinder no other.
    pub fn each(settings: &Settings) -> Vec<Result<Self, AcmeClientError>> {
        let cas = settings.acme.cas();
        let several = cas.len() > 1;
        let clients = cas.iter().enumerate().map(|(nth, ca)| {
            let key = AccountKey::open(&settings.state_dir, &ca.directory)?;
            let own = Self::of_key(ca, &settings.acme.proxy, key, Patience::default())?;
            Ok(Shared {
                answers: Some(ChallengeFiles::below(&settings.runtime_dir)),
                is_first: nth == 0,
                is_named: several,
                ..own
            }
            .shared())
        });
        clients.collect()
    }

    /// As [`AcmeClient::new`], at the CA's staging area with `directory`, with the same key: nginx
    /// answers its challenges as it answers the others.
    pub fn staging(
        settings: &AcmeSettings,
        state_dir: &Path,
        directory: &str,
    ) -> Result<Self, AcmeClientError> {
        let key = AccountKey::open(state_dir, &settings.directory)?;
        let key = key.at(state_dir, directory)?;
        let ca = CaSettings {
            external_account: None,
            ..first(settings)
        };
        Ok(Self::of_key(&ca, &settings.proxy, key, Patience::default())?.shared())
    }

    fn of_key(
        ca: &CaSettings,
        proxy: &ProxySettings,
        key: AccountKey,
        patience: Patience,
    ) -> Result<Shared, AcmeClientError> {
        let ca_file = ca.ca_file.as_deref();
        let http = AcmeHttp::new(key.directory(), ca_file, proxy, patience.answer)?;
        Ok(Shared {
            key,
            http,
            email: ca.email.clone(),
            external_account: ca.external_account.clone(),
            ca_file: ca.ca_file.clone(),
            answers: None,
            is_first: true,
            is_named: false,
            patience,
            account: tokio::sync::Mutex::default(),
        })
    }

    /// ` (by HOST)`, where there are several.
    pub fn named(&self) -> String {
        let directory = self.directory().split("://").nth(1).unwrap_or_default();
        let host = directory.split('/').next().unwrap_or_default();
        match self.shared.is_named {
            true => format!(" (by {host})"),
            false => String::new(),
        }
    }

    /// Proves by DNS what wants it.
    pub fn with_dns01(self, dns01: Dns01) -> Self {
        Self {
            dns01: Some(dns01),
            ..self
        }
    }

    /// The URL of the directory.
    pub fn directory(&self) -> &str {
        self.shared.key.directory()
    }

    /// Of the account key when this was made; base64url, no padding (RFC 8555 §8.1).
    pub fn thumbprint(&self) -> &str {
        self.shared.key.thumbprint()
    }
}

impl Shared {
    fn shared(self) -> AcmeClient {
        AcmeClient {
            shared: Arc::new(self),
            dns01: None,
        }
    }
}

fn first(settings: &AcmeSettings) -> CaSettings {
    let mut cas = settings.cas();
    cas.swap_remove(0)
}
