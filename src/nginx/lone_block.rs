//! X: what nginx says of a configuration with one server block, apart from the host's own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Logs;
use super::candidate::CandidateError;
use super::trial::{self, Trial};
use crate::atomic_file::{self, WriteError};
use crate::certificate::store::Judge;
use crate::command::{self, CommandError};

/// Why nothing could be tried.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Runs `nginx -t` on `server`, the directives of one block; what it wrote. Files are made beside
/// `base`, with its name and other endings.
pub fn run(binary: &Path, preamble: &str, base: &Path, server: &str) -> Result<String, TrialError> {
    let at = |suffix: &str| base.with_extension(suffix);
    // a unix socket in our own directory: the test binds what it listens on
    let text = format!(
        "{preamble}pid {pid};\nerror_log stderr;\nevents {{}}\nhttp {{\n  access_log off;\n  \
         server {{ listen unix:{socket} ssl; {server} }}\n}}\n",
        pid = at("pid").display(),
        socket = at("sock").display(),
    );
    let config = at("conf");
    atomic_file::write(&config, text.as_bytes(), 0o600)?;
    let arguments = ["-t".as_ref(), "-c".as_ref(), config.as_os_str()];
    Ok(command::run(binary, &arguments, LIMIT)?.stderr)
}

/// nginx itself, as the judge of what a CA has sent: it refuses its whole configuration for one
/// certificate that OpenSSL does not take, and OpenSSL does not read DER as we do. Whatever else
/// the bytes do to OpenSSL, they do behind walls.
#[derive(Debug)]
pub struct CertificateTrial {
    pub(super) binary: PathBuf,
    /// The directives that name nginx's temporary directories.
    pub(super) temp_paths: Vec<String>,
}

impl Judge for CertificateTrial {
    fn refusal(&self, chain: &Path, key: &Path, scratch: &Path) -> Option<String> {
        match self.run(chain, key, scratch) {
            Ok(stderr) => refusal(&stderr, chain),
            // its own test, later, says the same where nginx does not run at all
            Err(error) => {
                tracing::debug!("a certificate is not tried out: {error}");
                None
            }
        }
    }
}

impl CertificateTrial {
    fn run(&self, chain: &Path, key: &Path, scratch: &Path) -> Result<String, CandidateError> {
        let server = format!(
            "server {{ listen unix:{} ssl; ssl_certificate {}; ssl_certificate_key {}; }}\n",
            scratch.join("t.sock").display(),
            chain.display(),
            key.display()
        );
        let trial = Trial {
            files: vec![(Path::new("http.conf"), server.as_bytes())],
            modules: &[],
            log_dir: scratch,
            logs: &Logs::default(),
            interrupt: None,
        };
        let main = trial.main_file(scratch, &self.temp_paths);
        let finished = match trial::run_in_sandbox(&self.binary, scratch, &main, &trial) {
            Err(error) if error.has_no_namespace() => {
                trial::run_in_directory(&self.binary, scratch, &main, &trial)
            }
            finished => finished,
        };
        Ok(finished?.stderr)
    }
}

/// Only a complaint about the certificate is one: an unprivileged user's trial fails otherwise.
fn refusal(stderr: &str, chain: &Path) -> Option<String> {
    let quoted = format!("\"{}\"", chain.display());
    let mut lines = stderr.lines().filter(|line| line.contains("[emerg]"));
    let line = lines.find(|line| line.contains(&quoted))?;
    let words = line.replace(&quoted, "it");
    Some(
        words
            .split_once(": ")
            .map_or(words.clone(), |(_, rest)| rest.to_owned()),
    )
}

const LIMIT: Duration = Duration::from_secs(20);

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_certificate_is_tried_behind_walls_and_leaves_nothing_behind() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: a sandbox needs root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["chain", "key"] {
            fs::write(at(name), name).unwrap();
        }
        fs::create_dir(at("scratch")).unwrap();
        // an nginx that does what it can, and complains of the certificate
        let script = format!(
            "#!/bin/sh\ncd {}\ndone=$(cat chain key)\n\
             touch escaped chain && done=\"$done wrote\"\n\
             kill -0 {} && done=\"$done saw\"\n\
             touch scratch/left\n\
             echo \"[emerg] 7#7: \\\"$PWD/chain\\\": $done $(grep -o 'body_temp_path.*' $3)\" >&2\n",
            directory.path().display(),
            std::process::id()
        );
        fs::write(at("nginx"), script).unwrap();
        fs::set_permissions(at("nginx"), fs::Permissions::from_mode(0o755)).unwrap();
        let trial = CertificateTrial {
            binary: at("nginx"),
            temp_paths: vec!["body_temp_path".into()],
        };
        let refused = trial.refusal(&at("chain"), &at("key"), &at("scratch"));
        let temporary = at("scratch/body_temp_path");
        let expected = format!("it: chainkey body_temp_path {};", temporary.display());
        assert_eq!(refused.unwrap(), expected);
        assert!(!at("escaped").exists());
        assert_eq!(fs::read_dir(at("scratch")).unwrap().count(), 0);
    }

    #[test]
    fn only_a_complaint_about_the_certificate_refuses_it() {
        let said =
            "2026/11/23 15:05:18 [emerg] 7#7: cannot load certificate \"/s/c.pem\": no (SSL: x)\n";
        let refused = refusal(said, Path::new("/s/c.pem"));
        assert_eq!(refused.unwrap(), "cannot load certificate it: no (SSL: x)");
        assert_eq!(refusal(said, Path::new("/s/d.pem")), None);
        let other = "x [emerg] 7#7: mkdir() \"/var/lib/nginx/body\" failed\n";
        assert_eq!(refusal(other, Path::new("/s/c.pem")), None);
    }
}
