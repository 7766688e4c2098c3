//! N: another chain, where the CA's usual one leads to no root that this system trusts
//! (RFC 8555 §7.4.2).

use tokio::task::spawn_blocking;

use super::session::Session;
use super::signed::Signed;
use super::{AcmeClient, OrderError};
use crate::certificate::anchors::Anchors;
use crate::certificate::chain::Chain;
use crate::certificate::jws::Sender;
use crate::certificate::{CertificateRequest, IssuedCertificate};

impl AcmeClient {
    /// The chain as it came, unless another one is better. Never an error: a certificate is there.
    pub(super) async fn with_best_chain(
        &self,
        session: &Session,
        request: &CertificateRequest,
        mut issued: IssuedCertificate,
    ) -> IssuedCertificate {
        let alternates = session.exchange.take_alternates();
        let Some(identifier) = request
            .identifiers
            .first()
            .filter(|_| !alternates.is_empty())
        else {
            return issued;
        };
        let ca_file = self.shared.ca_file.clone();
        let loaded = spawn_blocking(move || Anchors::load(ca_file.as_deref())).await;
        let anchors = match loaded {
            Ok(Ok(anchors)) => anchors,
            Ok(Err(error)) => {
                tracing::warn!(identifier = %request.name, "the CA's usual chain is served: {error}");
                return issued;
            }
            Err(_) => return issued,
        };
        if anchors.trust(&issued.chain_pem, identifier) {
            return issued;
        }
        for url in alternates.iter().take(MOST_ALTERNATES) {
            match self.alternate(session, url).await {
                Ok(chain) if !is_of_same_leaf(&chain, &issued.chain_pem) => {
                    tracing::warn!(identifier = %request.name, "an alternate chain of the CA is for another certificate");
                }
                Ok(chain) if anchors.trust(&chain, identifier) => {
                    tracing::info!(identifier = %request.name, "the CA's usual chain leads to no root that this system trusts: an alternate is served");
                    issued.chain_pem = chain;
                    return issued;
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(identifier = %request.name, "failed to {error}"),
            }
        }
        tracing::warn!(identifier = %request.name, "no chain of the CA leads to a root that this system trusts: the usual one is served");
        issued
    }

    async fn alternate(&self, session: &Session, url: &str) -> Result<String, OrderError> {
        let request = Signed {
            step: "download an alternate chain",
            key: session.key.key(),
            sender: Sender::Account(&session.url),
            url,
            payload: None,
        };
        let answer = self.send(&session.directory, &request).await?;
        Ok(String::from_utf8_lossy(answer.body()).into_owned())
    }
}

fn is_of_same_leaf(one: &str, other: &str) -> bool {
    match (Chain::parse(one), Chain::parse(other)) {
        (Ok(one), Ok(other)) => one.leaf() == other.leaf(),
        _ => false,
    }
}

/// Real CAs have one or two.
const MOST_ALTERNATES: usize = 5;
