//! P: how nginx answers http-01 challenges (RFC 8555 §8.3) without being reloaded.

use serde::Serialize;

use super::path_token;
use crate::certificate::{Challenge as Method, Issuer};
use crate::desired::{DesiredTls, DesiredVhost, HostFacts};
use crate::render::token::{Part, Token, TokenError};

/// The answer to `/.well-known/acme-challenge/TOKEN`.
#[derive(Debug, Serialize)]
pub struct ChallengeLocation {
    /// `TOKEN.THUMBPRINT`
    pub answer: Token,
    /// Files that go first, absolute, in the order in which they are looked for: what another ACME
    /// client has put below the vhost's root, then answers for other account keys of ours.
    pub files: Vec<Token>,
}

impl ChallengeLocation {
    /// Of the servers for unknown names: an order may begin before its vhost is live. `None` while
    /// there is no account key.
    pub(super) fn for_unknown_names(host: &HostFacts) -> Result<Option<Self>, TokenError> {
        Self::new(host, Vec::new())
    }

    /// `None` where nothing is ordered by http-01 for `vhost`: another ACME client may answer there.
    pub(super) fn for_vhost(
        host: &HostFacts,
        vhost: &DesiredVhost,
    ) -> Result<Option<Self>, TokenError> {
        if !is_ordered_by_http01(&vhost.tls) {
            return Ok(None);
        }
        let root = vhost.spec.root.as_ref().map(|root| {
            let root = path_token(root.as_path())?;
            Token::expression(&[Part::Value(root.as_str()), Part::Ours("$uri")])
        });
        Self::new(host, root.into_iter().collect::<Result<_, _>>()?)
    }

    fn new(host: &HostFacts, mut files: Vec<Token>) -> Result<Option<Self>, TokenError> {
        let Some(thumbprint) = host.thumbprint.as_deref() else {
            return Ok(None);
        };
        if let Some(directory) = &host.challenge_files {
            let directory = path_token(directory)?;
            let answer = [
                Part::Value(directory.as_str()),
                Part::Ours("/$vhostd_token"),
            ];
            files.push(Token::expression(&answer)?);
        }
        let answer = [Part::Ours("$vhostd_token."), Part::Value(thumbprint)];
        Ok(Some(Self {
            answer: Token::expression(&answer)?,
            files,
        }))
    }
}

fn is_ordered_by_http01(tls: &DesiredTls) -> bool {
    match tls {
        DesiredTls::Off => false,
        DesiredTls::On { wanted, .. } => wanted
            .iter()
            .any(|wanted| wanted.issuer == Issuer::Acme && wanted.challenge == Method::Http01),
    }
}
