//! X: what nginx says of a configuration with one server block, apart from the host's own.

use std::path::Path;
use std::time::Duration;

use crate::atomic_file::{self, WriteError};
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

const LIMIT: Duration = Duration::from_secs(20);
