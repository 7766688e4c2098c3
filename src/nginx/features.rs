//! X: what this nginx can do, found by trying, never by comparing versions: distributions backport.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::lone_block::{self, TrialError};
use crate::atomic_file::{self, WriteError};
use crate::desired::{CertificateFiles, Features};

#[derive(Debug, thiserror::Error)]
pub enum ProbeFeaturesError {
    #[error("try out nginx's features: {0}")]
    Trial(#[from] TrialError),
    #[error("try out nginx's features: {0}")]
    Write(#[from] WriteError),
}

/// The answers, and the binary and modules that they are about.
#[derive(Debug, Deserialize, Serialize)]
struct Remembered {
    binary: BinaryVersion,
    modules: Vec<String>,
    features: Features,
}

/// Changes when a package upgrade replaces the binary.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct BinaryVersion {
    device: u64,
    inode: u64,
    modified: i64,
    modified_ns: i64,
}

impl fmt::Display for BinaryVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (device, inode) = (self.device, self.inode);
        write!(f, "{device}:{inode}:{}.{}", self.modified, self.modified_ns)
    }
}

/// A feature, and the directive that an nginx without it refuses.
type Trial = (fn(&mut Features) -> &mut bool, &'static str);

const TRIALS: [Trial; 6] = [
    (|f| &mut f.http2_directive, "http2 on;"),
    (|f| &mut f.ssl_reject_handshake, "ssl_reject_handshake on;"),
    (|f| &mut f.gzip_static, "gzip_static on;"),
    (|f| &mut f.brotli_static, "brotli_static on;"),
    (
        |f| &mut f.post_quantum_curve,
        "ssl_ecdh_curve X25519MLKEM768:X25519:prime256v1:secp384r1;",
    ),
    (
        |f| &mut f.keepalive_min_timeout,
        "keepalive_min_timeout 5s;",
    ),
];

/// Tries each feature with a tiny configuration, or reads what the last try of the same binary
/// found. `modules`: the arguments of the main file's `load_module` directives; `certificate`: any,
/// because nginx looks at some TLS settings only where there is one.
pub fn features(
    binary: &Path,
    modules: &[String],
    certificate: &CertificateFiles,
    state_dir: &Path,
) -> Result<Features, ProbeFeaturesError> {
    let memory = state_dir.join("features.json");
    let version = binary_version(binary);
    let remembered = fs::read(&memory)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Remembered>(&bytes).ok())
        .filter(|known| Some(&known.binary) == version.as_ref() && known.modules == modules);
    if let Some(known) = remembered {
        return Ok(known.features);
    }
    let features = try_all(binary, modules, certificate, state_dir)?;
    if let Some(binary) = version {
        let modules = modules.to_vec();
        let known = Remembered {
            binary,
            modules,
            features,
        };
        atomic_file::write_json(&memory, &known, 0o600)?;
    }
    Ok(features)
}

fn try_all(
    binary: &Path,
    modules: &[String],
    certificate: &CertificateFiles,
    state_dir: &Path,
) -> Result<Features, ProbeFeaturesError> {
    let directory = atomic_file::temporary_beside(&state_dir.join("features"))?;
    atomic_file::remove(&directory)?;
    atomic_file::create_directory(&directory, 0o700)?;
    let preamble: String = modules
        .iter()
        .map(|module| format!("load_module {module};\n"))
        .collect();
    let tls = format!(
        "ssl_certificate {}; ssl_certificate_key {};",
        certificate.chain.display(),
        certificate.key.display()
    );
    let result = std::thread::scope(|scope| {
        let trials: Vec<_> = TRIALS
            .iter()
            .enumerate()
            .map(|(index, (field, directive))| {
                let base = directory.join(index.to_string());
                let (preamble, server) = (&preamble, format!("{tls} {directive}"));
                let trial = scope.spawn(move || {
                    let stderr = lone_block::run(binary, preamble, &base, &server)?;
                    Ok::<_, ProbeFeaturesError>(!blames(&stderr, directive))
                });
                (field, trial)
            })
            .collect();
        let mut features = Features::default();
        for (field, trial) in trials {
            *field(&mut features) = trial.join().unwrap_or(Ok(false))?;
        }
        Ok(features)
    });
    atomic_file::remove(&directory)?;
    result
}

/// A trial may fail for another reason (a directory that an unprivileged user cannot create); only
/// a complaint that quotes the directive or its value says that it is not to be had.
fn blames(stderr: &str, directive: &str) -> bool {
    let words: Vec<&str> = directive.trim_end_matches(';').split(' ').collect();
    stderr
        .lines()
        .filter(|line| line.contains("[emerg]"))
        .any(|line| {
            words
                .iter()
                .any(|word| line.contains(&format!("\"{word}\"")))
        })
}

pub(crate) fn binary_version(binary: &Path) -> Option<BinaryVersion> {
    let metadata = fs::metadata(binary).ok()?;
    Some(BinaryVersion {
        device: metadata.dev(),
        inode: metadata.ino(),
        modified: metadata.mtime(),
        modified_ns: metadata.mtime_nsec(),
    })
}
