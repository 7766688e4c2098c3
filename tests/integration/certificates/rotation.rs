//! Keys that change, and who reads them meanwhile.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use vhostd::certificate::chain::Chain;
use vhostd::certificate::key::PrivateKeyPem;

use super::*;

const ROTATIONS: usize = 100;
const READS: usize = 100_000;

/// Both files of one version: `current` is followed once.
fn read_pair(current: &Path) -> (Vec<u8>, Vec<u8>) {
    let version = File::open(current).unwrap();
    let at = |name: &str| format!("/proc/self/fd/{}/{name}", version.as_raw_fd());
    let read = |name: &str| fs::read(at(name)).unwrap();
    (read("fullchain.pem"), read("privkey.pem"))
}

#[test]
fn while_100_certificates_follow_each_other_100_000_reads_never_see_a_key_of_another() {
    let host = Host::new();
    let (store, ca) = (host.store(), InternalCa::new(host.path()));
    let wanted =
        WantedCertificate::new(vec![Identifier::Dns("a.example".into())], Issuer::Internal);
    let request = CertificateRequest::new(&wanted.unwrap(), None, None);
    let rotate = || {
        store
            .store(&ca.issue(&request, now()).unwrap(), &request, now())
            .unwrap()
    };
    rotate();
    let current = host.path().join("certificates/a.example/current");
    let (reads, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let seen = std::thread::scope(|scope| {
        let reader = || {
            let mut seen = BTreeSet::new();
            while !over.load(Ordering::SeqCst) || reads.load(Ordering::SeqCst) < READS {
                seen.insert(read_pair(&current));
                reads.fetch_add(1, Ordering::SeqCst);
            }
            seen
        };
        let readers = [scope.spawn(reader), scope.spawn(reader)];
        for _ in 0..ROTATIONS {
            rotate();
        }
        over.store(true, Ordering::SeqCst);
        let seen = readers.map(|reader| reader.join().unwrap());
        seen.into_iter().flatten().collect::<BTreeSet<_>>()
    });
    assert!(
        seen.len() > ROTATIONS / 4,
        "{} versions were seen",
        seen.len()
    );
    for (chain, key) in seen {
        let chain = Chain::parse(std::str::from_utf8(&chain).unwrap()).unwrap();
        let key = PrivateKeyPem::new(String::from_utf8(key).unwrap());
        chain.check_key(&key).unwrap();
    }
}

#[tokio::test]
async fn a_renewal_has_a_new_key_unless_the_old_one_is_to_be_kept() {
    let host = Host::new();
    let pebble = Pebble::start(host.challenges.port);
    let client = host.client(&settings(&pebble));
    let key = |stored: &StoredCertificate| fs::read_to_string(&stored.key).unwrap();
    let first = stored(host.obtain(&request(&["a.example"]), &client).await);
    let after = |stored: &StoredCertificate| {
        CertificateRequest::new(&wanted(&["a.example"]), Some(stored), None)
    };
    let second = stored(host.obtain(&after(&first), &client).await);
    assert_ne!(key(&first), key(&second));
    let kept = CertificateRequest {
        reuse_key: Some(second.key.clone()),
        ..after(&second)
    };
    let third = stored(host.obtain(&kept, &client).await);
    assert_ne!(third.serial, second.serial);
    assert_eq!(key(&third), key(&second));
    assert_eq!(mode(&third.key), 0o600);
}
