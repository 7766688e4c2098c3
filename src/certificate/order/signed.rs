//! N: signed requests that the protocol library does not make.

use bytes::Bytes;
use http::{Response, header::LOCATION};
use serde_json::{Value, json};

use super::{AcmeClient, OrderError, REFUSED_NONCES};
use crate::certificate::account::AccountKey;
use crate::certificate::external_account::mac_key;
use crate::certificate::http::{HttpError, Problem, refused_nonce};
use crate::certificate::jws::{self, Sender};
use crate::certificate::key::PrivateKeyPem;
use crate::certificate::words::one_line;

/// A request and whom it is from.
pub(super) struct Signed<'a> {
    pub(super) step: &'static str,
    pub(super) key: &'a PrivateKeyPem,
    pub(super) sender: Sender<'a>,
    pub(super) url: &'a str,
    pub(super) payload: Option<&'a Value>,
}

impl AcmeClient {
    /// Sends it, with another nonce each time that one is refused (RFC 8555 §6.5).
    pub(super) async fn send(
        &self,
        directory: &Value,
        request: &Signed<'_>,
    ) -> Result<Response<Bytes>, OrderError> {
        let step = request.step;
        let http = &self.shared.http;
        let failed = |source| OrderError::Http { step, source };
        let new_nonce = directory["newNonce"].as_str().unwrap_or_default();
        let mut nonce = http.nonce(new_nonce).await.map_err(failed)?;
        for _ in 0..REFUSED_NONCES {
            let Signed {
                key,
                sender,
                url,
                payload,
                ..
            } = *request;
            let body = jws::signed(key, sender, Some(&nonce), url, payload)?;
            let answer = http.post(url, body.to_string().into_bytes()).await;
            let answer = answer.map_err(failed)?;
            if answer.status().is_success() {
                return Ok(answer);
            }
            nonce = match refused_nonce(&answer) {
                Some(next) => next,
                None => http.nonce(new_nonce).await.map_err(failed)?,
            };
        }
        Err(failed(HttpError::Problem(Problem {
            kind: crate::certificate::http::BAD_NONCE.to_owned(),
            ..Problem::default()
        })))
    }

    /// The CA's names in CAA records (RFC 8555 §9.7.6); none where it does not say.
    pub async fn caa_identities(&self) -> Result<Vec<String>, OrderError> {
        let directory = self.read_directory().await?;
        let identities = directory["meta"]["caaIdentities"].as_array();
        let names = identities.into_iter().flatten().filter_map(Value::as_str);
        Ok(names.map(|name| one_line(name.as_bytes())).collect())
    }

    /// Makes the account, or finds the one that this key already has (RFC 8555 §7.3.1); its URL. The
    /// terms of service are agreed to: the operator does by configuring the CA.
    pub(super) async fn create(
        &self,
        key: &AccountKey,
        directory: &Value,
    ) -> Result<String, OrderError> {
        let url = directory["newAccount"].as_str().unwrap_or_default();
        let mut payload = json!({"termsOfServiceAgreed": true});
        let external = self.shared.external_account.as_ref();
        if let Some(external) = external {
            let mac_key = mac_key(external)?;
            let binding = jws::binding(key.key(), &external.key_id, &mac_key, url)?;
            payload["externalAccountBinding"] = binding;
            // some of those CAs refuse a customer without an address
            if let Some(email) = &self.shared.email {
                payload["contact"] = json!([format!("mailto:{email}")]);
            }
        } else if directory["meta"]["externalAccountRequired"] == true {
            return Err(OrderError::ExternalAccountMissing(
                self.directory().to_owned(),
            ));
        }
        let request = Signed {
            step: "register the account",
            key: key.key(),
            sender: Sender::Key,
            url,
            payload: Some(&payload),
        };
        let answer = match self.send(directory, &request).await {
            Err(error) if error.wants_external_account() => {
                let directory = self.directory().to_owned();
                return Err(OrderError::ExternalAccountMissing(directory));
            }
            Err(error) if external.is_some() && error.is_about_the_account() => {
                let key_id = external.map(|it| it.key_id.clone()).unwrap_or_default();
                return Err(OrderError::ExternalAccountRefused {
                    key_id,
                    source: Box::new(error),
                });
            }
            answer => answer?,
        };
        location(&answer, "register the account")
    }
}

pub(super) fn location(answer: &Response<Bytes>, step: &'static str) -> Result<String, OrderError> {
    let location = answer.headers().get(LOCATION);
    let location = location.and_then(|location| location.to_str().ok());
    let missing = instant_acme::Error::Str("no account URL in the answer");
    location
        .map(str::to_owned)
        .ok_or_else(|| OrderError::of(step, missing))
}
