//! P: what a browser and OpenSSL ask of a chain beyond its names: that each certificate signs the
//! one before it, that the leaf is for servers, and that nothing is too weak.
//!
//! nginx takes a chain that does not link, and every browser refuses it; OpenSSL refuses a weak
//! certificate at its security level 2, and nginx with it the whole configuration.

use oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_MD5_WITH_RSA, OID_NIST_EC_P384, OID_NIST_EC_P521,
    OID_PKCS1_MD2WITHRSAENC, OID_PKCS1_MD5WITHRSAENC, OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA,
    OID_SIG_DSA_WITH_SHA1, OID_SIG_ED448, OID_SIG_ED25519, Oid,
};
use x509_parser::der_parser::oid;
use x509_parser::error::X509Error;
use x509_parser::oid_registry;
use x509_parser::prelude::X509Certificate;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

use super::ChainError;

/// `chain`: leaf first, at least one.
pub(super) fn check(chain: &[X509Certificate<'_>]) -> Result<(), ChainError> {
    for (index, pair) in chain.windows(2).enumerate() {
        if let [certificate, issuer] = pair {
            link(certificate, issuer).map_err(|reason| ChainError::Link {
                nth: index + 1,
                next: index + 2,
                reason,
            })?;
        }
    }
    check_strength(chain)?;
    for (index, certificate) in chain.iter().enumerate() {
        let key = certificate.public_key();
        let is_rsa = matches!(key.parsed(), Ok(PublicKey::RSA(_)));
        if !is_rsa && !is_known_to_openssl(&key.algorithm) {
            let reason = "its key is of a kind that OpenSSL may not know";
            return Err(ChainError::Weak {
                nth: index + 1,
                reason,
            });
        }
    }
    match chain.first().map(|leaf| leaf.extended_key_usage()) {
        Some(Ok(Some(usage))) if !usage.value.server_auth && !usage.value.any => {
            Err(ChainError::Usage)
        }
        _ => Ok(()),
    }
}

/// Whether browsers take the leaf's key, and OpenSSL's security level 2 lets every certificate pass.
pub(super) fn check_keys(chain: &[X509Certificate<'_>]) -> Result<(), ChainError> {
    check_strength(chain)?;
    match chain.first() {
        Some(leaf) if !is_for_browsers(leaf.public_key()) => Err(ChainError::Weak {
            nth: 1,
            reason: "browsers do not know its kind of key: use RSA, ECDSA on P-256, P-384 or P-521, or Ed25519",
        }),
        _ => Ok(()),
    }
}

fn check_strength(chain: &[X509Certificate<'_>]) -> Result<(), ChainError> {
    for (index, certificate) in chain.iter().enumerate() {
        strength(certificate).map_err(|reason| ChainError::Weak {
            nth: index + 1,
            reason,
        })?;
    }
    Ok(())
}

/// BoringSSL, NSS and rustls agree on these; points are not compressed (RFC 8422 §5.1.2).
fn is_for_browsers(key: &SubjectPublicKeyInfo<'_>) -> bool {
    match key.parsed() {
        Ok(PublicKey::RSA(key)) => key.key_size() <= MOST_RSA_BITS,
        Ok(PublicKey::EC(point)) => {
            is_known_to_openssl(&key.algorithm) && point.data().first() == Some(&4)
        }
        _ => key.algorithm.algorithm == OID_SIG_ED25519,
    }
}

fn link(
    certificate: &X509Certificate<'_>,
    issuer: &X509Certificate<'_>,
) -> Result<(), &'static str> {
    if certificate.issuer().as_raw() != issuer.subject().as_raw() {
        return Err("it names another issuer");
    }
    match certificate.verify_signature(Some(issuer.public_key())) {
        // a curve or a hash that is rare, and fine
        Ok(()) | Err(X509Error::SignatureUnsupportedAlgorithm) => Ok(()),
        Err(_) => Err("the signature is another's"),
    }
}

fn strength(certificate: &X509Certificate<'_>) -> Result<(), &'static str> {
    let self_issued = certificate.issuer().as_raw() == certificate.subject().as_raw();
    // nobody verifies a root's own signature
    if !self_issued && WEAK.contains(&certificate.signature_algorithm.algorithm) {
        return Err("its signature uses a broken hash");
    }
    match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) if key.key_size() < LEAST_RSA_BITS => {
            Err("its RSA key has fewer than 2048 bits")
        }
        _ => Ok(()),
    }
}

/// A key that it cannot read counts as one of no bits.
fn is_known_to_openssl(key: &AlgorithmIdentifier<'_>) -> bool {
    let curve = key.parameters.as_ref().and_then(|any| any.as_oid().ok());
    key.algorithm == OID_SIG_ED25519
        || key.algorithm == OID_SIG_ED448
        || key.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
            && curve.is_some_and(|curve| CURVES.contains(&curve))
}

const WEAK: [Oid<'static>; 7] = [
    // ecdsa-with-SHA1 (RFC 3279 §2.2.3)
    oid!(1.2.840.10045.4.1),
    OID_MD5_WITH_RSA,
    OID_PKCS1_MD2WITHRSAENC,
    OID_PKCS1_MD5WITHRSAENC,
    OID_PKCS1_SHA1WITHRSA,
    OID_SHA1_WITH_RSA,
    OID_SIG_DSA_WITH_SHA1,
];
const CURVES: [Oid<'static>; 3] = [OID_EC_P256, OID_NIST_EC_P384, OID_NIST_EC_P521];
const LEAST_RSA_BITS: usize = 2048;
const MOST_RSA_BITS: usize = 8192;

#[cfg(test)]
mod tests {
    use super::super::Chain;

    /// nginx 1.22.1 with OpenSSL 3.0 refuses both with its whole configuration: "ca md too weak",
    /// "ca key too small".
    #[test]
    fn what_openssl_finds_too_weak_is_refused_before_nginx_meets_it() {
        let refused = |pem: &str| Chain::parse(pem).unwrap().check_soundness().unwrap_err();
        let error = refused(SHA1_LEAF);
        let words = "use certificate 1 of the chain: its signature uses a broken hash";
        assert_eq!(error.to_string(), words);
        let weak_root = Chain::parse_root(RSA_1024).unwrap();
        let words = "use certificate 1 of the chain: its RSA key has fewer than 2048 bits";
        assert_eq!(weak_root.check_soundness().unwrap_err().to_string(), words);
        let error = refused(&format!("{SHA1_LEAF}{RSA_1024}"));
        assert!(
            error.to_string().ends_with("it names another issuer"),
            "{error}"
        );
    }

    const SHA1_LEAF: &str = "-----BEGIN CERTIFICATE-----
MIIBZzCCAQ6gAwIBAgIUVzwpS5VGwZW8XYLT5GYyJJ/tMYswCQYHKoZIzj0EATAP
MQ0wCwYDVQQDDARtb2NrMB4XDTI2MTEyMzE0NDA0MFoXDTQ2MDEyMjE0NDA0MFow
ADBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABDyB/iW6Xb6Fn2epZYX2SszsfmoT
mbWeCMMN8w/k9aAqBrAxi2kXVhLrts39lbQgAHdyPG81ZxXnDj0ezypSMlKjWDBW
MBQGA1UdEQQNMAuCCWEuZXhhbXBsZTAdBgNVHQ4EFgQUSeW70yson2c3vhBS3Nys
Ks05CI4wHwYDVR0jBBgwFoAUfGdB74GAxn8cSjb+m5Rw9Q6rbVIwCQYHKoZIzj0E
AQNIADBFAiEAisp9GmTGsOrfFE4XVDqBRRPpMu5LTzQbgy43Y6BFpPgCIA/m2ihS
/zGD368exCs8Q4kVaWmzx2+ZXKpQu5bnp4Vx
-----END CERTIFICATE-----
";
    const RSA_1024: &str = "-----BEGIN CERTIFICATE-----
MIIB+jCCAWOgAwIBAgIUe1wLj8Y3v40Q9DIyiOK6BxccykowDQYJKoZIhvcNAQEL
BQAwDzENMAsGA1UEAwwEd2VhazAeFw0yNjExMjMxNDQwNDBaFw00NjAxMjIxNDQw
NDBaMA8xDTALBgNVBAMMBHdlYWswgZ8wDQYJKoZIhvcNAQEBBQADgY0AMIGJAoGB
AMJviz3ngtoQ8ygNMV/W8QIcZX1EA1n7FH4TfpI/4pmvikOXUmKbcLCvvk681/lF
LQEODNIG8ICjnBGq0N4LYW8XLjAC90ngB6umWzEsST0VSHjtYTPozi9yPnCFP8R4
bEGjhIeOtz5wqLYWoncwxi3g4m3casJlmTTVoGXPr6CLAgMBAAGjUzBRMB0GA1Ud
DgQWBBR7ElXWib7JXLriGndjw2cz5AOgvDAfBgNVHSMEGDAWgBR7ElXWib7JXLri
Gndjw2cz5AOgvDAPBgNVHRMBAf8EBTADAQH/MA0GCSqGSIb3DQEBCwUAA4GBAIN5
88CGgCjpWtx+GIWvK9SL3WmQVPZtKbo4Rnc5y7N0Rc+IbnCHi1Z6UEvN/5ILM3L9
a0nqaj5jN7XRivUYihRc8juGV24QrP6KuCtCdv6Dt2MKnybYhD2aP4qJBuG8RdLe
fyj8UyFOwE7gCYdP6qngybm1EX1aDf0e91rCVbdK
-----END CERTIFICATE-----
";
}
