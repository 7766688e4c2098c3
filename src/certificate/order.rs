//! N: CertificateRequest → IssuedCertificate over ACME (RFC 8555), by http-01 or dns-01.
//!
//! With `account` and `http`, the only user of instant-acme. http-01 is not answered here: nginx gives
//! `token.thumbprint` to whoever asks (see [`AcmeClient::thumbprint`]). dns-01 is by `dns01`.

mod authorization; // N what the CA wants proven, and telling it to look
mod error; // P why a certificate was not issued, and whether to ask again
mod renewal; // N when the CA wants a certificate renewed
mod session; // N the account at the CA, made with the first order

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use instant_acme::{CertificateIdentifier, ChallengeType, NewOrder, OrderStatus};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};

pub use self::error::{IdentifierProblem, OrderError};
use self::session::Session;
use crate::certificate::account::{AccountError, AccountKey};
use crate::certificate::dns01::{self, Dns01, Dns01Error};
use crate::certificate::http::{AcmeHttp, BAD_NONCE, HttpError};
use crate::certificate::key::{PrivateKeyPem, signing_request};
use crate::certificate::ledger::{CertificateLock, Ledger, LedgerError, PendingOrder};
use crate::certificate::reuse;
use crate::certificate::{CertificateRequest, Challenge, Identifier, IssuedCertificate, Origin};
use crate::settings::AcmeSettings;

/// Repeats a call whose nonce the CA refused (RFC 8555 §6.5: with a new one, at once). The library
/// itself does so three times, which a busy CA exceeds.
///
/// A macro, because a future that holds an async closure is not `Send` for every lifetime.
macro_rules! insist {
    ($step:expr, $call:expr) => {{
        let mut refused = 0;
        loop {
            match $call.await {
                Err(error) if $crate::certificate::order::is_bad_nonce(&error, refused) => {
                    refused += 1
                }
                outcome => {
                    break outcome
                        .map_err(|error| $crate::certificate::order::OrderError::of($step, error));
                }
            }
        }
    }};
}
use insist;

/// One account at one CA. Cheap to clone; clones share the account and the connections.
#[derive(Clone, Debug)]
pub struct AcmeClient {
    shared: Arc<Shared>,
    dns01: Option<Dns01>,
}

#[derive(Debug)]
struct Shared {
    key: AccountKey,
    http: AcmeHttp,
    email: Option<String>,
    patience: Patience,
    account: tokio::sync::Mutex<session::Account>,
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

/// An order on its way, new or resumed.
struct Running<'a> {
    session: &'a Session,
    order: instant_acme::Order,
    key: PrivateKeyPem,
    identifiers: &'a [Identifier],
    dns01: Option<&'a dns01::Session>,
    origin: Origin,
    longest_wait: Duration,
    /// The journal's entry; the CA is told nothing that cannot be resumed before it is durable.
    recorded: Option<JoinHandle<Result<(), LedgerError>>>,
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
        Self::of_key(settings, key, patience)
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
        Self::of_key(settings, key, Patience::default())
    }

    fn of_key(
        settings: &AcmeSettings,
        key: AccountKey,
        patience: Patience,
    ) -> Result<Self, AcmeClientError> {
        let ca_file = settings.ca_file.as_deref();
        let http = AcmeHttp::new(key.directory(), ca_file, patience.answer)?;
        Ok(Self {
            shared: Arc::new(Shared {
                key,
                http,
                email: settings.email.clone(),
                patience,
                account: tokio::sync::Mutex::default(),
            }),
            dns01: None,
        })
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

    /// What nginx answers behind every token: base64url, no padding (RFC 8555 §8.1).
    pub fn thumbprint(&self) -> &str {
        self.shared.key.thumbprint()
    }

    /// Orders the certificate, or finishes the order that an earlier attempt has left.
    ///
    /// `lock` is the certificate's. The chain is as the CA sent it: the store checks
    /// it. The order stays in the ledger until the caller has stored the certificate.
    pub async fn order(
        &self,
        request: &CertificateRequest,
        ledger: &Ledger,
        lock: &CertificateLock,
    ) -> Result<IssuedCertificate, OrderError> {
        let wildcard = request.identifiers.iter().find(|name| is_wildcard(name));
        if let (Some(wildcard), Challenge::Http01) = (wildcard, &request.challenge) {
            return Err(OrderError::Wildcard(wildcard.clone()));
        }
        let session = self.dns_session(request, lock)?;
        let mut limit = self.shared.patience.order;
        if let Some(session) = &session {
            session.clean_up().await;
            limit += session.longest(request.identifiers.len());
        }
        let work = self.order_without_deadline(request, ledger, lock, session.as_ref());
        let outcome = timeout(limit, work).await;
        // however it ended
        if let Some(session) = &session {
            session.clean_up().await;
        }
        outcome.unwrap_or(Err(OrderError::TimedOut(limit)))
    }

    fn dns_session(
        &self,
        request: &CertificateRequest,
        lock: &CertificateLock,
    ) -> Result<Option<dns01::Session>, OrderError> {
        match (&self.dns01, &request.challenge) {
            (Some(dns01), _) => Ok(dns01.session(request, lock)?),
            (None, Challenge::Http01) => Ok(None),
            (None, Challenge::Dns01(provider)) => {
                Err(Dns01Error::NoProvider(provider.to_string()).into())
            }
        }
    }

    async fn order_without_deadline(
        &self,
        request: &CertificateRequest,
        ledger: &Ledger,
        lock: &CertificateLock,
        dns01: Option<&dns01::Session>,
    ) -> Result<IssuedCertificate, OrderError> {
        match self.attempt(request, ledger, lock, dns01).await {
            Err(error) if error.is_lost_account() => {
                tracing::warn!(identifier = %request.name, "the CA does not know our account: registering it again");
                self.forget_account().await?;
                self.attempt(request, ledger, lock, dns01).await
            }
            outcome => outcome,
        }
    }

    async fn attempt(
        &self,
        request: &CertificateRequest,
        ledger: &Ledger,
        lock: &CertificateLock,
        dns01: Option<&dns01::Session>,
    ) -> Result<IssuedCertificate, OrderError> {
        let session = self.session().await?;
        let mut running = match self.resume(&session, request, ledger).await? {
            Some(running) => running,
            None => self.begin(&session, request, ledger, lock).await?,
        };
        running.dns01 = dns01.filter(|session| session.is_used());
        let outcome = running.finish().await;
        if outcome.as_ref().is_err_and(OrderError::ends_order) {
            running.recorded().await?;
            ledger.forget_order(&request.name)?;
        }
        outcome
    }

    /// The order of the ledger, where the CA still has it and it is the one that is wanted.
    async fn resume<'a>(
        &self,
        session: &'a Session,
        request: &'a CertificateRequest,
        ledger: &Ledger,
    ) -> Result<Option<Running<'a>>, OrderError> {
        let Some(pending) = ledger.pending(&request.name)? else {
            return Ok(None);
        };
        let wanted = pending.directory == self.shared.key.directory()
            && pending.identifiers == request.identifiers
            && pending.profile == request.profile
            && pending.key.is_of(request.key_type);
        if wanted {
            let found = insist!(
                "ask for the pending order",
                session.account.order(pending.url.clone())
            );
            let found = match found {
                Err(error) if !error.ends_order() || error.is_lost_account() => return Err(error),
                found => found.ok(),
            };
            if let Some(order) = found.and_then(not_invalid) {
                tracing::info!(identifier = %request.name, "resuming the pending order");
                return Ok(Some(Running {
                    session,
                    order,
                    key: pending.key,
                    identifiers: &request.identifiers,
                    dns01: None,
                    origin: self.origin(request),
                    longest_wait: self.shared.patience.order,
                    recorded: None,
                }));
            }
        }
        ledger.forget_order(&request.name)?;
        Ok(None)
    }

    async fn begin<'a>(
        &self,
        session: &'a Session,
        request: &'a CertificateRequest,
        ledger: &Ledger,
        lock: &CertificateLock,
    ) -> Result<Running<'a>, OrderError> {
        // beside the request to the CA: an RSA key takes longer than that
        let of = request.clone();
        let key = spawn_blocking(move || reuse::key(&of));
        let step = "ask for a new order";
        let order = self.new_order(step, session, request).await?;
        let key = key.await??;
        // before it is in the journal
        self.shared
            .http
            .check_url(order.url())
            .map_err(|source| OrderError::Http { step, source })?;
        let pending = PendingOrder {
            directory: self.shared.key.directory().to_owned(),
            url: order.url().to_owned(),
            identifiers: request.identifiers.clone(),
            profile: request.profile.clone(),
            key: key.clone(),
        };
        let (ledger, name, lock) = (ledger.clone(), request.name.clone(), lock.clone());
        Ok(Running {
            session,
            order,
            key,
            identifiers: &request.identifiers,
            dns01: None,
            origin: self.origin(request),
            longest_wait: self.shared.patience.order,
            recorded: Some(spawn_blocking(move || {
                let _lock = lock;
                ledger.record_order(&name, &pending)
            })),
        })
    }

    /// The certificate that the new one replaces is named where the CA can use that (RFC 9773 §5):
    /// such an order is exempt from rate limits. A CA that refuses it for that, because it has been
    /// replaced before or is another account's, is asked without.
    async fn new_order(
        &self,
        step: &'static str,
        session: &Session,
        request: &CertificateRequest,
    ) -> Result<instant_acme::Order, OrderError> {
        let identifiers: Vec<_> = request.identifiers.iter().map(acme_identifier).collect();
        let plain = || {
            let new = NewOrder::new(&identifiers);
            match &request.profile {
                Some(profile) => new.profile(profile),
                None => new,
            }
        };
        let id = request.renewal_id.as_ref();
        let parts = id.and_then(|id| id.as_str().split_once('.'));
        let known = parts.filter(|_| session.renewal_info.is_some());
        let Some((authority_key_identifier, serial)) = known else {
            return insist!(step, session.account.new_order(&plain()));
        };
        let replacing = plain().replaces(CertificateIdentifier {
            authority_key_identifier: authority_key_identifier.into(),
            serial: serial.into(),
        });
        match insist!(step, session.account.new_order(&replacing)) {
            Err(error) if error.may_be_about_what_is_replaced() => {
                tracing::info!(identifier = %request.name, "ordering without naming what is replaced: {error}");
                insist!(step, session.account.new_order(&plain()))
            }
            outcome => outcome,
        }
    }

    fn origin(&self, request: &CertificateRequest) -> Origin {
        Origin {
            directory: self.shared.key.directory().to_owned(),
            profile: request.profile.clone(),
        }
    }
}

impl Running<'_> {
    /// From whichever state the order is in (RFC 8555 §7.1.6) to the certificate.
    async fn finish(&mut self) -> Result<IssuedCertificate, OrderError> {
        let mut request = None;
        let (mut answered, mut finalized) = (false, false);
        let mut delay = FIRST_DELAY;
        loop {
            match self.order.state().status {
                OrderStatus::Pending if !answered => {
                    self.answer().await?;
                    answered = true;
                    // while the CA validates
                    request = Some(signing_request(self.identifiers, &self.key)?);
                    delay = FIRST_DELAY;
                }
                OrderStatus::Ready if !finalized => {
                    self.recorded().await?;
                    let csr = match request.take() {
                        Some(csr) => csr,
                        None => signing_request(self.identifiers, &self.key)?,
                    };
                    finalized = self.finalize(&csr).await?;
                    request = Some(csr);
                    delay = FIRST_DELAY;
                    if self.order.state().status == OrderStatus::Valid {
                        continue;
                    }
                }
                OrderStatus::Valid => return self.download().await,
                OrderStatus::Invalid => {
                    return Err(authorization::reasons(&mut self.order).await);
                }
                OrderStatus::Pending | OrderStatus::Ready | OrderStatus::Processing => {}
            }
            self.pause(delay).await?;
            delay = delay.mul_f32(1.5).min(LONGEST_DELAY);
            insist!("ask for the order", refresh(&mut self.order))?;
        }
    }

    /// As long as the CA asks for, and never shorter than `delay`: "0" would be asked for without a
    /// pause. What it asks for beyond the order's time is the schedule's affair.
    async fn pause(&self, delay: Duration) -> Result<(), OrderError> {
        let asked = self.session.exchange.take_retry_after().unwrap_or(delay);
        if asked >= self.longest_wait {
            return Err(OrderError::Later(asked));
        }
        sleep(asked.max(delay)).await;
        Ok(())
    }

    /// Tells the CA to validate every identifier that is not valid yet.
    async fn answer(&mut self) -> Result<(), OrderError> {
        authorization::check_count(&mut self.order, self.identifiers)?;
        insist!(
            "ask for the authorizations",
            authorization::load(&mut self.order)
        )?;
        authorization::check_identifiers(&mut self.order, self.identifiers).await?;
        self.recorded().await?;
        let kind = match self.dns01 {
            None => ChallengeType::Http01,
            Some(session) => {
                let texts = authorization::texts(&mut self.order).await?;
                session.publish(&texts).await?;
                ChallengeType::Dns01
            }
        };
        for (nth, error) in authorization::set_all_ready(&mut self.order, kind).await? {
            // it may have been validated meanwhile, by what an earlier attempt has asked for
            if authorization::is_pending(&mut self.order, nth).await? {
                return Err(error);
            }
        }
        // what it says about the challenges is not about the order
        self.session.exchange.take_retry_after();
        Ok(())
    }

    /// `false`: the CA is not that far, although it has just said so.
    async fn finalize(&mut self, csr: &[u8]) -> Result<bool, OrderError> {
        match insist!("finalize the order", self.order.finalize_csr(csr)) {
            Err(error) if error.is_not_ready() => Ok(false),
            outcome => outcome.map(|()| true),
        }
    }

    async fn download(&mut self) -> Result<IssuedCertificate, OrderError> {
        let step = "download the certificate";
        let chain = insist!(step, self.order.certificate())?;
        let missing = instant_acme::Error::Str("no certificate in a valid order");
        Ok(IssuedCertificate {
            chain_pem: chain.ok_or_else(|| OrderError::of(step, missing))?,
            key_pem: self.key.clone(),
            origin: Some(self.origin.clone()),
        })
    }

    /// Waits for the journal's entry.
    async fn recorded(&mut self) -> Result<(), OrderError> {
        match self.recorded.take() {
            Some(recorded) => Ok(recorded.await??),
            None => Ok(()),
        }
    }
}

async fn refresh(order: &mut instant_acme::Order) -> Result<(), instant_acme::Error> {
    order.refresh().await.map(drop)
}

fn not_invalid(mut order: instant_acme::Order) -> Option<instant_acme::Order> {
    (order.state().status != OrderStatus::Invalid).then_some(order)
}

/// Whether only the nonce was refused, and not too often.
fn is_bad_nonce(error: &instant_acme::Error, refused: u32) -> bool {
    let instant_acme::Error::Api(problem) = error else {
        return false;
    };
    problem.r#type.as_deref() == Some(BAD_NONCE) && refused < REFUSED_NONCES
}

fn is_wildcard(identifier: &Identifier) -> bool {
    matches!(identifier, Identifier::Dns(name) if name.starts_with("*."))
}

fn acme_identifier(identifier: &Identifier) -> instant_acme::Identifier {
    match identifier {
        Identifier::Dns(name) => instant_acme::Identifier::Dns(name.clone()),
        Identifier::Ip(address) => instant_acme::Identifier::Ip(*address),
    }
}

/// A CA beside us validates in a few milliseconds; one far away says when to ask, or is asked
/// some fifteen times in the first ten seconds.
const FIRST_DELAY: Duration = Duration::from_millis(2);
const LONGEST_DELAY: Duration = Duration::from_secs(2);
const REFUSED_NONCES: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_refused_without_the_network() {
        let directory = tempfile::tempdir().unwrap();
        let settings = AcmeSettings {
            directory: "https://ca.invalid/directory".into(),
            ..AcmeSettings::default()
        };
        let client = AcmeClient::new(&settings, directory.path()).unwrap();
        let wanted = crate::certificate::WantedCertificate::new(
            vec![Identifier::Dns("*.a.example".into())],
            crate::certificate::Issuer::Acme,
        );
        let request = CertificateRequest::new(&wanted.unwrap(), None, None);
        let ledger = Ledger::new(directory.path());
        let lock = ledger.try_lock(&request.name).unwrap().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let error = runtime
            .block_on(client.order(&request, &ledger, &lock))
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "order *.a.example: a wildcard needs dns-01"
        );
    }
}
