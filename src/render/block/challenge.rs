//! P: how nginx answers http-01 challenges (RFC 8555 §8.3) without being reloaded.

use serde::Serialize;

use super::path_token;
use crate::certificate::WantedCertificate;
use crate::desired::{DesiredTls, DesiredVhost, HostFacts};
use crate::render::token::{Part, Token, TokenError};
use crate::vhost::RootDir;

/// The answer to `/.well-known/acme-challenge/TOKEN`.
#[derive(Debug, Serialize)]
pub struct ChallengeLocation {
    /// `TOKEN.THUMBPRINT`
    pub answer: Token,
    /// Where files are looked for before that, in this order.
    pub files: Vec<ChallengeFile>,
}

/// `location NAME { try_files PATH NEXT; }`
#[derive(Debug, Serialize)]
pub struct ChallengeFile {
    pub name: Token,
    /// Absolute, with variables.
    pub path: Token,
    /// The arguments of `disable_symlinks`.
    pub links: Vec<Token>,
    pub next: Token,
}

impl ChallengeLocation {
    /// Of the servers for unknown names: an order may begin before its vhost is live. `None` while
    /// there is no account key.
    pub(super) fn for_unknown_names(host: &HostFacts) -> Result<Option<Self>, TokenError> {
        Self::new(host, None)
    }

    /// `None` where nothing is ordered by http-01 for `vhost`: another ACME client may answer there.
    pub(super) fn for_vhost(
        host: &HostFacts,
        vhost: &DesiredVhost,
    ) -> Result<Option<Self>, TokenError> {
        match is_ordered_by_http01(&vhost.tls) {
            true => Self::new(host, vhost.spec.root.as_ref()),
            false => Ok(None),
        }
    }

    /// A file of another ACME client below `root` goes first, then answers for other account keys.
    fn new(host: &HostFacts, root: Option<&RootDir>) -> Result<Option<Self>, TokenError> {
        let Some(thumbprint) = host.thumbprint.as_deref() else {
            return Ok(None);
        };
        let mut files = Vec::new();
        if let Some(directory) = &host.challenge_files {
            let directory = path_token(directory)?;
            let path = [
                Part::Value(directory.as_str()),
                Part::Ours("/$vhostd_token"),
            ];
            files.push(ChallengeFile {
                name: Token::literal(OF_OTHER_KEYS)?,
                path: Token::expression(&path)?,
                links: vec![
                    Token::literal("on")?,
                    Token::literal(&format!("from={directory}"))?,
                ],
                next: Token::literal(ANSWER)?,
            });
        }
        if let Some(root) = root {
            let root = path_token(root.as_path())?;
            let next = files.first().map(|file| file.name.clone());
            let file = ChallengeFile {
                name: Token::literal(IN_ROOT)?,
                path: Token::expression(&[Part::Value(root.as_str()), Part::Ours("$uri")])?,
                links: vec![Token::literal("if_not_owner")?],
                next: next.map_or_else(|| Token::literal(ANSWER), Ok)?,
            };
            files.insert(0, file);
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
        DesiredTls::On { wanted, .. } => wanted.iter().any(WantedCertificate::is_ordered_by_http01),
    }
}

const ANSWER: &str = "@vhostd_challenge";
const IN_ROOT: &str = "@vhostd_challenge_in_root";
const OF_OTHER_KEYS: &str = "@vhostd_challenge_of_other_keys";
