//! N: the account at the CA, made with the first order.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::{AcmeClient, OrderError, insist};
use crate::certificate::account::{AccountKey, Registration};
use crate::certificate::http::Exchange;
use crate::certificate::preflight::Ca;

/// What one order speaks through: the shared account, with an exchange of its own.
pub(super) struct Session {
    pub(super) key: AccountKey,
    /// The account's.
    pub(super) url: String,
    /// The directory object.
    pub(super) directory: Value,
    pub(super) account: instant_acme::Account,
    pub(super) exchange: Exchange,
    /// Where to ask when a certificate is to be renewed; `None`: this CA does not tell.
    pub(super) renewal_info: Option<String>,
    pub(super) ca: Ca,
}

/// What orders share.
#[derive(Debug, Default)]
pub(super) struct Account {
    known: Option<Known>,
    /// When asking for it last failed, and what everybody who waited meanwhile is told.
    failed: Option<(Instant, Arc<OrderError>)>,
}

#[derive(Debug)]
struct Known {
    /// The directory object (RFC 8555 §7.1.1).
    directory: Value,
    read_at: Instant,
    url: String,
}

impl AcmeClient {
    /// Opens a session; the first one reads the directory and registers the account.
    pub(super) async fn session(&self) -> Result<Session, OrderError> {
        let asked_at = Instant::now();
        let key = self.shared.key.reread()?;
        let mut account = self.shared.account.lock().await;
        if account
            .known
            .as_ref()
            .is_none_or(|known| known.read_at.elapsed() > DIRECTORY_LIFETIME)
        {
            // a hundred orders do not wait for a hundred connections to time out, one by one
            if let Some((failed_at, error)) = &account.failed
                && *failed_at > asked_at
            {
                return Err(OrderError::Shared(error.clone()));
            }
            match self.known(&key).await {
                Ok(known) => account.known = Some(known),
                Err(error) => {
                    let error = Arc::new(error);
                    account.failed = Some((Instant::now(), error.clone()));
                    return Err(OrderError::Shared(error));
                }
            }
        }
        match &account.known {
            Some(known) => self.open(&key, &known.url, &known.directory).await,
            None => Err(OrderError::TimedOut(self.shared.patience.order)),
        }
    }

    /// The CA as it describes itself, with our account there: for a look without an order.
    pub async fn ca(&self) -> Result<Ca, OrderError> {
        Ok(self.session().await?.ca)
    }

    /// What the CA's clock says, where it has answered within the last minute.
    pub fn ca_now(&self) -> Option<OffsetDateTime> {
        self.shared.http.ca_now()
    }

    /// The CA does not know it: the next session registers the same key again.
    pub(super) async fn forget_account(&self) -> Result<(), OrderError> {
        let mut account = self.shared.account.lock().await;
        account.known = None;
        Ok(self.shared.key.record_registration(None)?)
    }

    async fn known(&self, key: &AccountKey) -> Result<Known, OrderError> {
        let directory = self.read_directory().await?;
        let registration = key.registration()?;
        let url = match registration {
            Some(registration) if registration.email == self.shared.email => registration.url,
            Some(registration) => {
                self.update_contact(key, &registration.url, &directory)
                    .await?;
                registration.url
            }
            None => self.register(key, &directory).await?,
        };
        Ok(Known {
            directory,
            read_at: Instant::now(),
            url,
        })
    }

    pub(super) async fn read_directory(&self) -> Result<Value, OrderError> {
        let step = "read the ACME directory";
        let bytes = self.shared.http.directory().await;
        let bytes = bytes.map_err(|source| OrderError::Http { step, source })?;
        serde_json::from_slice(&bytes).map_err(|error| OrderError::of(step, error.into()))
    }

    /// Makes the account, or finds the one that this key already has (RFC 8555 §7.3.1).
    async fn register(&self, key: &AccountKey, directory: &Value) -> Result<String, OrderError> {
        let step = "register the account";
        let url = self.create(key, directory).await?;
        // recorded, a strange one would make every later request one of a stranger
        self.shared
            .http
            .check_url(&url)
            .map_err(|source| OrderError::Http { step, source })?;
        tracing::info!(account = %url, "registered the ACME account");
        key.record_registration(Some(Registration {
            url: url.clone(),
            email: None,
        }))?;
        if self.shared.email.is_some() {
            self.update_contact(key, &url, directory).await?;
        }
        Ok(url)
    }

    /// A contact is a courtesy: a CA that does not like it keeps nobody from a certificate.
    async fn update_contact(
        &self,
        key: &AccountKey,
        url: &str,
        directory: &Value,
    ) -> Result<(), OrderError> {
        let session = self.open(key, url, directory).await?;
        let contact = self
            .shared
            .email
            .as_ref()
            .map(|email| format!("mailto:{email}"));
        let contacts: Vec<&str> = contact.as_deref().into_iter().collect();
        match insist!(
            "set the account's contact",
            session.account.update_contacts(&contacts)
        ) {
            Err(error) if error.is_lost_account() => return Err(error),
            Err(error) => {
                tracing::warn!("failed to {error}");
                return Ok(());
            }
            Ok(()) => {}
        }
        Ok(key.record_registration(Some(Registration {
            url: url.to_owned(),
            email: self.shared.email.clone(),
        }))?)
    }

    /// From what is known, without the network: the library's other constructors read the
    /// directory once per account object, so once per order.
    async fn open(
        &self,
        key: &AccountKey,
        url: &str,
        directory: &Value,
    ) -> Result<Session, OrderError> {
        let step = "use the ACME account";
        let credentials = serde_json::json!({
            "id": url,
            "key_pkcs8": BASE64_URL_SAFE_NO_PAD.encode(key.pkcs8()?),
            "urls": directory,
        });
        let credentials = serde_json::from_value(credentials)
            .map_err(|error| OrderError::of(step, error.into()))?;
        let exchange = self.shared.http.exchange();
        let account = instant_acme::Account::builder_with_http(Box::new(exchange.clone()))
            .from_credentials(credentials)
            .await
            .map_err(|error| OrderError::of(step, error))?;
        let renewal_info = directory["renewalInfo"].as_str().map(str::to_owned);
        let identities = directory["meta"]["caaIdentities"].as_array();
        let identities = identities.into_iter().flatten();
        let identities = identities.filter_map(|name| name.as_str().map(str::to_owned));
        let ca = Ca {
            host: self.shared.http.host().to_owned(),
            identities: identities.collect(),
            account: url.to_owned(),
            private: self.shared.http.is_private(),
        };
        Ok(Session {
            key: key.clone(),
            url: url.to_owned(),
            directory: directory.clone(),
            account,
            exchange,
            renewal_info,
            ca,
        })
    }
}

const DIRECTORY_LIFETIME: Duration = Duration::from_secs(3600);
