//! P: the output of `nginx -T` → what the hand-written configuration has.
//!
//! nginx prints every file that it read once, each behind `# configuration file PATH:`, and
//! expands no include. So the dump is walked as nginx walked the files: from the main file (the
//! first) through the includes, which tells what is inside `http { }` and what is not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::pattern::matches;
use super::syntax::{self, Directive, SyntaxError};

/// What vhostd must know about the configuration that it shares an nginx with.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Survey {
    /// The HTTP servers outside our files, in nginx's order.
    pub servers: Vec<HandWrittenServer>,
    /// How many of them nginx reads before our files: the first server of a socket is its default.
    #[serde(default)]
    pub read_first: usize,
    /// The hand-written line that includes our files: its file and line, from 1.
    #[serde(default)]
    pub include: Option<(PathBuf, usize)>,
    /// The main-level `error_log`, if it is a file; relative ones as written.
    pub error_log: Option<PathBuf>,
    /// The `pid` directive.
    pub pid: Option<PathBuf>,
    /// Arguments of `user`; empty where nothing is said.
    #[serde(default)]
    pub user: Vec<String>,
    /// The argument of the main-level `worker_shutdown_timeout`, as written.
    pub worker_shutdown_timeout: Option<String>,
    /// Arguments of `load_module`, as written.
    pub load_modules: Vec<String>,
    /// The names of all directives directly inside `http { }` and outside our files: a second
    /// `server_names_hash_bucket_size` is fatal.
    pub http_directives: BTreeSet<String>,
    /// Files that could not be read as configuration, with the reason: nothing is known of them.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// A `server { }` of the admin's.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct HandWrittenServer {
    /// Arguments of `server_name`, as written; may be regular expressions.
    pub names: Vec<String>,
    /// At least one: nginx listens on `*:80` where nothing is said.
    pub listens: Vec<HandWrittenListen>,
    pub file: PathBuf,
    /// Of the word `server`, from 1.
    pub line: usize,
}

/// A `listen` of the admin's.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct HandWrittenListen {
    pub socket: ListenSocket,
    pub default_server: bool,
    /// Before nginx 1.25.1 it holds for the whole socket.
    #[serde(default)]
    pub http2: bool,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ListenSocket {
    /// A host name, which nginx resolves when it reads the file; `localhost` is 127.0.0.1 here.
    Name {
        host: String,
        port: u16,
    },
    /// `address` is `None` for `*`, all of IPv4; all of IPv6 is `::`.
    Tcp {
        address: Option<IpAddr>,
        port: u16,
    },
    Unix(PathBuf),
}

/// Why a text is not a dump.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DumpError {
    #[error("read nginx's main file {}: {source}", file.display())]
    MainFile {
        file: PathBuf,
        #[source]
        source: SyntaxError,
    },
    #[error("find a configuration file in what nginx printed")]
    NoFile,
}

/// Reads a dump, leaving out the files below `ours`.
pub fn survey(dump: &[u8], ours: &Path) -> Result<Survey, DumpError> {
    let sections = sections(dump);
    let main = sections.first().ok_or(DumpError::NoFile)?.path.clone();
    let mut walk = Walk {
        prefix: main.parent().unwrap_or(Path::new("/")).to_path_buf(),
        ours: ours.to_path_buf(),
        files: BTreeMap::new(),
        order: sections
            .iter()
            .map(|section| section.path.clone())
            .collect(),
        survey: Survey::default(),
    };
    for section in sections
        .iter()
        .filter(|section| !section.path.starts_with(ours))
    {
        match syntax::parse(section.text) {
            Ok(directives) => {
                walk.files.insert(section.path.clone(), directives);
            }
            Err(source) if section.path == main => {
                return Err(DumpError::MainFile { file: main, source });
            }
            Err(error) => {
                let unreadable = (section.path.clone(), error.to_string());
                walk.survey.unreadable.push(unreadable);
            }
        }
    }
    walk.file(&main, Context::Main, 0);
    Ok(walk.survey)
}

struct Section<'a> {
    path: PathBuf,
    text: &'a [u8],
}

fn sections(dump: &[u8]) -> Vec<Section<'_>> {
    let mut sections: Vec<Section<'_>> = Vec::new();
    let mut start = 0;
    let mut position = 0;
    for line in dump.split_inclusive(|byte| *byte == b'\n') {
        let next = position + line.len();
        if let Some(path) = header(line) {
            if let Some(last) = sections.last_mut() {
                last.text = &dump[start..position];
            }
            sections.push(Section {
                path,
                text: &dump[next..],
            });
            start = next;
        }
        position = next;
    }
    sections
}

/// `# configuration file PATH:`
fn header(line: &[u8]) -> Option<PathBuf> {
    let text = line.strip_prefix(b"# configuration file ")?;
    let path = text.strip_suffix(b":\n")?;
    path.starts_with(b"/")
        .then(|| PathBuf::from(String::from_utf8_lossy(path).into_owned()))
}

/// Where directives stand; nothing in `events`, `stream` or `mail` concerns us.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Context {
    Http,
    Main,
}

struct Walk {
    /// Relative includes begin here: the directory of the main file.
    prefix: PathBuf,
    ours: PathBuf,
    files: BTreeMap<PathBuf, Vec<Directive>>,
    /// As nginx printed them, which is the order in which it read them.
    order: Vec<PathBuf>,
    survey: Survey,
}

impl Walk {
    fn file(&mut self, path: &Path, context: Context, depth: usize) {
        if depth > MAX_INCLUDES || path.starts_with(&self.ours) {
            return;
        }
        let Some(directives) = self.files.get(path).cloned() else {
            return;
        };
        self.directives(path, &directives, context, depth);
    }

    fn directives(&mut self, file: &Path, list: &[Directive], context: Context, depth: usize) {
        for directive in list {
            let argument = directive.args.first().map_or("", String::as_str);
            match (context, directive.name.as_str()) {
                (_, "include") => {
                    for included in self.included(argument) {
                        if included.starts_with(&self.ours) {
                            self.our_include(file, directive.line);
                        }
                        self.file(&included, context, depth + 1);
                    }
                }
                (Context::Main, "http") => {
                    self.directives(file, directive.children(), Context::Http, depth);
                }
                (Context::Main, "error_log") => {
                    let path = file_argument(argument);
                    self.survey.error_log = self.survey.error_log.take().or(path);
                }
                (Context::Main, "pid") => self.survey.pid = file_argument(argument),
                (Context::Main, "user") => self.survey.user.clone_from(&directive.args),
                (Context::Main, "worker_shutdown_timeout") => {
                    self.survey.worker_shutdown_timeout = Some(argument.to_owned());
                }
                (Context::Main, "load_module") => {
                    self.survey.load_modules.push(argument.to_owned());
                }
                (Context::Http, "server") => {
                    let server = self.server(file, directive, depth);
                    self.survey.servers.push(server);
                }
                (Context::Http, name) => {
                    self.survey.http_directives.insert(name.to_owned());
                }
                (Context::Main, _) => {}
            }
        }
    }

    fn our_include(&mut self, file: &Path, line: usize) {
        if self.survey.include.is_none() {
            self.survey.include = Some((file.to_path_buf(), line));
            self.survey.read_first = self.survey.servers.len();
        }
    }

    fn included(&self, pattern: &str) -> Vec<PathBuf> {
        let pattern = self.prefix.join(pattern);
        let pattern = pattern.to_string_lossy();
        self.order
            .iter()
            .filter(|path| matches(pattern.as_bytes(), path.to_string_lossy().as_bytes()))
            .cloned()
            .collect()
    }

    fn server(&self, file: &Path, server: &Directive, depth: usize) -> HandWrittenServer {
        let mut found = HandWrittenServer {
            names: Vec::new(),
            listens: Vec::new(),
            file: file.to_path_buf(),
            line: server.line,
        };
        self.server_directives(server.children(), &mut found, depth);
        if found.listens.is_empty() {
            found.listens.push(HandWrittenListen {
                socket: ListenSocket::Tcp {
                    address: None,
                    port: DEFAULT_PORT,
                },
                default_server: false,
                http2: false,
            });
        }
        found
    }

    fn server_directives(&self, list: &[Directive], found: &mut HandWrittenServer, depth: usize) {
        for directive in list {
            match directive.name.as_str() {
                "listen" => found.listens.extend(listen(&directive.args)),
                "server_name" => found.names.extend(directive.args.iter().cloned()),
                "include" if depth < MAX_INCLUDES => {
                    let pattern = directive.args.first().map_or("", String::as_str);
                    for path in self.included(pattern) {
                        let included = self.files.get(&path).map_or(&[][..], Vec::as_slice);
                        self.server_directives(included, found, depth + 1);
                    }
                }
                _ => {}
            }
        }
    }
}

/// A file, not `stderr`, `syslog:` or `memory:`.
fn file_argument(argument: &str) -> Option<PathBuf> {
    let is_file = !argument.is_empty()
        && argument != "stderr"
        && !argument.starts_with("syslog:")
        && !argument.starts_with("memory:");
    is_file.then(|| PathBuf::from(argument))
}

/// `None` where nginx itself would have refused it.
fn listen(args: &[String]) -> Option<HandWrittenListen> {
    let (socket, parameters) = args.split_first()?;
    Some(HandWrittenListen {
        socket: socket_of(socket)?,
        // `default` is the name of before 0.8.21, still accepted
        default_server: parameters
            .iter()
            .any(|parameter| matches!(parameter.as_str(), "default_server" | "default")),
        http2: parameters.iter().any(|parameter| parameter == "http2"),
    })
}

/// The forms of ngx_parse_url: `PORT`, `ADDRESS`, `ADDRESS:PORT`, `*:PORT`, `[V6]:PORT`, `unix:PATH`.
fn socket_of(text: &str) -> Option<ListenSocket> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Some(ListenSocket::Unix(path.into()));
    }
    if let Ok(port) = text.parse() {
        return Some(ListenSocket::Tcp {
            address: None,
            port,
        });
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (text, DEFAULT_PORT),
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    Some(match (bare, bare.parse::<IpAddr>()) {
        ("*" | "0.0.0.0", _) => ListenSocket::Tcp {
            address: None,
            port,
        },
        ("localhost", _) => ListenSocket::Tcp {
            address: Some(Ipv4Addr::LOCALHOST.into()),
            port,
        },
        (_, Ok(address)) => ListenSocket::Tcp {
            address: Some(address),
            port,
        },
        (name, Err(_)) => ListenSocket::Name {
            host: name.to_owned(),
            port,
        },
    })
}

const DEFAULT_PORT: u16 = 80;
/// nginx itself has no limit and dies of descriptors on a cycle.
const MAX_INCLUDES: usize = 32;

#[cfg(test)]
mod tests;
