//! P: one ACME CA of several: where it is, and who we are there.

use std::path::PathBuf;

use super::AcmeSettings;

/// One CA, with everything that belongs to it alone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CaSettings {
    /// URL of the directory resource (RFC 8555 §7.1.1).
    pub directory: String,
    /// Contact for the account, without `mailto:`.
    pub email: Option<String>,
    /// PEM; further trust for the directory's own TLS.
    pub ca_file: Option<PathBuf>,
    /// What its certificates are asked for with. The first CA's is that of the vhosts.
    pub profile: Option<String>,
    pub external_account: Option<ExternalAccount>,
}

/// The customer's account to which the ACME account is bound (RFC 8555 §7.3.4).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExternalAccount {
    pub key_id: String,
    /// Its MAC key, base64url; read when it is needed.
    pub hmac_key_file: PathBuf,
}

impl AcmeSettings {
    /// In the order in which they are tried; at least one.
    pub fn cas(&self) -> Vec<CaSettings> {
        let first = CaSettings {
            directory: self.directory.clone(),
            email: self.email.clone(),
            ca_file: self.ca_file.clone(),
            profile: self.profile.clone(),
            external_account: self.external_account.clone(),
        };
        std::iter::once(first)
            .chain(self.fallbacks.iter().cloned())
            .collect()
    }
}
