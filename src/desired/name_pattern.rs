//! P: hand-written names that stand for many: `www.brand.*` and regular expressions. nginx prefers an
//! exact name and one of our wildcards to both, so such a name would be taken without a word.

use regex_lite::{Regex, RegexBuilder};

use super::RESERVED_NAME;
use crate::vhost::ServerName;

/// One argument of a hand-written `server_name`.
#[derive(Clone, Debug)]
pub struct NamePattern {
    /// As written.
    pub text: String,
    /// `path:line`
    pub place: String,
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    /// Of `www.brand.*`, `www.brand`.
    Beginning(String),
    Regex(Regex),
}

impl NamePattern {
    /// `None` for a plain name, a leading wildcard, and an expression that any name matches: that is a
    /// catch-all, which names nothing. Otherwise an expression that is not understood is an error.
    pub fn parse(text: &str, place: &str) -> Option<Result<Self, String>> {
        let of = |form| Self {
            text: text.to_owned(),
            place: place.to_owned(),
            form,
        };
        if let Some(expression) = text.strip_prefix('~') {
            return match regex(expression) {
                Ok(regex) if regex.is_match(RESERVED_NAME) => None,
                Ok(regex) => Some(Ok(of(Form::Regex(regex)))),
                Err(error) => Some(Err(error.to_string())),
            };
        }
        let beginning = text.strip_suffix(".*")?.to_ascii_lowercase();
        Some(Ok(of(Form::Beginning(beginning))))
    }

    /// A host of `name` that nginx gives to the pattern's site as long as no vhost has `name`.
    pub fn taken_by(&self, name: &ServerName) -> Option<String> {
        let name = name.as_str();
        let hosts = match name.strip_prefix("*.") {
            None => vec![name.to_owned()],
            Some(zone) => self.below(zone),
        };
        hosts.into_iter().find(|host| self.matches(host))
    }

    fn matches(&self, host: &str) -> bool {
        match &self.form {
            Form::Regex(regex) => regex.is_match(host),
            Form::Beginning(beginning) => {
                let rest = host.strip_prefix(beginning.as_str());
                rest.is_some_and(|rest| rest.len() > 1 && rest.starts_with('.'))
            }
        }
    }

    /// Hosts below `zone` that the pattern may match, if any does.
    fn below(&self, zone: &str) -> Vec<String> {
        let Form::Beginning(beginning) = &self.form else {
            return ["www", "a", "a.b", "0"]
                .map(|label| format!("{label}.{zone}"))
                .to_vec();
        };
        let labels: Vec<&str> = beginning.split('.').collect();
        // `www.brand.*` and `*.brand.com` meet at `www.brand.com`
        let common = (1..labels.len()).filter_map(|at| {
            let end = labels[at..].join(".");
            let meets = zone == end || zone.starts_with(&format!("{end}."));
            meets.then(|| format!("{}.{zone}", labels[..at].join(".")))
        });
        let first = (labels.len() == 1).then(|| format!("{beginning}.{zone}"));
        common.chain(first).collect()
    }
}

/// As nginx compiles it: bytes, without case (ngx_http_core_module.c, NGX_REGEX_CASELESS).
fn regex(expression: &str) -> Result<Regex, regex_lite::Error> {
    RegexBuilder::new(expression)
        .case_insensitive(true)
        .size_limit(SIZE_LIMIT)
        .build()
}

/// Bytes of a compiled expression.
const SIZE_LIMIT: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> NamePattern {
        NamePattern::parse(text, "/n:1").unwrap().unwrap()
    }

    #[test]
    fn a_name_that_the_pattern_matches_is_taken_from_its_site_and_another_is_not() {
        for (text, name, host) in [
            ("www.brand.*", "www.brand.com", Some("www.brand.com")),
            (
                "www.brand.*",
                "www.brand.co.example",
                Some("www.brand.co.example"),
            ),
            ("WWW.Brand.*", "www.brand.com", Some("www.brand.com")),
            ("www.brand.*", "www.brandnew.com", None),
            ("www.brand.*", "a.www.brand.com", None),
            ("www.brand.*", "brand.com", None),
            ("www.brand.*", "*.brand.com", Some("www.brand.com")),
            ("www.brand.*", "*.com.example", None),
            ("www.brand.*", "*.other.example", None),
            ("mail.*", "*.example.com", Some("mail.example.com")),
            (
                r"~^(.+)\.corp\.example$",
                "a.corp.example",
                Some("a.corp.example"),
            ),
            (
                r"~^(?<app>.+)\.corp\.example$",
                "a.corp.example",
                Some("a.corp.example"),
            ),
            (
                r"~^(?P<app>[^.]+)\.CORP\.example$",
                "a.corp.example",
                Some("a.corp.example"),
            ),
            (
                r"~^(.+)\.corp\.example$",
                "*.corp.example",
                Some("www.corp.example"),
            ),
            (r"~^(.+)\.corp\.example$", "corp.example", None),
            (r"~^(.+)\.corp\.example$", "a.corp.example.org", None),
            (
                r"~^www\d+\.example\.net$",
                "www12.example.net",
                Some("www12.example.net"),
            ),
            (r"~^www\d+\.example\.net$", "www.example.net", None),
        ] {
            let name: ServerName = name.parse().unwrap();
            let taken = pattern(text).taken_by(&name);
            assert_eq!(taken.as_deref(), host, "{text} {name}");
        }
    }

    #[test]
    fn what_names_nothing_is_no_pattern_and_what_is_not_understood_is_said() {
        for text in [
            "a.example",
            "*.a.example",
            ".a.example",
            "_",
            "",
            "~.",
            "~^(.*)$",
            "~^.+$",
        ] {
            assert!(NamePattern::parse(text, "/n:1").is_none(), "{text}");
        }
        for text in [
            r"~^(?!www\.).+\.example\.com$",
            r"~^(a)\1\.example\.com$",
            "~(",
        ] {
            assert!(NamePattern::parse(text, "/n:1").unwrap().is_err(), "{text}");
        }
    }
}
