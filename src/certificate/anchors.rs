//! R: whether a chain leads to a root that this system trusts, without asking anybody.
//!
//! A client builds the path from what the server sends. Offline, and without fetching what a
//! certificate names (AIA): nginx's clients do not all fetch it either.

use std::path::Path;
use std::sync::Arc;

use rustls::CertificateError;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls_platform_verifier::Verifier;
use time::OffsetDateTime;

use crate::certificate::Identifier;
use crate::certificate::chain::{Chain, PathEnd};
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
        let chain = Chain::parse(chain_pem);
        chain.is_ok_and(|chain| {
            let end = chain.validity.not_after;
            self.verify(&chain, identifier, end).is_ok()
        })
    }

    /// What a client with these roots says of `chain` at `at`.
    pub fn verify(
        &self,
        chain: &Chain,
        identifier: &Identifier,
        at: OffsetDateTime,
    ) -> Result<(), rustls::Error> {
        let certificates = chain.certificates();
        let certificates: Vec<_> = certificates.map(CertificateDer::from).collect();
        let name = identifier.to_string().replace('*', "wildcard");
        let seconds = u64::try_from(at.unix_timestamp()).unwrap_or_default();
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let (Some((leaf, others)), Ok(name)) =
            (certificates.split_first(), ServerName::try_from(name))
        else {
            return Err(CertificateError::BadEncoding.into());
        };
        let verified = self
            .verifier
            .verify_server_cert(leaf, others, &name, &[], at);
        verified.map(|_| ())
    }

    /// What clients will not like about a chain that nginx takes, as fragments about `identifier`.
    /// `file`: where it was read.
    pub fn warnings(
        &self,
        chain: &Chain,
        identifier: &Identifier,
        file: &Path,
        now: OffsetDateTime,
    ) -> Vec<String> {
        let mut warnings = Vec::new();
        if !chain.has_alternative_names() {
            warnings.push("the certificate has no subjectAltName: browsers do not look at its common name, and refuse it".to_owned());
        }
        if !chain.is_for_servers() {
            warnings.push(
                "the certificate is not for servers (extendedKeyUsage): browsers refuse it"
                    .to_owned(),
            );
        }
        let count = chain.certificates().count();
        if count > MANY {
            warnings.push(format!(
                "the chain has {count} certificates, which each handshake sends: leave in {} what a client needs",
                file.display()
            ));
        }
        let Err(error) = self.verify(chain, identifier, now) else {
            return warnings;
        };
        let unknown = error == CertificateError::UnknownIssuer.into();
        match chain.path_end() {
            Some(PathEnd::SelfSigned) => warnings.push(
                "the certificate is self-signed: clients refuse it until they trust it".to_owned(),
            ),
            Some(PathEnd::Root(root)) if unknown => warnings.push(format!(
                "the chain leads to a root that this system does not trust: `{root}`: clients refuse it until they trust that root"
            )),
            Some(PathEnd::Issuer(issuer)) if unknown => warnings.push(format!(
                "the chain is incomplete: the certificate of `{issuer}` is neither in {} nor a root that this system trusts: append the CA's intermediate certificates",
                file.display()
            )),
            _ if warnings.is_empty() => {
                warnings.push(format!("this system does not accept the certificate: {error}"));
            }
            _ => {}
        }
        warnings
    }
}

/// Public CAs' chains have two to four certificates.
const MANY: usize = 10;

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    };
    use time::Duration;

    use super::*;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    fn parameters(name: &str, is_ca: bool) -> CertificateParams {
        let names = if is_ca { vec![] } else { vec![name.to_owned()] };
        let mut parameters = CertificateParams::new(names).unwrap();
        parameters.distinguished_name = DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.not_before = now() - Duration::DAY;
        // as long as an origin CA's
        parameters.not_after = now() + Duration::days(5475);
        if is_ca {
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        parameters
    }

    fn authority(name: &str) -> (Issuer<'static, KeyPair>, String) {
        let (key, parameters) = (KeyPair::generate().unwrap(), parameters(name, true));
        let pem = parameters.self_signed(&key).unwrap().pem();
        (Issuer::new(parameters, key), pem)
    }

    fn signed(
        issuer: &Issuer<'static, KeyPair>,
        parameters: &CertificateParams,
    ) -> (KeyPair, String) {
        let key = KeyPair::generate().unwrap();
        let pem = parameters.signed_by(&key, issuer).unwrap().pem();
        (key, pem)
    }

    #[test]
    fn a_chain_that_clients_will_not_like_is_told_in_words() {
        let ((root, root_pem), (other, other_pem)) = (authority("root"), authority("other"));
        let (key, intermediate_pem) = signed(&root, &parameters("between", true));
        let intermediate = Issuer::new(parameters("between", true), key);
        let (_, leaf) = signed(&intermediate, &parameters("a.example", false));
        let (_, strangers) = signed(&other, &parameters("a.example", false));
        let mut for_clients = parameters("a.example", false);
        for_clients.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let (_, for_clients) = signed(&root, &for_clients);
        let mut nameless = parameters("a.example", false);
        nameless.subject_alt_names.clear();
        let (_, nameless) = signed(&root, &nameless);
        let own = KeyPair::generate().unwrap();
        let own = parameters("a.example", false)
            .self_signed(&own)
            .unwrap()
            .pem();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("root.pem");
        std::fs::write(&file, root_pem).unwrap();
        let anchors = Anchors::load(Some(&file)).unwrap();
        let many = (0..9).map(|nth| authority(&nth.to_string()).1);
        let many: String = many.collect();
        for (pem, expected) in [
            (format!("{leaf}{intermediate_pem}"), None),
            // clients find the path in any order
            (format!("{leaf}{other_pem}{intermediate_pem}"), None),
            (
                leaf.clone(),
                Some("the chain is incomplete: the certificate of `CN=between`"),
            ),
            (
                format!("{strangers}{other_pem}"),
                Some("a root that this system does not trust: `CN=other`"),
            ),
            (
                strangers,
                Some("the certificate of `CN=other` is neither in"),
            ),
            (own, Some("the certificate is self-signed")),
            (for_clients, Some("not for servers")),
            (nameless, Some("no subjectAltName")),
            (
                format!("{leaf}{intermediate_pem}{many}"),
                Some("the chain has 11 certificates"),
            ),
        ] {
            let chain = Chain::from_files(pem.as_bytes()).unwrap();
            let name = Identifier::Dns("a.example".into());
            let told = anchors
                .warnings(&chain, &name, Path::new("/c.pem"), now())
                .join("; ");
            match expected {
                Some(expected) => assert!(told.contains(expected), "{expected}: {told}"),
                None => assert_eq!(told, ""),
            }
        }
    }
}
