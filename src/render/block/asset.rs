//! P: which files get a long life.

use std::time::Duration;

use serde::Serialize;

use super::short_digest;
use crate::render::token::{Part, Token, TokenError};
use crate::vhost::{CacheAssets, VhostSpec};

/// `map $uri FINGERPRINTED { PATTERN VALUE; }` and `map $uri VARIABLE { DIRECTORY VALUE; … }`: the
/// Cache-Control of a file from disk, by its name and by its name or directory.
#[derive(Debug, Serialize)]
pub struct AssetMap {
    pub fingerprinted: Token,
    pub pattern: Token,
    pub variable: Token,
    pub directories: Vec<Token>,
    pub value: Token,
}

/// What `add_header Cache-Control` gets.
#[derive(Debug, Serialize)]
pub struct CacheControl {
    /// For a file of which neither name nor directory is known: the variable of the map.
    pub any: Token,
    /// For a file outside of `directories`: a variable, which costs one match.
    pub elsewhere: Token,
    /// Prefixes of the asset directories, each a location of its own.
    pub directories: Vec<Token>,
    /// For a file in them.
    pub value: Token,
}

impl AssetMap {
    /// The map of `cache_assets: true`, shared by all vhosts.
    pub fn shared() -> Result<Self, TokenError> {
        Self::new("", &DEFAULT_PATHS, DEFAULT_MAX_AGE)
    }

    /// The map that a vhost needs for itself, if its `cache_assets` says something of its own.
    pub fn own(spec: &VhostSpec) -> Result<Option<Self>, TokenError> {
        match &spec.cache_assets {
            Some(assets) if !is_default(assets) => {
                let paths: Vec<&str> = assets.paths.iter().map(|path| path.as_str()).collect();
                Self::new(&own_suffix(spec), &paths, assets.max_age).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn new(suffix: &str, paths: &[&str], max_age: Duration) -> Result<Self, TokenError> {
        Ok(Self {
            fingerprinted: Token::variable(&format!("{FINGERPRINTED}{suffix}"))?,
            pattern: Token::expression(&[Part::Ours(FINGERPRINT)])?,
            variable: Token::variable(&format!("{ASSET}{suffix}"))?,
            directories: paths
                .iter()
                .map(|path| below(path))
                .collect::<Result<_, _>>()?,
            value: value(max_age)?,
        })
    }
}

/// `None` where a vhost caches nothing.
pub(super) fn cache_control(spec: &VhostSpec) -> Result<Option<CacheControl>, TokenError> {
    let Some(assets) = &spec.cache_assets else {
        return Ok(None);
    };
    let suffix = match is_default(assets) {
        true => String::new(),
        false => own_suffix(spec),
    };
    let paths = assets.paths.iter().map(|path| path.as_str());
    Ok(Some(CacheControl {
        any: Token::variable(&format!("{ASSET}{suffix}"))?,
        elsewhere: Token::variable(&format!("{FINGERPRINTED}{suffix}"))?,
        directories: paths
            .filter(|path| is_ordinary(path))
            .map(Token::literal)
            .collect::<Result<_, _>>()?,
        value: value(assets.max_age)?,
    }))
}

/// Whether requests below `path` reach its location: where a segment begins with a dot, or `~` is
/// in it, every request is looked at closely (see `site`).
fn is_ordinary(path: &str) -> bool {
    !path.contains("/.") && !path.contains('~')
}

fn value(max_age: Duration) -> Result<Token, TokenError> {
    Token::literal(&format!("public, max-age={}, immutable", max_age.as_secs()))
}

/// A digest, because the name itself may be too long: a variable of 47 bytes makes nginx refuse
/// everything ("could not build variables_hash", whose bucket size is the admin's).
fn own_suffix(spec: &VhostSpec) -> String {
    format!("_{}", short_digest(&spec.name.to_string(), 12))
}

fn is_default(assets: &CacheAssets) -> bool {
    assets.max_age == DEFAULT_MAX_AGE
        && assets
            .paths
            .iter()
            .map(|path| path.as_str())
            .eq(DEFAULT_PATHS)
}

/// A regular expression for files below `path`, whose characters are RFC 3986's unreserved ones:
/// of those only the dot means something to PCRE.
fn below(path: &str) -> Result<Token, TokenError> {
    if let Some(odd) = path
        .chars()
        .find(|character| !is_path_character(*character))
    {
        return Err(TokenError::Character(odd));
    }
    let escaped = path.replace('.', r"\.");
    Token::expression(&[Part::Ours("~^"), Part::Value(&escaped)])
}

fn is_path_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '/' | '-' | '.' | '_' | '~')
}

/// `app-5d41402a.css`, `app.5d41402abc4b.js.map`: eight to sixty-four hex digits with a letter
/// among them, so that the date in `photo-20240101.jpg` is none.
const FINGERPRINT: &str = r"~[-.](?=[0-9a-f]*[a-f])[0-9a-f]{8,64}(?:\.[a-z0-9]+){1,2}$";

const ASSET: &str = "vhostd_asset";
const FINGERPRINTED: &str = "vhostd_fingerprinted";
const DEFAULT_PATHS: [&str; 2] = ["/assets/", "/static/"];
const DEFAULT_MAX_AGE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_matched_literally() {
        assert_eq!(below("/v1.0/").unwrap().as_str(), r"~^/v1\.0/");
        assert_eq!(below("/a(b/"), Err(TokenError::Character('(')));
    }
}
