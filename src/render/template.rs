//! P: the shipped templates, and what may override them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

use serde::Serialize;
use tera::{Context, Tera};

use super::token;

/// The parsed templates. Whatever they say, every placeholder is one quoted token, and the result
/// is audited.
#[derive(Clone)]
pub struct Templates {
    tera: Tera,
    /// Name → what was parsed.
    texts: BTreeMap<&'static str, String>,
}

/// Why there is no usable template, or no text from it. The message may have several lines: the
/// place in the template, with a caret.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("fill template {name}: {}", chain(source))]
    Fill {
        name: Cow<'static, str>,
        #[source]
        source: tera::Error,
    },
    #[error("parse the templates: {}", chain(source))]
    Parse {
        #[source]
        source: tera::Error,
    },
    /// It would let a value through unquoted.
    #[error("use template {name}: line {line}: the filter `safe` is not allowed")]
    Safe { name: String, line: usize },
    #[error("use template {0}: there is none to override ({BASE} and {VHOST} can be)")]
    Unknown(String),
}

impl Templates {
    /// As they come with vhostd.
    pub fn shipped() -> Result<Self, TemplateError> {
        Self::with_overrides(BTreeMap::new())
    }

    /// `overrides`: file name (`vhost.conf`) → text, in place of the shipped one.
    pub fn with_overrides(overrides: BTreeMap<String, String>) -> Result<Self, TemplateError> {
        if let Some(unknown) = overrides
            .keys()
            .find(|name| !SHIPPED.iter().any(|(shipped, _)| shipped == name))
        {
            return Err(TemplateError::Unknown(unknown.clone()));
        }
        let texts: BTreeMap<&str, String> = SHIPPED
            .iter()
            .map(|(name, shipped)| {
                let text = overrides.get(*name).map_or(*shipped, String::as_str);
                (*name, text.to_owned())
            })
            .collect();
        let tera = parsed(texts.iter().map(|(name, text)| (*name, text.as_str())))?;
        Ok(Self { tera, texts })
    }

    /// As it is written.
    pub(super) fn text(&self, name: &str) -> &str {
        self.texts.get(name).map_or("", String::as_str)
    }

    pub(super) fn fill(
        &self,
        name: &'static str,
        value: &impl Serialize,
    ) -> Result<Vec<u8>, TemplateError> {
        fill(&self.tera, name, value)
    }
}

impl fmt::Debug for Templates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.tera.get_template_names())
            .finish()
    }
}

/// The entry's bytes.
pub(super) fn entry(value: &impl Serialize) -> Result<Vec<u8>, TemplateError> {
    fill(&parsed([(ENTRY, SHIPPED_ENTRY)])?, ENTRY, value)
}

fn parsed<'a>(
    texts: impl IntoIterator<Item = (&'static str, &'a str)>,
) -> Result<Tera, TemplateError> {
    let texts: Vec<(&str, &str)> = texts.into_iter().collect();
    for (name, text) in &texts {
        if let Some(line) = line_of_safe(text) {
            return Err(TemplateError::Safe {
                name: (*name).to_owned(),
                line,
            });
        }
    }
    let mut tera = Tera::new();
    // by default Tera escapes HTML, and only in files named .html
    tera.set_escape_fn(token::escape);
    tera.autoescape_on([".conf"]);
    tera.add_raw_templates(texts)
        .map_err(|source| TemplateError::Parse { source })?;
    Ok(tera)
}

fn fill(tera: &Tera, name: &'static str, value: &impl Serialize) -> Result<Vec<u8>, TemplateError> {
    let failed = |source| TemplateError::Fill {
        name: Cow::Borrowed(name),
        source,
    };
    let context = Context::from_serialize(value).map_err(failed)?;
    tera.render(name, &context)
        .map(String::into_bytes)
        .map_err(failed)
}

/// The first line with `… | safe`, with any spaces and line ends between, or `{% filter safe %}`.
fn line_of_safe(text: &str) -> Option<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices("safe").find_map(|(start, word)| {
        let after = &text[start + word.len()..];
        let before = text[..start].trim_end();
        let filters = before.ends_with('|') || before.ends_with("filter");
        (filters && !after.starts_with(is_word)).then(|| text[..start].matches('\n').count() + 1)
    })
}

/// Tera keeps the reason for a failed escape in the source.
fn chain(error: &tera::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// Maps, answers to unknown names, the reserved name.
pub(crate) const BASE: &str = "base.conf";
/// The entry. It names the generation and is no matter of taste: not overridable.
pub(crate) const ENTRY: &str = "http.conf";
/// The vhosts of one app.
pub(super) const VHOST: &str = "vhost.conf";

pub(super) const SHIPPED: [(&str, &str); 2] = [
    (BASE, include_str!("../../templates/base.conf")),
    (VHOST, include_str!("../../templates/vhost.conf")),
];
pub(super) const SHIPPED_ENTRY: &str = include_str!("../../templates/http.conf");

#[cfg(test)]
mod tests {
    use super::*;

    fn overriding(name: &str, text: &str) -> Result<Templates, TemplateError> {
        Templates::with_overrides([(name.to_owned(), text.to_owned())].into())
    }

    #[test]
    fn no_template_uses_the_filter_that_switches_quoting_off() {
        for (name, text) in SHIPPED.iter().chain(&[(ENTRY, SHIPPED_ENTRY)]) {
            assert!(!text.contains("safe"), "{name}");
        }
        for text in [
            "{{ a|safe }}",
            "{{ a | safe }}",
            "{{ a |\tsafe|upper }}",
            "{% filter safe %}{{ a }}{% endfilter %}",
        ] {
            let error = overriding(BASE, &format!("\n{text}")).unwrap_err();
            assert_eq!(
                error.to_string(),
                "use template base.conf: line 2: the filter `safe` is not allowed"
            );
        }
        let error = overriding(BASE, "{{ a |\n\n safe }}").unwrap_err();
        assert!(matches!(error, TemplateError::Safe { line: 3, .. }));
        assert!(overriding(BASE, "{{ a | upper }} # safer").is_ok());
    }

    #[test]
    fn every_placeholder_is_one_quoted_token_and_stands_alone() {
        for (name, text) in SHIPPED.iter().chain(&[(ENTRY, SHIPPED_ENTRY)]) {
            for (start, _) in text.match_indices("{{") {
                let before = text[..start].chars().next_back();
                let end = start + text[start..].find("}}").unwrap() + 2;
                let after = text[end..].chars().next();
                assert!(matches!(before, Some(' ' | '}')), "{name}: {before:?}");
                assert!(matches!(after, Some(' ' | ';' | '{')), "{name}: {after:?}");
            }
        }
    }

    #[test]
    fn a_bare_value_with_a_variable_does_not_pass_any_template() {
        #[derive(Serialize)]
        struct Bare {
            value: &'static str,
        }
        let templates = overriding(BASE, "set {{ value }};").unwrap();
        let fill = |value| templates.fill(BASE, &Bare { value });
        assert_eq!(fill("a b;\"").unwrap(), br#"set "a b;\"";"#);
        let error = fill("$host").unwrap_err().to_string();
        assert!(error.contains("'$' cannot be"), "{error}");
    }

    #[test]
    fn an_override_that_does_not_parse_says_where() {
        let error = overriding(VHOST, "a\n{{ nope").unwrap_err().to_string();
        assert!(error.contains("vhost.conf"), "{error}");
        let error = overriding("site.conf", "").unwrap_err();
        assert_eq!(
            error.to_string(),
            "use template site.conf: there is none to override (base.conf and vhost.conf can be)"
        );
        assert!(overriding(ENTRY, "").is_err());
    }
}
