//! P: a TSIG key, as it is written in a file.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::settings::Algorithm;

/// No `Debug`: it is a secret.
pub struct TsigKey {
    pub name: String,
    pub algorithm: Algorithm,
    pub secret: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TsigKeyError {
    #[error("its algorithm is none of hmac-sha256, hmac-sha384 and hmac-sha512")]
    Algorithm,
    #[error("it does not say the key's name: set `key_name`")]
    NoName,
    #[error("there is no secret in it: base64 alone, or a key as tsig-keygen writes it")]
    NoSecret,
}

impl TsigKey {
    /// The secret alone, base64; or BIND's `key "NAME" { algorithm …; secret "…"; };`
    /// (tsig-keygen), or Knot's `- id: NAME`, `algorithm: …`, `secret: …` (keymgr -t).
    ///
    /// What the settings say goes before what the file says.
    pub fn parse(
        text: &str,
        name: Option<&str>,
        algorithm: Option<Algorithm>,
    ) -> Result<Self, TsigKeyError> {
        let words = words(text);
        let after = |key: &str| {
            let at = words.iter().position(|word| *word == key)?;
            words.get(at + 1).copied()
        };
        let written = match words.as_slice() {
            [alone] => Some(*alone),
            _ => after("secret"),
        };
        let secret = written.and_then(|text| BASE64_STANDARD.decode(text).ok());
        let secret = secret.filter(|secret| !secret.is_empty());
        let of_file = after("algorithm")
            .map(|word| Algorithm::from_word(word).ok_or(TsigKeyError::Algorithm));
        let name = name.or_else(|| after("id").or_else(|| after("key")));
        Ok(Self {
            secret: secret.ok_or(TsigKeyError::NoSecret)?,
            name: name.ok_or(TsigKeyError::NoName)?.to_owned(),
            algorithm: match algorithm {
                Some(algorithm) => algorithm,
                None => of_file.transpose()?.unwrap_or_default(),
            },
        })
    }
}

/// Without comments and punctuation.
fn words(text: &str) -> Vec<&str> {
    let lines = text.lines().map(|line| {
        let end = line.find('#').unwrap_or(line.len());
        let line = &line[..end];
        // base64 has slashes, too, but none begins a line with two of them
        match line.trim_start().starts_with("//") {
            true => "",
            false => line,
        }
    });
    let between = |c: char| c.is_whitespace() || ";{}\":".contains(c);
    let words = lines.flat_map(|line| line.split(between));
    words
        .filter(|word| !word.is_empty() && *word != "-")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BIND: &str = "// made by hand\nkey \"acme.example\" {\n\talgorithm hmac-sha512;\n\tsecret \"c2VjcmV0//8=\";\n};\n";
    const KNOT: &str = "# hmac-sha384:acme:c2VjcmV0\nkey:\n  - id: acme\n    algorithm: hmac-sha384\n    secret: c2VjcmV0\n";

    fn parse(text: &str, name: Option<&str>) -> Result<(String, Algorithm, Vec<u8>), TsigKeyError> {
        let key = TsigKey::parse(text, name, None)?;
        Ok((key.name, key.algorithm, key.secret))
    }

    #[test]
    fn a_key_is_read_as_the_name_servers_tools_write_it() {
        let (name, algorithm, secret) = parse(BIND, None).unwrap();
        assert_eq!(
            (name.as_str(), algorithm),
            ("acme.example", Algorithm::HmacSha512)
        );
        assert_eq!(secret, b"secret\xff\xff");
        let (name, algorithm, secret) = parse(KNOT, None).unwrap();
        assert_eq!((name.as_str(), algorithm), ("acme", Algorithm::HmacSha384));
        assert_eq!(secret, b"secret");
        let (name, algorithm, _) = parse("c2VjcmV0\n", Some("k")).unwrap();
        assert_eq!((name.as_str(), algorithm), ("k", Algorithm::HmacSha256));
        let set = TsigKey::parse(BIND, Some("k"), Some(Algorithm::HmacSha256)).ok();
        let set = set.map(|key| (key.name, key.algorithm));
        assert_eq!(set, Some(("k".to_owned(), Algorithm::HmacSha256)));
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_shown() {
        assert_eq!(parse("c2VjcmV0", None), Err(TsigKeyError::NoName));
        for text in ["", "not base64!", "a b c", "secret"] {
            assert_eq!(
                parse(text, Some("k")),
                Err(TsigKeyError::NoSecret),
                "{text}"
            );
        }
        let md5 = BIND.replace("sha512", "md5");
        assert_eq!(parse(&md5, None), Err(TsigKeyError::Algorithm));
    }
}
