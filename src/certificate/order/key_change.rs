//! N: the CA is told of the account's next key (RFC 8555 §7.3.5).

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::signed::Signed;
use super::{AcmeClient, OrderError};
use crate::certificate::account::successor::KeyLock;
use crate::certificate::account::{AccountError, AccountKey};
use crate::certificate::jws::{self, Sender, jwk};
use crate::certificate::key::PrivateKeyPem;

impl AcmeClient {
    /// The account key as it is on disk now.
    pub fn key(&self) -> Result<AccountKey, AccountError> {
        self.shared.key.reread()
    }

    /// Not every CA lets an account change its key.
    pub async fn can_change_key(&self) -> Result<bool, OrderError> {
        let directory = self.read_directory().await?;
        Ok(directory["keyChange"].is_string())
    }

    /// Makes the prepared successor the account's key, at the CA and then here. Orders that are under
    /// way are waited for, and nobody begins one meanwhile. Where an earlier change came that far, only
    /// what was left is done.
    pub async fn change_key(&self) -> Result<(), OrderError> {
        let _changing = self.lock_key(AccountKey::try_change).await?;
        self.learn_which_key().await?;
        let key = self.key()?;
        let Some(successor) = key.successor() else {
            return Ok(());
        };
        let session = self.session().await?;
        let url = session.directory["keyChange"].as_str();
        let url = url.ok_or_else(|| OrderError::NoKeyChange(self.directory().to_owned()))?;
        let told = json!({"account": session.url, "oldKey": jwk(key.key())?});
        let by_successor = jws::signed(successor, Sender::Key, None, url, Some(&told))?;
        let request = Signed {
            step: "change the account's key",
            key: key.key(),
            sender: Sender::Account(&session.url),
            url,
            payload: Some(&by_successor),
        };
        self.send(&session.directory, &request).await?;
        key.adopt_successor()?;
        tracing::info!(account = %session.url, "the account has another key");
        Ok(())
    }

    /// For who signs with the account's key.
    pub(super) async fn use_key(&self) -> Result<KeyLock, OrderError> {
        self.lock_key(AccountKey::try_use).await
    }

    /// Of a change that was cut short: whether the CA knows the successor. It knows one of the two.
    pub(super) async fn learn_which_key(&self) -> Result<(), OrderError> {
        let key = self.key()?;
        let Some(successor) = key.successor() else {
            return Ok(());
        };
        let directory = self.read_directory().await?;
        if self.knows(&directory, successor).await? {
            key.adopt_successor()?;
            tracing::info!("the CA knows the account's next key already: it is used from now on");
        }
        Ok(())
    }

    /// RFC 8555 §7.3.1.
    async fn knows(&self, directory: &Value, key: &PrivateKeyPem) -> Result<bool, OrderError> {
        let request = Signed {
            step: "ask which of two keys the account has",
            key,
            sender: Sender::Key,
            url: directory["newAccount"].as_str().unwrap_or_default(),
            payload: Some(&json!({"onlyReturnExisting": true})),
        };
        match self.send(directory, &request).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_lost_account() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Polled, not blocked on: a future can be cancelled, a thread in flock(2) cannot.
    async fn lock_key(
        &self,
        lock: impl Fn(&AccountKey) -> Result<Option<KeyLock>, AccountError>,
    ) -> Result<KeyLock, OrderError> {
        // as long as an order may take, and a little more
        let limit = self.shared.patience.order + Duration::from_secs(10);
        let deadline = Instant::now() + limit;
        let mut delay = Duration::from_millis(5);
        while Instant::now() < deadline {
            if let Some(locked) = lock(&self.shared.key)? {
                return Ok(locked);
            }
            sleep(delay).await;
            delay = (delay * 2).min(Duration::from_millis(200));
        }
        Err(OrderError::KeyInUse(limit))
    }
}
