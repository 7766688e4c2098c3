//! Which certificates are stored without being tried out, against what the real nginx loads.

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use vhostd::certificate::chain::Chain;
use vhostd::certificate::internal::InternalCa;
use vhostd::certificate::key::PrivateKeyPem;
use vhostd::certificate::{CertificateRequest, Identifier, Issuer, WantedCertificate};
use vhostd::settings::KeyType;

use crate::support::nginx::NginxHost;

/// A chain in DER, leaf first, and the leaf's key.
struct Pair {
    chain: Vec<Vec<u8>>,
    key: PrivateKeyPem,
}

fn pair(key_type: KeyType) -> Pair {
    let directory = tempfile::tempdir().unwrap();
    let names = vec![
        Identifier::Dns("a.example".into()),
        Identifier::Ip([192, 0, 2, 1].into()),
    ];
    let wanted = WantedCertificate {
        key_type,
        ..WantedCertificate::new(names, Issuer::Internal).unwrap()
    };
    let request = CertificateRequest::new(&wanted, None, None);
    let ca = InternalCa::new(directory.path());
    let issued = ca.issue(&request, OffsetDateTime::now_utc()).unwrap();
    let root = fs::read(ca.root_path()).unwrap();
    let of = |pem: &[u8]| -> Vec<Vec<u8>> {
        let parts = CertificateDer::pem_slice_iter(pem);
        parts.map(|part| part.unwrap().to_vec()).collect()
    };
    let leaf = of(issued.chain_pem.as_bytes()).swap_remove(0);
    Pair {
        chain: vec![leaf, of(&root).swap_remove(0)],
        key: issued.key_pem,
    }
}

fn pem(chain: &[Vec<u8>]) -> String {
    let encoded = chain.iter().map(|der| {
        let text = BASE64_STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    });
    encoded.collect()
}

/// Of each byte a few others, and of each pair of neighbours the other order; of an RSA
/// certificate, which is larger, of fewer bytes.
fn mutations(der: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for at in (0..der.len()).step_by(1 + der.len() / 500 * 2) {
        let byte = der[at];
        let others = [
            byte ^ 1,
            byte ^ 0x20,
            byte ^ 0x80,
            byte.wrapping_add(1),
            0,
            0xff,
        ];
        for other in others.into_iter().filter(|other| *other != byte) {
            let mut mutated = der.to_vec();
            mutated[at] = other;
            all.push(mutated);
        }
        if at + 1 < der.len() && der[at + 1] != byte {
            let mut mutated = der.to_vec();
            mutated.swap(at, at + 1);
            all.push(mutated);
        }
    }
    all
}

/// Writes what is ordinary for nginx; how many there were, and how many were not.
fn site(
    host: &NginxHost,
    directory: &Path,
    pairs: &[(Vec<Vec<u8>>, &PrivateKeyPem)],
) -> [usize; 2] {
    let mut text = String::new();
    let mut counts = [0, 0];
    for (chain, key) in pairs {
        let Ok(parsed) = Chain::parse(&pem(chain)) else {
            continue;
        };
        let ordinary = parsed.is_ordinary();
        // sound or not, nginx does not ask; whose key it is, it does
        if ordinary && parsed.check_key(key).is_err() {
            continue;
        }
        counts[usize::from(!ordinary)] += 1;
        if ordinary {
            let number = counts[0];
            let (chain, key_file) = (format!("{number}.pem"), format!("{number}.key"));
            fs::write(directory.join(&chain), parsed.to_pem()).unwrap();
            fs::write(directory.join(&key_file), key.expose()).unwrap();
            text.push_str(&format!(
                "server {{ listen 127.0.0.1:{port} ssl; server_name n{number}.example; \
                 ssl_certificate {at}/{chain}; ssl_certificate_key {at}/{key_file}; }}\n",
                port = host.https_port,
                at = directory.display(),
            ));
        }
    }
    host.site("ordinary", &text);
    counts
}

#[test]
fn whatever_is_stored_without_a_trial_nginx_loads() {
    let pairs = [KeyType::EcdsaP256, KeyType::Rsa2048].map(pair);
    let mut all = Vec::new();
    for Pair { chain, key } in &pairs {
        let [leaf, root] = &chain[..] else {
            panic!("two certificates")
        };
        let leaves = mutations(leaf).into_iter();
        all.extend(leaves.map(|leaf| (vec![leaf, root.clone()], key)));
        let roots = mutations(root).into_iter();
        all.extend(roots.map(|root| (vec![leaf.clone(), root], key)));
    }
    let host = NginxHost::new();
    let directory = tempfile::tempdir().unwrap();
    let [ordinary, others] = site(&host, directory.path(), &all);
    assert!(ordinary > 1_000, "{ordinary}");
    assert!(others > 100, "{others}");
    let tested = host.test();
    let words = String::from_utf8_lossy(&tested.stderr);
    assert!(tested.status.success(), "{words}");
}

#[test]
fn what_public_cas_use_needs_no_trial() {
    let Pair { chain, key } = pair(KeyType::EcdsaP384);
    let mut roots = Vec::new();
    for entry in fs::read_dir("/usr/share/ca-certificates/mozilla").unwrap() {
        let text = fs::read(entry.unwrap().path()).unwrap();
        let root = CertificateDer::from_pem_slice(&text).unwrap().to_vec();
        roots.push((vec![chain[0].clone(), root], &key));
    }
    let host = NginxHost::new();
    let directory = tempfile::tempdir().unwrap();
    let [ordinary, others] = site(&host, directory.path(), &roots);
    // others' signatures are of SHA-1, which only a root's may be
    assert!(
        ordinary > 3 * others && ordinary > 50,
        "{ordinary}, {others}"
    );
    let tested = host.test();
    let words = String::from_utf8_lossy(&tested.stderr);
    assert!(tested.status.success(), "{words}");
}
