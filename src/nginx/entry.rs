//! R: where the one line is, or goes, by which nginx reads our files: behind the hand-written sites, so that the
//! first of them stays the default server of its socket.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::HostNginx;
use super::footprint::{Footprint, Roots};
use super::included::IncludedFiles;
use super::pattern::matches;
use super::syntax::{self, Directive};

impl HostNginx {
    /// The files that nginx reads beside ours, as they are now.
    pub fn included_files(&self) -> IncludedFiles {
        IncludedFiles::of(&self.footprint())
    }

    /// The file that has the line which includes ours, or should have it: an existing line stays where it
    /// is, the settings name one, or it is put where nginx reads it last.
    pub fn include_file(&self) -> PathBuf {
        let leads = |path: &Path| path.canonicalize().ok();
        let entry = self.footprint().entry;
        let named = self.include.clone();
        match (entry, named) {
            (Some(entry), Some(named)) if leads(&entry) == leads(&named) => named,
            (Some(entry), _) => entry,
            (None, Some(named)) => named,
            (None, None) => place(&self.config, &self.main_text(), |path| path.is_dir()),
        }
    }

    /// The files in which a line of ours may be, also where nginx does not read it.
    pub fn include_files(&self) -> BTreeSet<PathBuf> {
        let known = places(&self.config, &self.main_text()).into_iter();
        known
            .chain([self.include_file()])
            .chain(self.include.clone())
            .collect()
    }

    pub(super) fn footprint(&self) -> Footprint {
        Footprint::read(Roots {
            main: &self.config,
            prefix: &self.built.prefix,
            ours: &self.state_dir,
        })
    }

    /// What cannot be read says nothing: nginx will.
    fn main_text(&self) -> Vec<u8> {
        fs::read(&self.config).unwrap_or_default()
    }
}

/// What Debian's main file reads last, and what every packaged one reads: a directory's name, and our
/// file in it.
const LAST: (&str, &str) = ("sites-enabled", "zz-vhostd.conf");
const OTHERWISE: (&str, &str) = ("conf.d", "vhostd.conf");

/// The file for the line, by the text of the main file.
fn place(main: &Path, text: &[u8], is_directory: impl Fn(&Path) -> bool) -> PathBuf {
    let read = reads(main, text);
    let last = read.last().cloned().flatten();
    let last = last.and_then(|pattern| in_directory(&pattern, LAST));
    last.filter(|file| file.parent().is_some_and(is_directory))
        .unwrap_or_else(|| otherwise(main, &read))
}

/// The files that [`place`] chooses from.
fn places(main: &Path, text: &[u8]) -> BTreeSet<PathBuf> {
    let read = reads(main, text);
    let patterns = read.iter().flatten();
    let sites = patterns.filter_map(|pattern| in_directory(pattern, LAST));
    sites.chain([otherwise(main, &read)]).collect()
}

fn otherwise(main: &Path, read: &[Option<PathBuf>]) -> PathBuf {
    let mut patterns = read.iter().flatten();
    let known = patterns.find_map(|pattern| in_directory(pattern, OTHERWISE));
    let (directory, name) = OTHERWISE;
    known.unwrap_or_else(|| main.with_file_name(directory).join(name))
}

/// What of `http { }` may have servers, in nginx's order: the pattern of an `include`, absolute, or
/// `None` for a `server`.
fn reads(main: &Path, text: &[u8]) -> Vec<Option<PathBuf>> {
    let directives = syntax::parse(text).unwrap_or_default();
    let http = directives.iter().filter(|it| it.name == "http");
    http.flat_map(Directive::children)
        .filter_map(|directive| match directive.name.as_str() {
            "include" => {
                let pattern = directive.args.first().map_or("", String::as_str);
                Some(Some(main.with_file_name("").join(pattern)))
            }
            "server" => Some(None),
            _ => None,
        })
        .collect()
}

/// The file in the directory of `pattern`, where that has the name, and the pattern reads the file.
fn in_directory(pattern: &Path, (directory, name): (&str, &str)) -> Option<PathBuf> {
    let file = pattern.with_file_name(name);
    let named = file.parent()?.file_name()? == directory;
    let (pattern, path) = (pattern.to_string_lossy(), file.to_string_lossy());
    (named && matches(pattern.as_bytes(), path.as_bytes())).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_goes_into_sites_enabled_where_that_is_read_last_and_else_into_conf_d() {
        let debian = "http { include mime.types; include /etc/nginx/conf.d/*.conf; \
                      include /etc/nginx/sites-enabled/*; }";
        let (sites, conf) = (
            "/etc/nginx/sites-enabled/zz-vhostd.conf",
            "/etc/nginx/conf.d/vhostd.conf",
        );
        for (text, there, expected) in [
            (debian, true, sites),
            (debian, false, conf),
            (
                "http { include conf.d/*.conf; include sites-enabled/*.conf; gzip on; }",
                true,
                sites,
            ),
            ("http { include conf.d/*.conf; }", true, conf),
            (
                "http { include sites-enabled/*; include conf.d/*.conf; }",
                true,
                conf,
            ),
            ("http { include sites-enabled/*.vhost; }", true, conf),
            (
                "http { include sites-enabled/*; server { listen 80; } }",
                true,
                conf,
            ),
            (
                "http { include sites-enabled/*; } stream { include s/*; }",
                true,
                sites,
            ),
            ("not nginx's {", true, conf),
        ] {
            let main = Path::new("/etc/nginx/nginx.conf");
            let place = place(main, text.as_bytes(), |_| there);
            assert_eq!(place, Path::new(expected), "{text}");
        }
    }

    #[test]
    fn a_main_file_that_is_a_link_to_elsewhere_is_read_for_the_directories_that_it_names() {
        let text =
            b"http { include /etc/nginx/conf.d/*.conf; include /etc/nginx/sites-enabled/*; }";
        let main = Path::new("/srv/config/nginx.conf");
        let sites = Path::new("/etc/nginx/sites-enabled/zz-vhostd.conf");
        assert_eq!(place(main, text, |_| true), sites);
        let conf = Path::new("/etc/nginx/conf.d/vhostd.conf");
        assert_eq!(place(main, text, |_| false), conf);
        assert_eq!(places(main, text), [sites.into(), conf.into()].into());
    }
}
