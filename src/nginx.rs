//! X: the only room that runs or signals nginx.
//!
//! Three methods, because three things can be asked of it: would you accept this, read it again,
//! and who answers. None of them trusts an exit status where the effect can be observed:
//! `nginx -t` and the signal both say yes while the old configuration keeps serving.

pub mod candidate; // X a child nginx that reads a candidate where the active generation is read
pub mod command; // X one child process, with a timeout
pub mod dump; // P `nginx -T` → what the hand-written sites use
pub mod error_log; // R what nginx wrote since a moment
pub mod features; // X what this nginx can do, tried out
mod pattern; // P the patterns of `include`
pub mod probe; // N which generation answers
pub mod process; // R which process is this nginx's master
pub mod syntax; // P nginx's own configuration language, read

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use crate::settings::NginxSettings;

use candidate::{CandidateError, RewrittenMain};
use command::{CommandError, Finished};
use dump::Survey;
use error_log::{Mark, Verdict};
use probe::{Answer, ProbeError, Prober, Question};
use process::{Identity, Master, NoMaster};

/// The seam between decisions and nginx.
pub trait Nginx: Send + Sync {
    /// Whether nginx accepts the configuration with `candidate` read where `active` is now.
    fn test(&self, candidate: &Path, active: &Path) -> Result<Accepted, TestError>;
    /// Tells the verified master to read its configuration again.
    fn reload(&self, survey: &Survey) -> Result<Box<dyn Reloading>, ReloadError>;
    /// Who answers this name at this address.
    fn ask(&self, question: &Question) -> Result<Answer, ProbeError>;
}

/// A reload that was asked for, and may or may not take.
pub trait Reloading {
    /// What the master has said since the signal.
    fn verdict(&self) -> Verdict;
    /// Whether a worker that predates the signal still accepts connections.
    fn old_workers_accept(&self) -> bool;
}

/// What a passed test tells.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The hand-written part of the configuration.
    pub survey: Survey,
    /// `[warn]` lines.
    pub warnings: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum TestError {
    /// nginx's own words, the decisive one first.
    #[error("nginx refuses the configuration: {}", messages.first().map_or("no reason given", String::as_str))]
    Refused {
        messages: Vec<String>,
        /// The file and line that nginx names.
        place: Option<(PathBuf, usize)>,
    },
    #[error("understand what nginx printed: {0}")]
    Dump(#[from] dump::DumpError),
    /// Whatever we activate, nginx would not read it.
    #[error("nginx's configuration {} does not lead to vhostd's: {} is missing, or nothing includes it", config.display(), include.display())]
    NotIncluded { config: PathBuf, include: PathBuf },
    #[error("test the configuration: {0}")]
    Unavailable(#[from] CandidateError),
}

#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error(transparent)]
    NoMaster(#[from] NoMaster),
    #[error("signal nginx's master process {pid}: {source}")]
    Signal {
        pid: i32,
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    #[error("find {} in any directory of PATH", .0.display())]
    NoBinary(PathBuf),
    #[error("ask nginx for its version: {0}")]
    Version(#[from] CommandError),
    #[error("set up the TLS client: {0}")]
    Tls(#[from] rustls::Error),
    #[error("read {}: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The nginx of this host.
#[derive(Debug)]
pub struct HostNginx {
    /// Canonical.
    pub binary: PathBuf,
    /// As nginx says it: `1.22.1`.
    pub version: String,
    /// Canonical.
    config: PathBuf,
    include: PathBuf,
    pid_file: Option<PathBuf>,
    built: BuiltIn,
    prober: Prober,
    /// What belongs to us in a dump is below it.
    state_dir: PathBuf,
    /// Whether a mount namespace was refused once: it will be again.
    unprivileged: OnceLock<()>,
}

/// Paths that `nginx -V` shows.
#[derive(Debug)]
struct BuiltIn {
    config: PathBuf,
    pid: PathBuf,
    error_log: PathBuf,
}

/// A test reads every certificate: 13 s were measured at 5,000 vhosts.
const TEST_LIMIT: Duration = Duration::from_secs(120);

impl HostNginx {
    pub fn locate(
        settings: &NginxSettings,
        state_dir: &Path,
        probe_secret: &str,
    ) -> Result<Self, LocateError> {
        let binary = find_binary(&settings.binary)?;
        let shown = command::run(&binary, &["-V"], Duration::from_secs(20))?.stderr;
        let config = settings
            .config
            .canonicalize()
            .map_err(|source| LocateError::Unreadable {
                path: settings.config.clone(),
                source,
            })?;
        Ok(Self {
            version: version(&shown),
            built: BuiltIn::from_v(&shown),
            binary,
            config,
            include: settings.include.clone(),
            pid_file: settings.pid_file.clone(),
            prober: Prober::new(probe_secret)?,
            state_dir: state_dir.to_path_buf(),
            unprivileged: OnceLock::new(),
        })
    }

    /// The verified master's process id, where it runs.
    pub fn master(&self, survey: &Survey) -> Result<Master, NoMaster> {
        Master::find(&self.identity(survey))
    }

    pub fn pid_file(&self, survey: &Survey) -> PathBuf {
        self.pid_file
            .clone()
            .or_else(|| survey.pid.clone())
            .unwrap_or_else(|| self.built.pid.clone())
    }

    /// What can be known before nginx says more.
    fn main_file_alone(&self) -> Survey {
        let text = fs::read(&self.config).unwrap_or_default();
        let directives = syntax::parse(&text).unwrap_or_default();
        let pid = directives.iter().find(|directive| directive.name == "pid");
        Survey {
            pid: pid
                .and_then(|pid| pid.args.first())
                .map(PathBuf::from)
                .filter(|path| path.is_absolute()),
            ..Survey::default()
        }
    }

    fn identity(&self, survey: &Survey) -> Identity {
        Identity {
            pid_file: self.pid_file(survey),
            binary: self.binary.clone(),
            config: self.config.clone(),
            default_config: self.built.config.clone(),
        }
    }

    fn error_log(&self, survey: &Survey) -> Option<PathBuf> {
        let log = survey
            .error_log
            .clone()
            .unwrap_or_else(|| self.built.error_log.clone());
        log.is_absolute().then_some(log)
    }

    fn dump(&self, config: &Path) -> Result<Finished, CommandError> {
        let config = config.as_os_str();
        command::run(
            &self.binary,
            &["-T".as_ref(), "-c".as_ref(), config],
            TEST_LIMIT,
        )
    }

    fn run_test(&self, candidate: &Path, active: &Path) -> Result<Finished, CandidateError> {
        if self.unprivileged.get().is_none() {
            let main = &self.config;
            match candidate::in_namespace(candidate, active, || self.dump(main)) {
                Err(error) if error.has_no_namespace() => {
                    tracing::info!(
                        "no mount namespace here ({error}): candidates are tested through a copy of the main file"
                    );
                    let _ = self.unprivileged.set(());
                }
                finished => return finished,
            }
        }
        let main = RewrittenMain::create(&self.config, &self.include, candidate)?;
        Ok(main.original_names(self.dump(&main.path)?))
    }
}

impl Nginx for HostNginx {
    fn test(&self, candidate: &Path, active: &Path) -> Result<Accepted, TestError> {
        // nginx -t creates a missing pid file, empty; a later `nginx -s reload` would trip over it
        let pid_file = self.pid_file(&self.main_file_alone());
        let had_pid_file = pid_file.exists();
        let finished = self.run_test(candidate, active)?;
        if !had_pid_file {
            remove_empty(&pid_file);
        }
        if !finished.status.success() {
            return Err(refusal(&finished.stderr));
        }
        if !includes_us(&finished.stdout, &self.state_dir) {
            return Err(TestError::NotIncluded {
                config: self.config.clone(),
                include: self.include.clone(),
            });
        }
        let survey = dump::survey(&finished.stdout, &self.state_dir)?;
        Ok(Accepted {
            survey,
            warnings: lines_of(&finished.stderr, "[warn]"),
        })
    }

    fn reload(&self, survey: &Survey) -> Result<Box<dyn Reloading>, ReloadError> {
        let master = self.master(survey)?;
        let mark = Mark::take(self.error_log(survey).as_deref());
        let before = master.accepting_workers();
        master.hang_up().map_err(|source| ReloadError::Signal {
            pid: master.pid,
            source,
        })?;
        Ok(Box::new(Signalled {
            master,
            mark,
            before,
        }))
    }

    fn ask(&self, question: &Question) -> Result<Answer, ProbeError> {
        self.prober.ask(question)
    }
}

#[derive(Debug)]
struct Signalled {
    master: Master,
    mark: Mark,
    before: Vec<i32>,
}

impl Reloading for Signalled {
    fn verdict(&self) -> Verdict {
        self.mark.verdict(self.master.pid)
    }

    fn old_workers_accept(&self) -> bool {
        let now = self.master.accepting_workers();
        self.before.iter().any(|worker| now.contains(worker))
    }
}

/// Whether the dump has an entry of ours: `current/http.conf`, or a candidate's.
fn includes_us(dump: &[u8], state_dir: &Path) -> bool {
    let header = format!("# configuration file {}/", state_dir.display());
    let mut lines = dump.split(|byte| *byte == b'\n');
    lines.any(|line| line.starts_with(header.as_bytes()) && line.ends_with(b"/http.conf:"))
}

fn find_binary(name: &Path) -> Result<PathBuf, LocateError> {
    let missing = || LocateError::NoBinary(name.to_path_buf());
    let found = if name.components().count() > 1 {
        name.to_path_buf()
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // /usr/sbin is not on a Debian user's PATH
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
            .map(|directory| directory.join(name))
            .find(|path| path.is_file())
            .ok_or_else(missing)?
    };
    found.canonicalize().map_err(|_| missing())
}

fn version(shown: &str) -> String {
    shown
        .lines()
        .find_map(|line| line.strip_prefix("nginx version: nginx/"))
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap_or("unknown")
        .to_owned()
}

impl BuiltIn {
    fn from_v(shown: &str) -> Self {
        let prefix = argument(shown, "--prefix=").unwrap_or("/usr/local/nginx");
        let path = |flag: &str, default: &str| {
            let value = argument(shown, flag).unwrap_or(default);
            Path::new(prefix).join(value)
        };
        Self {
            config: path("--conf-path=", "conf/nginx.conf"),
            pid: path("--pid-path=", "logs/nginx.pid"),
            // Debian builds with `stderr` here, which is no file
            error_log: match argument(shown, "--error-log-path=") {
                Some("stderr") => PathBuf::from("stderr"),
                _ => path("--error-log-path=", "logs/error.log"),
            },
        }
    }
}

fn argument<'a>(shown: &'a str, flag: &str) -> Option<&'a str> {
    let (_, rest) = shown.split_once(flag)?;
    rest.split_whitespace().next()
}

fn remove_empty(pid_file: &Path) {
    if fs::metadata(pid_file).is_ok_and(|metadata| metadata.len() == 0) {
        // what cannot be removed is no worse than what `nginx -t` by hand leaves
        let _ = crate::atomic_file::remove(pid_file);
    }
}

fn refusal(stderr: &str) -> TestError {
    let mut messages = lines_of(stderr, "[emerg]");
    if messages.is_empty() {
        messages = lines_of(stderr, "]");
    }
    if messages.is_empty() {
        messages = stderr.lines().map(str::to_owned).take(3).collect();
    }
    TestError::Refused {
        place: messages.first().and_then(|message| place(message)),
        messages,
    }
}

/// `nginx: [emerg] 7#7: unknown directive "x" in /path:3` → `unknown directive "x" in /path:3`; the
/// process is there only where the error log is standard error.
fn lines_of(stderr: &str, level: &str) -> Vec<String> {
    stderr
        .lines()
        .filter_map(|line| line.split_once(level).map(|(_, rest)| rest))
        .map(|rest| without_process(rest.trim()).to_owned())
        .collect()
}

fn without_process(message: &str) -> &str {
    let rest = message.split_once(": ").filter(|(process, _)| {
        let digits =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        process
            .split_once('#')
            .is_some_and(|(pid, thread)| digits(pid) && digits(thread))
    });
    rest.map_or(message, |(_, rest)| rest)
}

/// nginx ends a message about a file with ` in PATH:LINE`.
pub fn place(message: &str) -> Option<(PathBuf, usize)> {
    let (_, at) = message.rsplit_once(" in ")?;
    let (path, line) = at.trim().rsplit_once(':')?;
    Some((path.into(), line.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_carries_nginxs_words_and_the_place_it_names() {
        let stderr = "nginx: [warn] something else in /a:1\n\
             nginx: [emerg] unknown directive \"nope\" in /etc/nginx/sites-enabled/blog:7\n\
             nginx: configuration file /etc/nginx/nginx.conf test failed\n";
        let TestError::Refused { messages, place } = refusal(stderr) else {
            panic!("not refused");
        };
        assert_eq!(
            messages,
            ["unknown directive \"nope\" in /etc/nginx/sites-enabled/blog:7"]
        );
        assert_eq!(place, Some(("/etc/nginx/sites-enabled/blog".into(), 7)));
        assert_eq!(lines_of(stderr, "[warn]"), ["something else in /a:1"]);
        assert_eq!(
            lines_of("[emerg] 7#7: mkdir() failed", "[emerg]"),
            ["mkdir() failed"]
        );
    }

    #[test]
    fn debians_built_in_paths_are_read() {
        let shown = "nginx version: nginx/1.22.1 (Debian)\nconfigure arguments: --prefix=/usr/share/nginx \
             --conf-path=/etc/nginx/nginx.conf --error-log-path=stderr --pid-path=/run/nginx.pid --x";
        let built = BuiltIn::from_v(shown);
        assert_eq!(version(shown), "1.22.1");
        assert_eq!(built.pid, Path::new("/run/nginx.pid"));
        assert_eq!(built.config, Path::new("/etc/nginx/nginx.conf"));
        assert!(!built.error_log.is_absolute());
    }
}
