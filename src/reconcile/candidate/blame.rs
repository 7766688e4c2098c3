//! P: what nginx said about a rendered file → the line and the key of the vhost file.

use crate::diagnostic::{Diagnostic, Position};
use crate::nginx::syntax::{self, Directive};
use crate::render::block::upstream_name;
use crate::vhost::{App, VhostSpec};
use crate::yaml::{self, Node, Value};

/// An app that nginx does not take.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Blame<'a> {
    /// As its file has it now.
    pub(super) app: &'a App,
    /// The vhost file's text.
    pub(super) text: &'a str,
    pub(super) rendered: &'a [u8],
    /// nginx's words, with their place.
    pub(super) message: &'a str,
    /// The line of `rendered` that nginx names.
    pub(super) line: Option<usize>,
}

impl Blame<'_> {
    pub(super) fn diagnostic(&self) -> Diagnostic {
        let said = match self.line {
            Some(_) => self.message.rsplit_once(" in ").map(|(said, _)| said),
            None => None,
        };
        let reason = format!("nginx refuses it: {}", said.unwrap_or(self.message));
        let mut diagnostic = Diagnostic::new(&self.app.file, reason).in_nginxs_words(self.message);
        diagnostic.at = self.position();
        diagnostic
    }

    fn position(&self) -> Option<Position> {
        let line = self.line?;
        let tree = syntax::parse(self.rendered).ok()?;
        let block = enclosing(&tree, line)?;
        let vhost = self.vhost(block)?;
        let inner = enclosing(block.children(), line).map(|directive| directive.name.as_str());
        let key = match (block.name.as_str(), inner) {
            ("upstream", _) => Some("proxy_pass_url"),
            (_, inner) => inner.and_then(key),
        };
        match key {
            Some("server_name") => Some(vhost.server_names.first()?.at),
            Some(key) => self.key_position(vhost, key).or(Some(vhost.at)),
            None => Some(vhost.at),
        }
    }

    fn vhost(&self, block: &Directive) -> Option<&VhostSpec> {
        let of_block = |vhost: &&VhostSpec| match block.name.as_str() {
            "upstream" => block.args.first() == Some(&upstream_name(&vhost.name)),
            _ => vhost.all_names().any(|name| {
                let mut children = block.children().iter();
                children.any(|directive| {
                    let named = directive.args.iter().any(|arg| arg == name.value.as_str());
                    directive.name == "server_name" && named
                })
            }),
        };
        let found = self.app.vhosts.iter().find(of_block);
        found.or_else(|| self.app.vhosts.first())
    }

    fn key_position(&self, vhost: &VhostSpec, key: &str) -> Option<Position> {
        let node = yaml::parse(&self.app.file, self.text).ok()?;
        find(&node, vhost.at, key)
    }
}

/// The last directive that begins at or before `line`.
fn enclosing(directives: &[Directive], line: usize) -> Option<&Directive> {
    directives
        .iter()
        .rev()
        .find(|directive| directive.line <= line)
}

/// The key of a vhost file that becomes a directive.
fn key(directive: &str) -> Option<&'static str> {
    Some(match directive {
        "server_name" => "server_name",
        "root" | "disable_symlinks" => "root",
        "proxy_pass" => "proxy_pass_url",
        "ssl_certificate" | "ssl_certificate_key" => "tls",
        "gzip_static" | "brotli_static" => "cache_assets",
        _ => return None,
    })
}

/// Where `key` is written in the mapping that begins at `at`.
fn find(node: &Node, at: Position, key: &str) -> Option<Position> {
    match &node.value {
        Value::Mapping(entries) => {
            let here = node.at.offset == at.offset;
            let own = entries.iter().find(|(name, _)| name.value == key);
            match own.filter(|_| here) {
                Some((name, _)) => Some(name.at),
                None => entries.iter().find_map(|(_, inner)| find(inner, at, key)),
            }
        }
        Value::Sequence(items) => items.iter().find_map(|item| find(item, at, key)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::vhost::{TlsMode, parse};

    const TEXT: &str = "\
- server_name: a.example.com
  root: /srv/a
- server_name: [b.example.com, c.example.com]
  tls: internal
  proxy_pass_url: http://127.0.0.1:8000
";
    const RENDERED: &str = "\
# Managed by vhostd.
upstream vhostd_shop_232 {
    server 127.0.0.1:8000;
}
server {
    server_name a.example.com;
    root /srv/a;
    send_timeout 15s;
}
server {
    server_name b.example.com c.example.com;
    ssl_certificate /c;
    location @app {
        proxy_pass http://vhostd_shop_232;
    }
}
";

    fn diagnosed(message: &str, line: Option<usize>) -> Diagnostic {
        let app = "shop".parse().unwrap();
        let roots = [PathBuf::from("/srv")];
        let file = Path::new("shop.yml");
        let app = parse::parse(&app, file, TEXT, &roots, &TlsMode::Auto.into()).unwrap();
        let blame = Blame {
            app: &app,
            text: TEXT,
            rendered: RENDERED.as_bytes(),
            message,
            line,
        };
        blame.diagnostic()
    }

    #[test]
    fn each_line_of_a_rendered_file_leads_to_the_key_that_it_came_from() {
        for (line, expected) in [
            (3, (5, 3)),  // an upstream's server: proxy_pass_url of the second
            (6, (1, 16)), // server_name
            (7, (2, 3)),  // root
            (8, (1, 3)),  // no key: the vhost
            (9, (1, 3)),  // the end of the block
            (12, (4, 3)), // tls
            (14, (3, 3)), // inside a location
        ] {
            let at = diagnosed("no in /x:1", Some(line)).at.unwrap();
            assert_eq!((at.line, at.column), expected, "{line}");
        }
    }

    #[test]
    fn nginxs_own_words_are_kept_beneath() {
        let message = "invalid value \"x\" in /var/lib/vhostd/scratch/vhosts/shop.conf:7";
        let diagnostic = diagnosed(message, Some(7));
        assert_eq!(diagnostic.reason, "nginx refuses it: invalid value \"x\"");
        assert_eq!(
            diagnostic.nginx.as_deref().map(String::as_str),
            Some(message)
        );
        let placeless = diagnosed("no memory in here", None);
        assert_eq!(placeless.reason, "nginx refuses it: no memory in here");
        assert_eq!(placeless.at, None);
    }
}
