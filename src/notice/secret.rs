//! R: secrets, read when they are needed and kept nowhere.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::diagnostic::fault;
use crate::settings::hooks::{Hook, HookSettings, SecretSource};

/// One line of text that is shown to nobody.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret(String);

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("read the secret in {}: there is nothing in it", .0.display())]
    Empty(PathBuf),
    #[error(
        "find the credential `{0}`: neither $CREDENTIALS_DIRECTORY nor {DAEMONS_CREDENTIALS} has it"
    )]
    NoCredential(String),
    #[error("read the secret in {}: not one line of text", .0.display())]
    NotOneLine(PathBuf),
    #[error("read the secret in {}: {}", path.display(), fault(source))]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Secret {
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// From a file, or from where systemd has put the credential: this unit's, or the daemon's,
    /// for commands that root runs beside it.
    pub fn read(source: &SecretSource) -> Result<Self, SecretError> {
        match source {
            SecretSource::File(path) => Self::read_file(path),
            SecretSource::Credential(name) => {
                let own = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
                let places = own.into_iter().chain([PathBuf::from(DAEMONS_CREDENTIALS)]);
                let path = places.map(|place| place.join(name)).find(|it| it.exists());
                match path {
                    Some(path) => Self::read_file(&path),
                    None => Err(SecretError::NoCredential(name.clone())),
                }
            }
        }
    }

    fn read_file(path: &Path) -> Result<Self, SecretError> {
        let failed = |source| SecretError::Read {
            path: path.to_path_buf(),
            source,
        };
        // a pipe would keep whoever opens it waiting
        if !fs::metadata(path).map_err(failed)?.is_file() {
            return Err(failed(io::Error::other("not a regular file")));
        }
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(failed)?;
        file.take(MAXIMUM_BYTES)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        let text = String::from_utf8(bytes).unwrap_or_default();
        let text = text.trim();
        match text {
            "" => Err(SecretError::Empty(path.to_path_buf())),
            text if text.chars().any(char::is_control) => {
                Err(SecretError::NotOneLine(path.to_path_buf()))
            }
            text => Ok(Self(text.to_owned())),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A sentence for each file of a secret that everybody can read, and each program that everybody
/// can write.
pub fn exposures(hooks: &HookSettings) -> Vec<String> {
    let may_all = |path: &Path, bit: u32| {
        fs::metadata(path).is_ok_and(|file| file.permissions().mode() & bit != 0)
    };
    let secrets = hooks.secret_files().into_iter();
    let secrets = secrets
        .filter(|path| may_all(path, OTHERS_READ))
        .map(|path| {
            let path = path.display();
            format!("every user can read the secret in {path}: `chmod 600 {path}`")
        });
    let all = hooks.all().into_iter();
    let programs = all.filter_map(|(_, hook)| match hook {
        Hook::Command(argv) if may_all(&argv.program, OTHERS_WRITE) => {
            let path = argv.program.display();
            Some(format!(
                "every user can change {path}, which a hook runs: `chmod o-w {path}`"
            ))
        }
        _ => None,
    });
    secrets.chain(programs).collect()
}

/// Where systemd shows root the credentials of the daemon's unit.
const DAEMONS_CREDENTIALS: &str = "/run/credentials/vhostd.service";
const MAXIMUM_BYTES: u64 = 16 * 1024;
const OTHERS_READ: u32 = 0o004;
const OTHERS_WRITE: u32 = 0o002;

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn what_everybody_can_read_or_change_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tell");
        let hooks = HookSettings {
            on_failure: vec![Hook::Command(crate::settings::hooks::Argv {
                program: path.clone(),
                arguments: Vec::new(),
            })],
            ..HookSettings::default()
        };
        fs::write(&path, "").unwrap();
        for (mode, count) in [(0o755, 0), (0o757, 1)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(exposures(&hooks).len(), count, "{mode:o}");
        }
    }

    #[test]
    fn a_secret_is_one_line_of_a_regular_file_and_never_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let read = || Secret::read(&SecretSource::File(path.clone()));
        assert!(matches!(read(), Err(SecretError::Read { .. })));
        fs::write(&path, " \n").unwrap();
        assert!(matches!(read(), Err(SecretError::Empty(_))));
        fs::write(&path, "one\ntwo\n").unwrap();
        assert!(matches!(read(), Err(SecretError::NotOneLine(_))));
        fs::write(&path, "s3cret\n").unwrap();
        let secret = read().unwrap();
        assert_eq!(secret.expose(), "s3cret");
        assert_eq!(format!("{secret:?}"), "Secret");
        let directory = Secret::read(&SecretSource::File(directory.path().into())).unwrap_err();
        assert!(
            directory.to_string().contains("not a regular file"),
            "{directory}"
        );
    }
}
