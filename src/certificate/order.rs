//! N: CertificateRequest → IssuedCertificate over ACME (RFC 8555), by http-01 or dns-01.
//!
//! With `account` and `http`, the only user of instant-acme. http-01 is not answered here: nginx gives
//! `token.thumbprint` to whoever asks (see [`AcmeClient::thumbprint`]). dns-01 is by `dns01`.

mod alternate; // N another chain, where the usual one leads to no root that this system trusts
mod authorization; // N what the CA wants proven, and telling it to look
mod client; // W one account at one CA, or at each of several
mod error; // P why a certificate was not issued, and whether to ask again
mod identifiers; // P what a failed order says of single identifiers
mod key_change; // N the CA is told of the account's next key
mod renewal; // N when the CA wants a certificate renewed
mod session; // N the account at the CA, made with the first order
mod signed; // N signed requests that the protocol library does not make

use std::sync::Arc;
use std::time::Duration;

use instant_acme::{CertificateIdentifier, ChallengeType, NewOrder, OrderStatus};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};

use self::client::Shared;
pub use self::client::{AcmeClientError, Patience};
pub use self::error::{IdentifierProblem, OrderError};
use self::session::Session;
use crate::certificate::account::AccountKey;
use crate::certificate::answers::{Answered, ChallengeFiles};
use crate::certificate::dns01::{self, Dns01, Dns01Error};
use crate::certificate::http::BAD_NONCE;
use crate::certificate::key::{PrivateKeyPem, signing_request};
use crate::certificate::ledger::{CertificateLock, Ledger, LedgerError, PendingOrder};
use crate::certificate::preflight::flight::Preflight;
use crate::certificate::reuse;
use crate::certificate::{CertificateRequest, Challenge, Identifier, IssuedCertificate, Origin};

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

/// What is looked at before an order, and who publishes texts for it.
type Proofs<'a> = (Option<&'a Preflight<'a>>, Option<&'a dns01::Session>);

/// An order on its way, new or resumed.
struct Running<'a> {
    session: &'a Session,
    order: instant_acme::Order,
    key: PrivateKeyPem,
    identifiers: &'a [Identifier],
    dns01: Option<&'a dns01::Session>,
    origin: Origin,
    longest_wait: Duration,
    /// Where nginx does not answer by itself, and what it answers from now.
    files: Option<ChallengeFiles>,
    answered: Vec<Answered>,
    /// The journal's entry; the CA is told nothing that cannot be resumed before it is durable.
    recorded: Option<JoinHandle<Result<(), LedgerError>>>,
}

impl AcmeClient {
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
        self.order_checked(request, ledger, lock, None).await
    }

    /// As [`AcmeClient::order`]; `preflight` sees a new order before the CA does, and may keep it
    /// back.
    pub async fn order_checked(
        &self,
        request: &CertificateRequest,
        ledger: &Ledger,
        lock: &CertificateLock,
        preflight: Option<&Preflight<'_>>,
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
        let proofs = (preflight, session.as_ref());
        let work = self.order_without_deadline(request, ledger, lock, proofs);
        let outcome = timeout(limit, work).await;
        let outcome = outcome.unwrap_or(Err(OrderError::TimedOut(limit)));
        // however it ended
        match session {
            Some(session) if outcome.is_ok() => session.clean_up_beside().await,
            Some(session) => session.clean_up().await,
            None => {}
        }
        outcome
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
        proofs: Proofs<'_>,
    ) -> Result<IssuedCertificate, OrderError> {
        let _used = self.use_key().await?;
        self.learn_which_key().await?;
        match self.attempt(request, ledger, lock, proofs).await {
            Err(error) if error.is_lost_account() => {
                tracing::warn!(identifier = %request.name, "the CA does not know our account: registering it again");
                self.forget_account().await?;
                self.attempt(request, ledger, lock, proofs).await
            }
            outcome => outcome,
        }
    }

    async fn attempt(
        &self,
        request: &CertificateRequest,
        ledger: &Ledger,
        lock: &CertificateLock,
        (preflight, dns01): Proofs<'_>,
    ) -> Result<IssuedCertificate, OrderError> {
        let session = self.session().await?;
        let mut running = match self.resume(&session, request, ledger).await? {
            Some(running) => running,
            None => {
                if let Some(preflight) = preflight {
                    let admitted = preflight.admit(session.ca.clone(), self.shared.http.ca_now());
                    admitted.await.map_err(OrderError::NotSent)?;
                }
                self.begin(&session, request, ledger, lock).await?
            }
        };
        running.dns01 = dns01.filter(|session| session.is_used());
        let outcome = running.finish().await;
        if outcome.as_ref().is_err_and(OrderError::ends_order) {
            running.recorded().await?;
            ledger.forget_order(&request.name)?;
        }
        drop(running);
        Ok(self.with_best_chain(&session, request, outcome?).await)
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
                    files: self.files(&session.key),
                    answered: Vec::new(),
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
            files: self.files(&session.key),
            answered: Vec::new(),
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

    /// `None`: what nginx answers by itself is right.
    fn files(&self, key: &AccountKey) -> Option<ChallengeFiles> {
        let by_itself = self.shared.is_first && !key.is_changing();
        self.shared.answers.clone().filter(|_| !by_itself)
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
        for nth in 0..self.order.state().authorizations.len() {
            // each by itself: a hundred together meet more refused nonces than one call may
            let step = "ask for the authorizations";
            insist!(step, authorization::load(&mut self.order, nth))?;
        }
        authorization::check_identifiers(&mut self.order, self.identifiers).await?;
        self.recorded().await?;
        let kind = match self.dns01 {
            None => {
                self.answer_from_files().await?;
                ChallengeType::Http01
            }
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

    /// What nginx cannot answer by itself.
    async fn answer_from_files(&mut self) -> Result<(), OrderError> {
        let Some(files) = self.files.clone() else {
            return Ok(());
        };
        let tokens = authorization::tokens(&mut self.order).await?;
        let thumbprint = self.session.key.thumbprint().to_owned();
        let answer = move |token: String| files.answer(&token, &thumbprint);
        let answered = spawn_blocking(move || {
            let tokens = tokens.into_iter();
            tokens.map(answer).collect::<Result<Vec<_>, _>>()
        });
        self.answered = answered.await??;
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
            adopted: false,
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
/// some twenty times in the first ten seconds.
const FIRST_DELAY: Duration = Duration::from_millis(1);
const LONGEST_DELAY: Duration = Duration::from_secs(2);
/// In a row, of three each: where nine of ten are refused, one call in ten million fails.
const REFUSED_NONCES: u32 = 50;

#[cfg(test)]
mod tests;
