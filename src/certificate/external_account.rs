//! R: the key of the customer's account to which an ACME account is bound (RFC 8555 §7.3.4).
//!
//! Read when an account is made, and kept nowhere.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::certificate::jws::MacKey;
use crate::settings::ca::ExternalAccount;

#[derive(Debug, thiserror::Error)]
pub enum ExternalAccountError {
    #[error("read the external account's key {}: it is not base64url, as the CA gives it", .0.display())]
    Encoding(PathBuf),
    #[error("read the external account's key {}: everybody may read it; `chmod 600` it", .0.display())]
    Exposed(PathBuf),
    #[error("read the external account's key {}: it is not a file of at most {LONGEST} bytes", .0.display())]
    NoFile(PathBuf),
    #[error("read the external account's key {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What is in the file now.
pub fn mac_key(account: &ExternalAccount) -> Result<MacKey, ExternalAccountError> {
    let path = &account.hmac_key_file;
    let text = read(path)?;
    MacKey::parse(&text).ok_or_else(|| ExternalAccountError::Encoding(path.clone()))
}

fn read(path: &Path) -> Result<String, ExternalAccountError> {
    let failed = |source| ExternalAccountError::Read {
        path: path.to_path_buf(),
        source,
    };
    // a pipe would wait for its writer
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > LONGEST {
        return Err(ExternalAccountError::NoFile(path.to_path_buf()));
    }
    if metadata.mode() & 0o004 != 0 {
        return Err(ExternalAccountError::Exposed(path.to_path_buf()));
    }
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(LONGEST)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Ok(text)
}

const LONGEST: u64 = 4096;

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_that_everybody_may_read_or_that_is_none_is_refused_without_its_text() {
        let directory = tempfile::tempdir().unwrap();
        let account = ExternalAccount {
            key_id: "a".into(),
            hmac_key_file: directory.path().join("key"),
        };
        let error = |account| mac_key(account).unwrap_err();
        assert!(matches!(error(&account), ExternalAccountError::Read { .. }));
        let write = |text: &str, mode| {
            fs::write(&account.hmac_key_file, text).unwrap();
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(&account.hmac_key_file, mode).unwrap();
        };
        write("c2VjcmV0\n", 0o644);
        assert!(matches!(error(&account), ExternalAccountError::Exposed(_)));
        write("c2VjcmV0\n", 0o640);
        assert_eq!(
            mac_key(&account).unwrap(),
            MacKey::parse("c2VjcmV0").unwrap()
        );
        write("not a secret", 0o600);
        let odd = error(&account);
        assert!(matches!(odd, ExternalAccountError::Encoding(_)));
        assert!(!odd.to_string().contains("secret"), "{odd}");
        let directory = ExternalAccount {
            hmac_key_file: directory.path().into(),
            ..account.clone()
        };
        assert!(matches!(error(&directory), ExternalAccountError::NoFile(_)));
    }
}
