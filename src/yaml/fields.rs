//! P: a mapping's keys, taken one by one. Every error of a file is collected, none is thrown.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Node, Value};
use crate::diagnostic::{Diagnostic, Located, Position};

/// The errors of one file so far.
#[derive(Debug)]
pub struct Problems {
    file: PathBuf,
    found: Vec<Diagnostic>,
    /// Lines with a secret, whatever else is wrong in them.
    unshown: BTreeSet<usize>,
    /// There is more of the file, and nobody looks at it.
    given_up: bool,
}

impl Problems {
    pub fn of(file: &Path) -> Self {
        Self {
            file: file.to_path_buf(),
            found: Vec::new(),
            unshown: BTreeSet::new(),
            given_up: false,
        }
    }

    pub fn add(&mut self, at: Position, reason: impl Into<String>) {
        self.found.push(Diagnostic::new(&self.file, reason).at(at));
    }

    pub fn add_with_hint(
        &mut self,
        at: Position,
        reason: impl Into<String>,
        hint: Option<impl Into<String>>,
    ) {
        let diagnostic = Diagnostic::new(&self.file, reason).at(at);
        self.found.push(match hint {
            Some(hint) => diagnostic.hint(hint),
            None => diagnostic,
        });
    }

    /// What the settings do not permit.
    pub fn add_not_permitted(&mut self, at: Position, reason: impl Into<String>, hint: String) {
        let diagnostic = Diagnostic::new(&self.file, reason).at(at).hint(hint);
        self.found.push(diagnostic.not_permitted());
    }

    /// As [`Self::add_with_hint`], of a line with a secret: no picture is drawn of it, since that
    /// would be in whatever keeps the output.
    pub fn add_unshown(&mut self, at: Position, reason: &str, hint: &str) {
        self.unshown.insert(at.line);
        self.add_with_hint(at, reason, Some(hint));
    }

    fn hide(&mut self) {
        for diagnostic in &mut self.found {
            if let Some(at) = diagnostic.at.filter(|at| self.unshown.contains(&at.line)) {
                diagnostic.at = None;
                diagnostic.reason = format!("line {}: {}", at.line, diagnostic.reason);
            }
        }
    }

    /// A word that is none of `known`.
    pub fn unknown_word(&mut self, at: Position, word: &str, known: &[&str]) {
        let reason = format!("expected {}, found {}", known.join(" or "), quoted(word));
        let hint = nearest(word, known).map(|known| format!("did you mean `{known}`?"));
        self.add_with_hint(at, reason, hint);
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Whether so much is wrong that the rest of a list need not be looked at: nobody would read
    /// of it, and the daemon has other files. Whoever asks and hears yes looks at no more.
    pub fn give_up(&mut self) -> bool {
        self.given_up |= self.found.len() >= ENOUGH_PROBLEMS;
        self.given_up
    }

    /// `Ok` where there was none, else the errors in the order of the file; of very many, the first
    /// and how many more.
    pub fn or<T>(mut self, value: Option<T>) -> Result<T, Vec<Diagnostic>> {
        match value {
            Some(value) if self.found.is_empty() => Ok(value),
            _ => {
                self.found
                    .sort_by_key(|diagnostic| diagnostic.at.map(|at| at.offset));
                self.hide();
                let more = self.found.len().saturating_sub(MAX_PROBLEMS);
                self.found.truncate(MAX_PROBLEMS);
                if more > 0 {
                    let at_least = if self.given_up { "at least " } else { "" };
                    let reason = format!("and {at_least}{more} more errors");
                    self.found.push(Diagnostic::new(&self.file, reason));
                }
                Err(self.found)
            }
        }
    }
}

/// A mapping whose keys are taken one by one; [`Fields::finish`] reports what is left.
#[derive(Debug)]
pub struct Fields {
    pub at: Position,
    entries: Vec<(Located<String>, Node)>,
    /// Every key that was asked for.
    known: Vec<&'static str>,
    /// Those of them that were there.
    present: Vec<&'static str>,
    /// Sections below, and the keys that belong there.
    below: Vec<(&'static str, &'static [&'static str])>,
}

impl Fields {
    /// `None` (and a problem) where `node` is no mapping. `what` names it: "a vhost".
    pub fn of(node: Node, what: &str, problems: &mut Problems) -> Option<Self> {
        match node.value {
            Value::Mapping(entries) => Some(Self {
                // a mapping begins where its first key does
                at: entries.first().map_or(node.at, |(key, _)| key.at),
                entries,
                known: Vec::new(),
                present: Vec::new(),
                below: Vec::new(),
            }),
            other => {
                let reason = format!("expected {what} (a mapping), found {}", other.kind());
                problems.add(node.at, reason);
                None
            }
        }
    }

    /// Whether a taken `key` was written, perhaps misspelt: then it need not be reported missing.
    pub fn given(&self, key: &str) -> bool {
        self.present.contains(&key)
            || self
                .entries
                .iter()
                .take(MAX_PROBLEMS)
                .any(|(have, _)| nearest(&have.value, &self.known) == Some(key))
    }

    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(have, _)| have.value == key)
    }

    /// Whether a key is one of `keys`, perhaps misspelt.
    pub fn has_like(&self, keys: &[&str]) -> bool {
        let mut entries = self.entries.iter();
        entries.any(|(have, _)| nearest(&have.value, keys).is_some())
    }

    /// The value of `key`, which is thereby a known one.
    pub fn take(&mut self, key: &'static str) -> Option<Node> {
        self.known.push(key);
        let index = self
            .entries
            .iter()
            .position(|(have, _)| have.value == key)?;
        self.present.push(key);
        let (written, mut node) = self.entries.remove(index);
        if node.value == Value::Null {
            // nothing is written there: point at the key
            node.at = written.at;
        }
        Some(node)
    }

    pub fn string(
        &mut self,
        key: &'static str,
        problems: &mut Problems,
    ) -> Option<Located<String>> {
        string(self.take(key)?, "a string", problems)
    }

    /// A string, or a list of at least one; empty where the key is absent.
    pub fn strings(&mut self, key: &'static str, problems: &mut Problems) -> Vec<Located<String>> {
        match self.take(key) {
            None => Vec::new(),
            Some(node) => strings(node, "a string or a list of strings", problems),
        }
    }

    pub fn integer(&mut self, key: &'static str, problems: &mut Problems) -> Option<Located<i64>> {
        let node = self.take(key)?;
        match node.value {
            Value::Integer(value) => Some(Located { value, at: node.at }),
            other => {
                problems.add(
                    node.at,
                    format!("expected a whole number, found {}", other.kind()),
                );
                None
            }
        }
    }

    pub fn mapping(&mut self, key: &'static str, problems: &mut Problems) -> Option<Self> {
        let node = self.take(key)?;
        Self::of(node, &format!("`{key}`"), problems)
    }

    /// Whoever writes one of `keys` here meant it below `section`.
    pub fn belong_below(&mut self, section: &'static str, keys: &'static [&'static str]) {
        self.below.push((section, keys));
    }

    /// Refuses `key`, a secret that belongs into the file which `file` names.
    pub fn refuse_secret(&mut self, key: &'static str, file: &str, problems: &mut Problems) {
        if self.has(key)
            && let Some(node) = self.take(key)
        {
            let hint =
                format!("put it into a file that only root can read, and write `{file}: FILE`");
            problems.add_unshown(node.at, "a secret in the settings", &hint);
        }
    }

    /// Reports every key that nobody took. `planned`: named by the contract, not in this version.
    pub fn finish(self, planned: &[&str], problems: &mut Problems) {
        for (index, (key, _)) in self.entries.iter().enumerate() {
            let name = key.value.as_str();
            if index >= MAX_PROBLEMS {
                // only counted: what would be said is left out
                problems.add(key.at, "unknown key");
                continue;
            }
            if planned.contains(&name) {
                problems.add(key.at, format!("`{name}` is not supported by this version"));
                continue;
            }
            let mut below = self.below.iter();
            let below = below.find(|(_, keys)| keys.contains(&name));
            let hint = match (below, nearest(name, &self.known)) {
                (Some((section, _)), _) => {
                    format!("it belongs below `{section}`, as in {section}: {{{name}: …}}")
                }
                (None, Some(known)) => format!("did you mean `{known}`?"),
                (None, None) => format!("the keys are {}", self.known.join(", ")),
            };
            problems.add_with_hint(key.at, format!("unknown key {}", quoted(name)), Some(hint));
        }
    }
}

/// `expected` completes "expected …": what the place takes.
pub fn string(node: Node, expected: &str, problems: &mut Problems) -> Option<Located<String>> {
    match node.value {
        Value::String(value) => Some(Located { value, at: node.at }),
        other => {
            let hint = matches!(other, Value::Bool(_) | Value::Integer(_) | Value::Float(_))
                .then_some("put it in quotes if it is meant as text");
            let reason = format!("expected {expected}, found {}", other.kind());
            problems.add_with_hint(node.at, reason, hint);
            None
        }
    }
}

/// A string, or a list of at least one; what is wrong is left out and reported.
pub fn strings(node: Node, expected: &str, problems: &mut Problems) -> Vec<Located<String>> {
    match node.value {
        Value::Sequence(items) if items.is_empty() => {
            problems.add(node.at, format!("expected {expected}, found an empty list"));
            Vec::new()
        }
        Value::Sequence(items) => items
            .into_iter()
            .filter_map(|item| string(item, "a string", problems))
            .collect(),
        _ => string(node, expected, problems).into_iter().collect(),
    }
}

/// `text` between backticks, as a message may show it: short, on one line.
pub fn quoted(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(QUOTED_CHARACTERS)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(QUOTED_CHARACTERS).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

/// The known word that `word` is a misspelling of.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|known| (strsim::jaro_winkler(word, known), *known))
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|(left, _), (right, _)| left.total_cmp(right))
        .map(|(_, known)| known)
}

const QUOTED_CHARACTERS: usize = 80;
/// More than anybody reads, and few enough for a status file.
const MAX_PROBLEMS: usize = 50;
/// So many errors of one file are enough: see [`Problems::give_up`].
const ENOUGH_PROBLEMS: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> (Fields, Problems) {
        let mut problems = Problems::of(Path::new("t.yml"));
        let node = crate::yaml::parse(Path::new("t.yml"), text).unwrap();
        let fields = Fields::of(node, "a test", &mut problems).unwrap();
        (fields, problems)
    }

    fn said(problems: Problems) -> Vec<String> {
        let errors = problems.or::<()>(None).unwrap_err();
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_key_that_nobody_took_is_unknown_or_planned() {
        let (mut fields, mut problems) = fields("colour: red\nsize: 1\nshape: x\nzzz: 1\n");
        assert!(fields.string("color", &mut problems).is_none());
        assert!(fields.given("color") && !fields.given("weight"));
        fields.finish(&["shape"], &mut problems);
        assert_eq!(
            said(problems),
            [
                "t.yml:1:1: unknown key `colour`",
                "t.yml:2:1: unknown key `size`",
                "t.yml:3:1: `shape` is not supported by this version",
                "t.yml:4:1: unknown key `zzz`",
            ]
        );
    }

    #[test]
    fn a_value_is_never_quoted_beyond_eighty_characters_or_with_controls() {
        assert_eq!(quoted("a\nb"), "`a\u{fffd}b`");
        assert_eq!(quoted(&"x".repeat(500)).chars().count(), 83);
    }

    #[test]
    fn of_very_many_errors_the_first_are_kept() {
        let mut problems = Problems::of(Path::new("t.yml"));
        for _ in 0..1000 {
            problems.add(Position::default(), "wrong");
        }
        let said = said(problems);
        assert_eq!(said.len(), MAX_PROBLEMS + 1);
        assert_eq!(said[MAX_PROBLEMS], "t.yml: and 950 more errors");
    }
}
