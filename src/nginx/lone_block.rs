//! X: what nginx says of a configuration with one server block, apart from the host's own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::command::{self, CommandError};
use crate::atomic_file::{self, WriteError};
use crate::certificate::store::Judge;

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
/// certificate that OpenSSL does not take, and OpenSSL does not read DER as we do.
#[derive(Debug)]
pub struct CertificateTrial {
    pub binary: PathBuf,
}

impl Judge for CertificateTrial {
    fn refusal(&self, chain: &Path, key: &Path, scratch: &Path) -> Option<String> {
        let tls = format!(
            "ssl_certificate {}; ssl_certificate_key {};",
            chain.display(),
            key.display()
        );
        match run(&self.binary, "", &scratch.join("t"), &tls) {
            Ok(stderr) => refusal(&stderr, chain),
            // its own test, later, says the same where nginx does not run at all
            Err(error) => {
                tracing::debug!("a certificate is not tried out: {error}");
                None
            }
        }
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
mod tests {
    use super::*;

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
