//! What a TLS client is offered, judged by sslyze.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::fixture::Served;
use super::{NAME, hello};
use crate::support::app::App;

/// `make test` unpacks sslyze (`packaging/sslyze`).
fn verdict(served: &Served) -> Option<String> {
    let Some(directory) = std::env::var_os("VHOSTD_TEST_SSLYZE") else {
        eprintln!("skipped: it needs sslyze, which `make test` has");
        return None;
    };
    assert!(Path::new(&directory).join("sslyze").exists());
    let root = served.path("chain.pem");
    assert!(fs::metadata(&root).is_ok());
    let output = Command::new("python3")
        .env("PYTHONPATH", directory)
        .args([
            "-m",
            "sslyze",
            "--mozilla_config",
            "intermediate",
            "--sni",
            NAME,
        ])
        .arg("--certinfo_ca_file")
        .arg(root)
        .arg(served.https().to_string())
        .output()
        .unwrap();
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn sslyze_calls_the_tls_of_a_vhost_mozillas_intermediate() {
    let app = App::start();
    let served = hello(&app);
    if let Some(verdict) = verdict(&served) {
        let (_, end) = verdict.split_once("COMPLIANCE").unwrap_or(("", &verdict));
        let faults: Vec<&str> = end
            .lines()
            .filter_map(|line| line.trim().strip_prefix("* "))
            .filter(|fault| {
                !OF_THE_TESTS_CERTIFICATE
                    .iter()
                    .any(|own| fault.starts_with(own))
            })
            .collect();
        assert!(end.contains(&served.https().to_string()), "{verdict}");
        assert!(faults.is_empty(), "{end}");
    }
}

/// It is self-signed, for some hundred years.
const OF_THE_TESTS_CERTIFICATE: [&str; 2] = [
    "certificate_path_validation",
    "maximum_certificate_lifespan",
];
