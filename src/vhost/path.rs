//! P: directories and URL prefixes, judged by their spelling alone.

use std::path::{Path, PathBuf};

use super::{AssetPath, RootDir};
use crate::diagnostic::Position;

impl RootDir {
    /// `text` must be an absolute path strictly below one of `roots`, with nothing in it that
    /// nginx or a log could read as more than a path. Symbolic links are looked at in `root.rs`.
    pub fn parse(text: &str, at: Position, roots: &[PathBuf]) -> Result<Self, PathError> {
        let path = normalized(text)?;
        if !is_below(&path, roots) {
            return Err(PathError::Outside { roots: list(roots) });
        }
        Ok(Self { path, at })
    }

    pub fn as_path(&self) -> &Path {
        &self.path
    }

    /// Where the file says so.
    pub fn at(&self) -> Position {
        self.at
    }
}

impl AssetPath {
    /// `/assets/`: unreserved characters (RFC 3986 §2.3) between slashes, at least one segment.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        let inside = text
            .strip_prefix('/')
            .and_then(|rest| rest.strip_suffix('/'));
        let Some(inner) = inside else {
            let meant = format!("/{}/", text.trim_matches('/'));
            return Err(match Self::parse(&meant) {
                Ok(_) => PathError::AssetSlashes { meant },
                Err(error) => error,
            });
        };
        let plain = |segment: &str| {
            !matches!(segment, "" | "." | "..")
                && segment
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
        };
        if !inner.split('/').all(plain) {
            Err(PathError::Asset)
        } else if text.len() > MAX_ASSET_PATH {
            Err(PathError::AssetLength)
        } else {
            Ok(Self(text.to_owned()))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An absolute path without `.`, `..` and `//`, of characters that mean themselves everywhere; its
/// trailing slash is dropped.
pub(crate) fn normalized(text: &str) -> Result<PathBuf, PathError> {
    if !text.starts_with('/') {
        return Err(PathError::NotAbsolute);
    }
    if text
        .chars()
        .any(|c| c.is_control() || is_private(c) || FORBIDDEN.contains(c))
    {
        return Err(PathError::Character);
    }
    let trimmed = text.strip_suffix('/').unwrap_or(text);
    let normal = trimmed
        .split('/')
        .skip(1)
        .all(|part| !matches!(part, "" | "." | ".."));
    if normal && !trimmed.is_empty() && trimmed.len() <= MAX_PATH {
        Ok(PathBuf::from(trimmed))
    } else {
        Err(PathError::NotNormal)
    }
}

/// A character whose meaning is agreed upon in private, as the quoter's mark is.
fn is_private(c: char) -> bool {
    matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..='\u{10ffff}')
}

/// Whether `path` is below one of `roots`, and not one of them itself: a root of `/home` would
/// publish every home.
pub(super) fn is_below(path: &Path, roots: &[PathBuf]) -> bool {
    roots
        .iter()
        .any(|root| path.starts_with(root) && path != root)
}

fn list(roots: &[PathBuf]) -> String {
    let roots: Vec<String> = roots
        .iter()
        .map(|root| root.display().to_string())
        .collect();
    roots.join(", ")
}

/// Why a text is no such path. Retrying does not help.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PathError {
    #[error("not a path prefix of assets")]
    Asset,
    #[error("longer than {MAX_ASSET_PATH} bytes")]
    AssetLength,
    #[error("a path prefix of assets begins and ends with `/`")]
    AssetSlashes { meant: String },
    #[error("a character that a path here cannot have")]
    Character,
    #[error("not an absolute path")]
    NotAbsolute,
    #[error("not a path without `.`, `..` and `//`")]
    NotNormal,
    #[error("the root is not below {roots}")]
    Outside { roots: String },
}

impl PathError {
    /// What to write instead.
    pub fn hint(&self) -> String {
        match self {
            Self::Asset => {
                "letters, digits and -._~ between slashes, as in /assets/; not `/` itself".into()
            }
            Self::AssetLength => "a shorter prefix covers what is below it, too".into(),
            Self::AssetSlashes { meant } => format!("did you mean `{meant}`?"),
            Self::Character => {
                format!("not allowed are {FORBIDDEN}, control and private-use characters")
            }
            Self::NotAbsolute => "as in /srv/hello/public".into(),
            Self::NotNormal => "write the path as `realpath` prints it".into(),
            Self::Outside { .. } => {
                "move the files there, or add the directory to `roots` in vhostd's settings".into()
            }
        }
    }
}

/// What nginx's configuration, variables or a shell would read as more than a character.
const FORBIDDEN: &str = "$;{}#\"'\\`";

/// As a regular expression twice as long at most, which is still one word of nginx's configuration.
const MAX_ASSET_PATH: usize = 256;

/// Well below PATH_MAX, so that a file's name fits behind it.
const MAX_PATH: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn root(text: &str) -> Result<RootDir, PathError> {
        let roots = [PathBuf::from("/srv"), PathBuf::from("/var/www")];
        RootDir::parse(text, Position::default(), &roots)
    }

    #[test]
    fn a_root_below_one_of_the_roots_is_accepted_without_its_trailing_slash() {
        assert_eq!(
            root("/srv/hello/public/").unwrap().as_path(),
            Path::new("/srv/hello/public")
        );
        assert!(root("/var/www/ein Platz/ü").is_ok());
    }

    #[test]
    fn a_root_that_leaves_the_roots_or_is_one_is_refused() {
        for text in ["/etc", "/srv", "/srv/", "/srvx/a", "/var", "/"] {
            assert!(
                matches!(
                    root(text),
                    Err(PathError::Outside { .. } | PathError::NotNormal)
                ),
                "{text}"
            );
        }
        for text in [
            "/srv/../etc",
            "/srv/./a",
            "/srv//a",
            "/srv/a//",
            "/srv/a/..",
        ] {
            assert_eq!(root(text), Err(PathError::NotNormal), "{text}");
        }
    }

    #[test]
    fn a_root_with_what_nginx_could_interpret_is_refused() {
        for text in [
            "/srv/$host",
            "/srv/a;b",
            "/srv/a\nb",
            "/srv/a{b",
            "/srv/a\"b",
            "/srv/a\\b",
            "/srv/a#b",
            "/srv/a\u{f0000}b",
            "/srv/a\u{e000}b",
        ] {
            assert_eq!(root(text), Err(PathError::Character), "{text}");
        }
        for text in ["srv/a", "", "~/public", "./a"] {
            assert_eq!(root(text), Err(PathError::NotAbsolute), "{text}");
        }
    }

    #[test]
    fn an_asset_prefix_begins_and_ends_with_a_slash() {
        assert_eq!(
            AssetPath::parse("/assets/v1.2/").unwrap().as_str(),
            "/assets/v1.2/"
        );
        let error = AssetPath::parse("assets").unwrap_err();
        assert_eq!(error.hint(), "did you mean `/assets/`?");
        for nothing in ["/", "", ".."] {
            let error = AssetPath::parse(nothing).unwrap_err();
            assert_eq!(error, PathError::Asset, "{nothing:?}");
        }
        for text in [
            "/", "//", "/a//b/", "/../", "/./", "/a b/", "/%61/", "/a.*/", "/é/", "/$x/",
        ] {
            assert!(AssetPath::parse(text).is_err(), "{text}");
        }
        let long = |length: usize| format!("/{}/", ".".repeat(length - 2).replace("..", "a."));
        assert!(AssetPath::parse(&long(256)).is_ok());
        let error = AssetPath::parse(&long(257)).unwrap_err();
        assert_eq!(error, PathError::AssetLength);
    }
}
