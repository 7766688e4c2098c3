//! R: whether a chain leads to a root that this system trusts, without asking anybody.
//!
//! A client builds the path from what the server sends. Offline, and without fetching what a
//! certificate names (AIA): nginx's clients do not all fetch it either.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls_platform_verifier::Verifier;

use crate::certificate::Identifier;
use crate::certificate::chain::Chain;
use crate::certificate::http::{HttpError, extra_roots};

/// The system's roots, and those of a private CA, as they were when this was made.
#[derive(Debug)]
pub struct Anchors {
    verifier: Verifier,
}

impl Anchors {
    /// `SSL_CERT_FILE` and `SSL_CERT_DIR` say where the system's are, as for OpenSSL.
    pub fn load(ca_file: Option<&Path>) -> Result<Self, HttpError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = Verifier::new_with_extra_roots(extra_roots(ca_file)?, provider);
        let verifier = verifier.map_err(HttpError::Trust)?;
        Ok(Self { verifier })
    }

    /// Until the certificate ends: a path that ends before would break while it is served.
    pub fn trust(&self, chain_pem: &str, identifier: &Identifier) -> bool {
        let Some(end) = Chain::parse(chain_pem).ok().map(|it| it.validity.not_after) else {
            return false;
        };
        let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes());
        let chain: Vec<_> = chain.filter_map(Result::ok).collect();
        let name = identifier.to_string().replace('*', "wildcard");
        let seconds = u64::try_from(end.unix_timestamp()).unwrap_or_default();
        let end = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let (Some((leaf, others)), Ok(name)) = (chain.split_first(), ServerName::try_from(name))
        else {
            return false;
        };
        let judged = self
            .verifier
            .verify_server_cert(leaf, others, &name, &[], end);
        judged.is_ok()
    }
}
