//! P: a diagnostic as rustc would draw it.

use std::ops::Range;

use annotate_snippets::renderer::DEFAULT_TERM_WIDTH;
use annotate_snippets::{AnnotationKind, Group, Level, Origin, Patch, Renderer, Snippet};

use crate::diagnostic::{Diagnostic, Position};

/// Draws an error: what, where, the line of `source` with a caret, and the hint as help. A hint
/// that is a corrected spelling is shown as the patched line.
///
/// `source` is the text of `diagnostic.file`; without it only the place is named. No final newline.
pub fn render(diagnostic: &Diagnostic, source: Option<&str>, colour: bool) -> String {
    draw(&Level::ERROR, diagnostic, source, colour)
}

/// As [`render`], for what does not keep a vhost from being served.
pub fn render_warning(diagnostic: &Diagnostic, source: Option<&str>, colour: bool) -> String {
    draw(&Level::WARNING, diagnostic, source, colour)
}

fn draw(
    level: &Level<'static>,
    diagnostic: &Diagnostic,
    source: Option<&str>,
    colour: bool,
) -> String {
    let path = diagnostic.file.display().to_string();
    let shown = source.zip(diagnostic.at.as_ref()).and_then(|(source, at)| {
        let span = span(source, at).filter(|_| !has_login(source, at))?;
        Some((source, span))
    });
    let title = level.clone().primary_title(diagnostic.reason.as_str());
    let words = diagnostic.nginx.as_deref().map(String::as_str);
    let words = words.map(|words| Level::NOTE.with_name(Some("nginx")).message(words));
    let groups = match (shown, diagnostic.hint.as_deref()) {
        (Some((source, span)), hint) => {
            let mut groups = vec![
                title
                    .element(
                        Snippet::source(source)
                            .path(path.as_str())
                            .annotation(AnnotationKind::Primary.span(span.clone())),
                    )
                    .elements(words),
            ];
            groups.extend(hint.map(|hint| help(hint, source, span)));
            groups
        }
        (None, hint) => vec![
            title
                .element(origin(&path, diagnostic.at.as_ref()))
                .elements(words)
                .elements(hint.map(|hint| Level::HELP.message(hint))),
        ],
    };
    let renderer = if colour {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    // the same lines whatever the terminal: a long line is cut around its caret
    renderer.term_width(DEFAULT_TERM_WIDTH).render(&groups)
}

fn origin(path: &str, at: Option<&Position>) -> Origin<'static> {
    let origin = Origin::path(path.to_owned());
    match at {
        Some(at) => origin.line(at.line).char_column(at.column),
        None => origin,
    }
}

/// The bytes to underline, at least one character; `None` where the text is not the one that was
/// parsed.
/// Whether the line has a URL with a user's name, and so perhaps a password, that no log may keep.
fn has_login(source: &str, at: &Position) -> bool {
    let line = source.lines().nth(at.line.saturating_sub(1));
    let urls = line.unwrap_or_default().split("://").skip(1);
    urls.filter_map(|rest| rest.split(char::is_whitespace).next())
        .any(|rest| rest.contains('@'))
}

fn span(source: &str, at: &Position) -> Option<Range<usize>> {
    let end = at.offset.checked_add(at.length)?;
    let written = source.get(at.offset..end)?;
    // a scalar of several lines is underlined in its first
    let first = written.lines().next().map_or(0, str::len);
    Some(at.offset..at.offset + first)
}

/// The hint; where it is a corrected spelling, with the line as it would be.
fn help<'a>(hint: &'a str, source: &'a str, span: Range<usize>) -> Group<'a> {
    let title = Level::HELP.secondary_title(hint);
    let suggestion = hint
        .strip_prefix("did you mean `")
        .and_then(|rest| rest.strip_suffix("`?"));
    let written = source.get(span.clone()).unwrap_or_default();
    match suggestion {
        Some(suggestion) if !written.is_empty() => {
            let replacement = match written.chars().next() {
                Some(quote @ ('"' | '\'')) => format!("{quote}{suggestion}{quote}"),
                _ => suggestion.to_owned(),
            };
            title.element(Snippet::source(source).patch(Patch::new(span, replacement)))
        }
        _ => Group::with_title(title),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::vhost::TlsMode;

    fn drawn(text: &str) -> String {
        let app = "hello".parse().unwrap();
        let file = Path::new("/etc/vhostd/vhosts.d/hello.yml");
        let roots = [PathBuf::from("/srv")];
        let errors = crate::vhost::parse::parse(&app, file, text, &roots, &TlsMode::Auto.into())
            .unwrap_err();
        let drawn: Vec<String> = errors
            .iter()
            .map(|error| render(error, Some(text), false))
            .collect();
        drawn.join("\n\n")
    }

    #[test]
    fn a_misspelt_key_is_drawn_with_the_line_as_it_should_be() {
        let text = "server_name: hello.example.com\nroot: /srv/hello\nproxy_pass_ulr: http://127.0.0.1:8000\n";
        assert_eq!(
            drawn(text),
            "\
error: unknown key `proxy_pass_ulr`
 --> /etc/vhostd/vhosts.d/hello.yml:3:1
  |
3 | proxy_pass_ulr: http://127.0.0.1:8000
  | ^^^^^^^^^^^^^^
  |
help: did you mean `proxy_pass_url`?
  |
3 - proxy_pass_ulr: http://127.0.0.1:8000
3 + proxy_pass_url: http://127.0.0.1:8000
  |"
        );
    }

    #[test]
    fn a_quoted_scalar_keeps_its_quotes_in_the_suggestion() {
        let text = "server_name: ü.example\nproxy_pass_url: \"127.0.0.1:8000\"\n";
        assert_eq!(
            drawn(text),
            "\
error: `127.0.0.1:8000`: http:// or https:// is missing
 --> /etc/vhostd/vhosts.d/hello.yml:2:17
  |
2 | proxy_pass_url: \"127.0.0.1:8000\"
  |                 ^^^^^^^^^^^^^^^^
  |
help: did you mean `http://127.0.0.1:8000`?
  |
2 | proxy_pass_url: \"http://127.0.0.1:8000\"
  |                  +++++++"
        );
    }

    #[test]
    fn every_error_of_a_file_is_drawn_and_an_empty_file_has_a_place() {
        let text = "server_name: \"ümlaut bad\"\nroot: ''\nheaders: x\n";
        assert_eq!(drawn(text).matches("error: ").count(), 3);
        assert!(
            drawn("")
                .starts_with("error: the file is empty\n --> /etc/vhostd/vhosts.d/hello.yml:1:1\n")
        );
    }

    #[test]
    fn a_long_line_is_cut_around_the_caret() {
        let text = format!(
            "server_name: [{}12]\nroot: /srv/x\n",
            "aaaaaaaa.example, ".repeat(80)
        );
        let last = drawn(&text);
        assert!(
            last.lines().all(|line| line.chars().count() < 160),
            "{last}"
        );
    }

    #[test]
    fn without_the_text_or_with_another_one_the_place_is_named() {
        let diagnostic = Diagnostic::new("/x/a.yml", "a symbolic link is not read").hint("copy it");
        let alone = "error: a symbolic link is not read\n--> /x/a.yml\n = help: copy it";
        assert_eq!(render(&diagnostic, None, false), alone);
        let at = Position {
            line: 3,
            column: 4,
            offset: 900,
            length: 3,
        };
        let drawn = render(&diagnostic.at(at), Some("short"), false);
        assert!(drawn.contains("--> /x/a.yml:3:4"), "{drawn}");
        // an offset inside of a character
        let diagnostic = Diagnostic::new("a", "x").at(Position { offset: 1, ..at });
        assert!(render(&diagnostic, Some("ü"), false).contains("a:3:4"));
    }

    #[test]
    fn colours_are_there_only_when_asked_for() {
        let warning = Diagnostic::new("/x/a.yml", "/srv/a does not exist yet");
        assert!(render(&warning, None, true).contains('\u{1b}'));
        let plain = render_warning(&warning, None, false);
        assert!(plain.starts_with("warning: /srv/a") && !plain.contains('\u{1b}'));
    }
}
