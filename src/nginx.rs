//! X: the only room that runs or signals nginx.
//!
//! Four methods, because four things can be asked of it: would you accept this by itself, and as a
//! part of the whole; read it again; and who answers. None of them trusts an exit status where the effect can be observed:
//! `nginx -t` and the signal both say yes while the old configuration keeps serving.

mod built_in; // P what `nginx -V` tells
pub mod candidate; // X a child nginx that reads a candidate where the active generation is read

mod certificate_trial; // X what nginx says of certificates, before they are stored
pub mod dump; // P `nginx -T` → what the hand-written sites use
mod entry; // R where the one line is, or goes
pub mod error_log; // R what nginx wrote since a moment
pub mod features; // X what this nginx can do, tried out
mod footprint; // R what a test would create
pub mod included; // R the files that nginx reads beside ours, and whether one changed
pub mod lone_block; // X what nginx says of one server block
pub mod names_hash; // P how large nginx's hash of server names must be
mod namespace; // X mounts, processes and a network of a child's own
mod pattern; // P the patterns of `include`
mod private_root; // W what a sandboxed child finds of the host
pub mod probe; // N which generation answers
pub mod process; // R which process is this nginx's master
mod sandbox; // X where nginx judges what others wrote
pub mod syntax; // P nginx's own configuration language, read
mod trial; // X a few vhost files by themselves

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::command::{self, CommandError, Finished, Running};
use crate::settings::Settings;

use crate::atomic_file;
use built_in::BuiltIn;
use candidate::{CandidateError, RewrittenMain};
use certificate_trial::CertificateTrial;
use dump::Survey;
use error_log::{Mark, Verdict};
use footprint::Footprint;
use probe::{Answer, Knows, ProbeError, Prober, Question};
use process::{Identity, Master, NoMaster, Workers};
pub use sandbox::Sandbox;
pub use trial::{Trial, scratch};

/// The seam between decisions and nginx.
pub trait Nginx: Send + Sync {
    /// Whether nginx accepts the configuration with `candidate` read where `active` is now.
    fn test(&self, candidate: &Path, active: &Path, logs: &Logs) -> Result<Accepted, TestError>;
    /// Whether nginx accepts those files without any other, and without leaving a trace.
    fn try_alone(&self, trial: &Trial<'_>) -> Result<(), TestError>;
    /// Tells the verified master to read its configuration again.
    fn reload(&self, survey: &Survey) -> Result<Box<dyn Reloading>, ReloadError>;
    /// Who answers this name at this address.
    fn ask(&self, question: &Question) -> Result<Answer, ProbeError>;
}

/// What nginx opens for a generation.
#[derive(Clone, Debug, Default)]
pub struct Logs {
    pub all: Vec<PathBuf>,
    /// Those that the active generation does not have: nobody else can have them open.
    pub new: Vec<PathBuf>,
}

/// A reload that was asked for, and may or may not take.
pub trait Reloading {
    /// What the master has said since the signal.
    fn verdict(&self) -> Verdict;
    /// Whether a worker that predates the signal still accepts connections, or one of a reload that
    /// somebody else asked for before it.
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
    /// That of the settings.
    include: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    built: BuiltIn,
    prober: Prober,
    /// What belongs to us in a dump is below it.
    state_dir: PathBuf,
    /// Whether a mount namespace was refused once: it will be again.
    unprivileged: OnceLock<()>,
    sandbox: Arc<Sandbox>,
}

/// A test reads every certificate: 13 s were measured at 5,000 vhosts.
const TEST_LIMIT: Duration = Duration::from_secs(120);

impl HostNginx {
    pub fn locate(settings: &Settings, probe_secret: &str) -> Result<Self, LocateError> {
        let binary = find_binary(&settings.nginx.binary)?;
        let shown = command::run(&binary, &["-V"], Duration::from_secs(20))?.stderr;
        let config = &settings.nginx.config;
        let config = config
            .canonicalize()
            .map_err(|source| LocateError::Unreadable {
                path: config.clone(),
                source,
            })?;
        let built = BuiltIn::from_v(&shown);
        Ok(Self {
            version: built_in::version(&shown),
            sandbox: Arc::new(Sandbox::new(settings, &binary, &built.prefix)),
            built,
            binary,
            config,
            include: settings.nginx.include.clone(),
            pid_file: settings.nginx.pid_file.clone(),
            prober: Prober::new(probe_secret)?,
            state_dir: settings.state_dir.clone(),
            unprivileged: OnceLock::new(),
        })
    }

    /// Where what others wrote is tested.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// The certificate that visitors of `host` are shown at `address`, DER.
    pub fn show(
        &self,
        address: SocketAddr,
        host: &str,
        knows: Knows,
    ) -> Result<Vec<u8>, ProbeError> {
        self.prober.show(address, host, knows)
    }

    pub fn certificate_trial(&self) -> CertificateTrial {
        let sandbox = Arc::clone(&self.sandbox);
        CertificateTrial::new(self.binary.clone(), sandbox, self.built.temp_paths.clone())
    }

    /// The verified master's process id, where it runs.
    pub fn master(&self, survey: &Survey) -> Result<Master, NoMaster> {
        Master::find(&self.identity(survey))
    }

    pub fn pid_file(&self, survey: &Survey) -> PathBuf {
        let known = self.pid_file.clone().or_else(|| survey.pid.clone());
        let pid_file = known.or_else(|| self.pid_directive());
        // a relative one is below the prefix
        pid_file.map_or_else(
            || self.built.pid.clone(),
            |pid_file| self.built.prefix.join(pid_file),
        )
    }

    /// What can be known before nginx says more.
    fn pid_directive(&self) -> Option<PathBuf> {
        let text = fs::read(&self.config).ok()?;
        let directives = syntax::parse(&text).ok()?;
        let pid = directives
            .iter()
            .find(|directive| directive.name == "pid")?;
        pid.args.first().map(PathBuf::from)
    }

    fn identity(&self, survey: &Survey) -> Identity {
        Identity {
            pid_file: self.pid_file(survey),
            binary: self.binary.clone(),
            config: self.config.clone(),
            default_config: self.built.config.clone(),
            prefix: self.built.prefix.clone(),
        }
    }

    fn error_log(&self, survey: &Survey) -> Option<PathBuf> {
        let log = survey
            .error_log
            .clone()
            .unwrap_or_else(|| self.built.error_log.clone());
        log.is_absolute().then_some(log)
    }

    /// Where tests keep in memory what must not stay; empty on disk, and its user holds the lock.
    fn scratch(&self) -> PathBuf {
        scratch(&self.state_dir)
    }

    fn start_dump(&self, config: &Path) -> Result<Running, CommandError> {
        let config = config.as_os_str();
        command::start(&self.binary, &["-T".as_ref(), "-c".as_ref(), config])
    }

    fn run_trial(&self, trial: &Trial<'_>) -> Result<Finished, CandidateError> {
        let (binary, scratch) = (&self.binary, self.scratch());
        let main = trial.main_file(&scratch, &self.built.temp_paths);
        if let Some(finished) = self.sandbox.run(&scratch, &main, trial)? {
            return Ok(finished);
        }
        let traces = missing(&trial.logs.new);
        let finished = trial::run_in_directory(binary, &scratch, &main, trial);
        traces.iter().for_each(|path| remove_empty(path));
        finished
    }

    /// Also returns the directories in which nginx may have created something for real.
    fn run_test(
        &self,
        candidate: &Path,
        active: &Path,
        footprint: &Footprint,
    ) -> Result<(Finished, Vec<PathBuf>), CandidateError> {
        let touched = footprint.touched();
        // what nginx would not read says nothing when a candidate is bound over it
        let leads = |path: &Path| fs::canonicalize(path).ok();
        let is_read =
            leads(active).is_some_and(|path| leads(&self.state_dir.join("current")) == Some(path));
        if is_read && self.unprivileged.get().is_none() {
            let start = || self.start_dump(&self.config);
            let scratch = self.scratch();
            match candidate::start_in_namespace(candidate, active, &scratch, &touched, start) {
                Err(error) if error.has_no_namespace() => {
                    tracing::info!(
                        "no mount namespace here ({error}): candidates are tested through a copy of the main file"
                    );
                    let _ = self.unprivileged.set(());
                }
                started => {
                    let (running, open) = started?;
                    return Ok((running.finish(TEST_LIMIT)?, open));
                }
            }
        }
        let main = RewrittenMain::create(&self.config, &self.include_file(), candidate)?;
        let finished = self.start_dump(&main.path)?.finish(TEST_LIMIT)?;
        let open = touched.into_iter().map(|(directory, _)| directory);
        Ok((main.original_names(finished), open.collect()))
    }
}

impl Nginx for HostNginx {
    fn test(&self, candidate: &Path, active: &Path, logs: &Logs) -> Result<Accepted, TestError> {
        let mut footprint = self.footprint();
        footprint.logs.extend(logs.all.iter().cloned());
        let pid_file = self.pid_file.clone().or_else(|| footprint.pid.clone());
        let pid_file = missing(&[pid_file.unwrap_or_else(|| self.built.pid.clone())]);
        let new_logs = missing(&logs.new);
        let finished = self.run_test(candidate, active, &footprint);
        // a later `nginx -s reload` would trip over an empty one
        pid_file.iter().for_each(|path| remove_empty(path));
        let (finished, open) = finished?;
        let created = |log: &&PathBuf| open.iter().any(|directory| log.starts_with(directory));
        let created = new_logs.iter().filter(created);
        created.for_each(|path| remove_empty(path));
        if !finished.status.success() {
            return Err(refusal(&finished.stderr));
        }
        if !includes_us(&finished.stdout, &self.state_dir) {
            return Err(TestError::NotIncluded {
                config: self.config.clone(),
                include: self.include_file(),
            });
        }
        let survey = dump::survey(&finished.stdout, &self.state_dir)?;
        // nginx says the same of every socket
        let mut warnings = lines_of(&finished.stderr, "[warn]");
        warnings.sort();
        warnings.dedup();
        Ok(Accepted { survey, warnings })
    }

    fn try_alone(&self, trial: &Trial<'_>) -> Result<(), TestError> {
        let finished = self.run_trial(trial)?;
        match finished.status.success() {
            true => Ok(()),
            false => Err(refusal(&finished.stderr)),
        }
    }

    fn reload(&self, survey: &Survey) -> Result<Box<dyn Reloading>, ReloadError> {
        let master = self.master(survey)?;
        let mark = Mark::take(self.error_log(survey).as_deref());
        let workers = Workers::of(&master);
        master.hang_up().map_err(|source| ReloadError::Signal {
            pid: master.pid,
            source,
        })?;
        Ok(Box::new(Signalled {
            master,
            mark,
            workers,
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
    workers: Workers,
}

impl Reloading for Signalled {
    fn verdict(&self) -> Verdict {
        self.mark.verdict(self.master.pid)
    }

    fn old_workers_accept(&self) -> bool {
        self.workers.are_old(&self.master)
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

fn missing(paths: &[PathBuf]) -> Vec<PathBuf> {
    paths
        .iter()
        .filter(|path| !path.exists())
        .cloned()
        .collect()
}

fn remove_empty(path: &Path) {
    if fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0) {
        // what cannot be removed is no worse than what `nginx -t` by hand leaves
        let _ = atomic_file::remove(path);
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
}
