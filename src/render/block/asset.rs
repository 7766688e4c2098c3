//! P: which files get a long life.

use std::time::Duration;

use serde::Serialize;

use super::short_digest;
use crate::render::token::{Part, Token, TokenError};
use crate::vhost::{CacheAssets, VhostSpec};

/// `map "$status $uri" VARIABLE { PATTERN VALUE; … }`: the Cache-Control of a file from disk.
///
/// The status is part of the key, so that a redirect from `/assets` to `/assets/` gets no long
/// life: nginx would add the header to a 301 as well.
#[derive(Debug, Serialize)]
pub struct AssetMap {
    pub variable: Token,
    pub patterns: Vec<Token>,
    pub value: Token,
}

impl AssetMap {
    /// The map of `cache_assets: true`, shared by all vhosts.
    pub fn shared() -> Result<Self, TokenError> {
        Self::new(SHARED_VARIABLE, &DEFAULT_PATHS, DEFAULT_MAX_AGE)
    }

    /// The map that a vhost needs for itself, if its `cache_assets` says something of its own.
    pub fn own(spec: &VhostSpec) -> Result<Option<Self>, TokenError> {
        match &spec.cache_assets {
            Some(assets) if !is_default(assets) => {
                let paths: Vec<&str> = assets.paths.iter().map(|path| path.as_str()).collect();
                Self::new(&own_variable(spec), &paths, assets.max_age).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn new(variable: &str, paths: &[&str], max_age: Duration) -> Result<Self, TokenError> {
        // nginx tries them in this order, and that of names is the dear one
        let mut patterns: Vec<Token> = paths
            .iter()
            .map(|path| below(path))
            .collect::<Result<_, _>>()?;
        patterns.push(Token::expression(&[Part::Ours(FINGERPRINTED)])?);
        Ok(Self {
            variable: Token::variable(variable)?,
            patterns,
            value: Token::literal(&format!("public, max-age={}, immutable", max_age.as_secs()))?,
        })
    }
}

/// The variable of the map that applies to a vhost; `None` where it caches nothing.
pub(super) fn cache_control(spec: &VhostSpec) -> Result<Option<Token>, TokenError> {
    match &spec.cache_assets {
        None => Ok(None),
        Some(assets) if is_default(assets) => Token::variable(SHARED_VARIABLE).map(Some),
        Some(_) => Token::variable(&own_variable(spec)).map(Some),
    }
}

/// A digest, because the name itself may be too long: a variable of 47 bytes makes nginx refuse
/// everything ("could not build variables_hash", whose bucket size is the admin's).
fn own_variable(spec: &VhostSpec) -> String {
    format!(
        "{SHARED_VARIABLE}_{}",
        short_digest(&spec.name.to_string(), 12)
    )
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
    Token::expression(&[Part::Ours("~^(?:200|304) "), Part::Value(&escaped)])
}

fn is_path_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '/' | '-' | '.' | '_' | '~')
}

/// `app-5d41402a.css`, `app.5d41402abc4b.js.map`: eight to sixty-four hex digits with a letter
/// among them, so that the date in `photo-20240101.jpg` is none.
const FINGERPRINTED: &str =
    r"~^(?:200|304) .*[-.](?=[0-9a-f]*[a-f])[0-9a-f]{8,64}(?:\.[a-z0-9]+){1,2}$";

const SHARED_VARIABLE: &str = "vhostd_asset";
const DEFAULT_PATHS: [&str; 2] = ["/assets/", "/static/"];
const DEFAULT_MAX_AGE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_matched_literally() {
        assert_eq!(below("/v1.0/").unwrap().as_str(), r"~^(?:200|304) /v1\.0/");
        assert_eq!(below("/a(b/"), Err(TokenError::Character('(')));
    }
}
