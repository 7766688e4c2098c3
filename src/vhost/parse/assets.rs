//! P: `cache_assets`: `true`, `false`, or `{paths: […], max_age: 30d}`.

use std::time::Duration;

use crate::diagnostic::Position;
use crate::vhost::{AssetPath, CacheAssets};
use crate::yaml::{Fields, Node, Problems, Value, quoted};

/// `None` for `false` and for an absent key.
pub(super) fn parse(node: Option<Node>, problems: &mut Problems) -> Option<CacheAssets> {
    let node = node?;
    match node.value {
        Value::Bool(false) => None,
        Value::Bool(true) => Some(CacheAssets {
            paths: default_paths(),
            max_age: YEAR,
        }),
        Value::Mapping(_) => {
            let mut fields = Fields::of(node, "`cache_assets`", problems)?;
            let paths = paths(&mut fields, problems);
            let max_age = fields
                .take("max_age")
                .map_or(Some(YEAR), |node| max_age(node, problems));
            fields.finish(&[], problems);
            Some(CacheAssets {
                paths,
                max_age: max_age?,
            })
        }
        other => {
            let found = other.kind();
            problems.add_with_hint(
                node.at,
                format!("expected true, false or a mapping, found {found}"),
                Some("as in cache_assets: {paths: [/assets/], max_age: 30d}"),
            );
            None
        }
    }
}

fn default_paths() -> Vec<AssetPath> {
    DEFAULT_PATHS
        .iter()
        .filter_map(|path| AssetPath::parse(path).ok())
        .collect()
}

fn paths(fields: &mut Fields, problems: &mut Problems) -> Vec<AssetPath> {
    let texts = fields.strings("paths", problems);
    if texts.is_empty() {
        return default_paths();
    }
    if let Some(beyond) = texts.get(MAX_PATHS) {
        // each is a location of every server block
        problems.add_with_hint(
            beyond.at,
            format!("more than {MAX_PATHS} paths"),
            Some("a prefix covers what is below it: list the directories above"),
        );
    }
    let mut paths = Vec::new();
    for text in texts.into_iter().take(MAX_PATHS) {
        match AssetPath::parse(&text.value) {
            Ok(path) if paths.contains(&path) => {
                problems.add(text.at, format!("`{}` is listed twice", path.as_str()));
            }
            Ok(path) => paths.push(path),
            Err(error) => {
                let reason = format!("{}: {error}", quoted(&text.value));
                problems.add_with_hint(text.at, reason, Some(error.hint()));
            }
        }
    }
    paths
}

fn max_age(node: Node, problems: &mut Problems) -> Option<Duration> {
    let seconds = match &node.value {
        Value::Integer(seconds) => u64::try_from(*seconds).ok(),
        Value::String(text) => duration(text),
        other => {
            let reason = format!("expected a duration such as 30d, found {}", other.kind());
            problems.add(node.at, reason);
            return None;
        }
    };
    bounded(seconds, node.at, problems)
}

fn bounded(seconds: Option<u64>, at: Position, problems: &mut Problems) -> Option<Duration> {
    let age = seconds.map(Duration::from_secs);
    let age = age.filter(|age| !age.is_zero() && *age <= YEAR);
    if age.is_none() {
        // RFC 9111 §5.2.2.1 has no upper limit, browsers and RFC 2616 §14.21 stop at a year
        let hint = "seconds, or a number with s, m, h, d or w, from 1s to 365d";
        problems.add_with_hint(at, "not a duration from one second to one year", Some(hint));
    }
    age
}

/// `90`, `90s`, `15m`, `12h`, `30d`, `8w` → seconds.
pub(crate) fn duration(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        "w" => 7 * 24 * 60 * 60,
        _ => return None,
    };
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = plain.then(|| digits.parse().ok())??;
    number.checked_mul(unit)
}

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const DEFAULT_PATHS: [&str; 2] = ["/assets/", "/static/"];
const MAX_PATHS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_seconds_or_a_number_with_a_unit() {
        for (text, seconds) in [
            ("90", 90),
            ("90s", 90),
            ("15m", 900),
            ("12h", 43_200),
            ("30d", 2_592_000),
            ("8w", 4_838_400),
        ] {
            assert_eq!(duration(text), Some(seconds), "{text}");
        }
        for text in [
            "",
            "d",
            "1y",
            "-1d",
            "+1d",
            "1.5d",
            "1 d",
            "1d1h",
            "99999999999999999999",
            "18446744073709551615w",
            "1ü",
        ] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
