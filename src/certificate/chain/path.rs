//! P: where a chain ends, and what browsers ask of its leaf, whatever nginx takes.

use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

use super::Chain;
use crate::certificate::words::one_line;

/// The end of the path that a client can follow from the leaf, by names alone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PathEnd {
    /// An issuer that is not in the chain.
    Issuer(String),
    /// A root that is in it.
    Root(String),
    /// The leaf is its own issuer.
    SelfSigned,
}

impl Chain {
    /// `None`: a certificate cannot be read.
    pub fn path_end(&self) -> Option<PathEnd> {
        let parsed = self.parsed().ok()?;
        let mut last = parsed.first()?;
        if is_self_issued(last) {
            return Some(PathEnd::SelfSigned);
        }
        for _ in 0..parsed.len() {
            let issues =
                |it: &&X509Certificate<'_>| it.subject().as_raw() == last.issuer().as_raw();
            match parsed.iter().find(issues) {
                Some(root) if is_self_issued(root) => {
                    return Some(PathEnd::Root(shown(root.subject())));
                }
                Some(issuer) => last = issuer,
                None => break,
            }
        }
        Some(PathEnd::Issuer(shown(last.issuer())))
    }

    /// Browsers ignore the subject's common name (RFC 9525 §1.3).
    pub fn has_alternative_names(&self) -> bool {
        let leaf = X509Certificate::from_der(self.leaf());
        leaf.is_ok_and(|(_, leaf)| matches!(leaf.subject_alternative_name(), Ok(Some(_))))
    }

    /// RFC 5280 §4.2.1.12; one that does not say is for everything.
    pub fn is_for_servers(&self) -> bool {
        let Ok((_, leaf)) = X509Certificate::from_der(self.leaf()) else {
            return false;
        };
        let usage = leaf.extended_key_usage().ok().flatten();
        usage.is_none_or(|usage| usage.value.server_auth || usage.value.any)
    }
}

fn is_self_issued(certificate: &X509Certificate<'_>) -> bool {
    certificate.issuer().as_raw() == certificate.subject().as_raw()
}

/// A stranger may have written it.
fn shown(name: &X509Name<'_>) -> String {
    one_line(name.to_string().as_bytes())
}
