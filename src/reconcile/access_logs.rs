//! W: access logs, made before nginx makes them: it would let every local user read them (mode 0644), and
//! with them what each visitor asked for.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::atomic_file;
use crate::generation::manifest::Manifest;
use crate::installation::Installation;

/// Creates those of `manifest` that are not there, with mode 0640 and the group of their directory;
/// what could not be done. nginx then makes the log, or says why it cannot.
pub(super) fn create(installation: &Installation, manifest: &Manifest) -> Vec<String> {
    let missing: Vec<&Path> = manifest
        .logs
        .iter()
        .map(|log| log.as_path())
        .filter(|log| log.symlink_metadata().is_err())
        .collect();
    if missing.is_empty() {
        return Vec::new();
    }
    let master = installation.master(&manifest.survey);
    let master = master.and_then(|pid| fs::metadata(format!("/proc/{pid}")).ok());
    let master = master.map(|process| process.uid());
    let failed = missing.into_iter().filter_map(|log| {
        let directory = fs::metadata(log.parent()?).ok()?;
        // a master that is not root must be able to open it, also one that starts later
        let owner = master.unwrap_or(directory.uid());
        let created = atomic_file::create_log(log, owner, directory.gid());
        created.err().map(|error| format!("failed to {error}"))
    });
    failed.collect()
}
