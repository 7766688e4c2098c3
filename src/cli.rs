//! The commands: one verb each, thin. Hints, colours and exit statuses exist only here.

pub mod diagnostic; // P a diagnostic as rustc would draw it

mod account;
mod adopt;
mod ca;
mod check;
mod demo;
mod history;
mod hooks;
mod output; // W lines for people on a terminal, data for programs
mod reload;
mod renew;
mod rollback;
mod setup;
mod status;
mod stop; // R work that ends when the terminal or the service manager wants it to
mod verdict; // P a report → last lines and exit status

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

use crate::clock;
use crate::daemon::DaemonError;
use crate::installation::Installation;
use crate::obtain::ORDERS_AT_ONCE;
use crate::settings::Settings;

/// nginx for many small apps: drop a vhost file, and it is on HTTPS, tested, reloaded and proven
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Arguments {
    /// The settings file
    #[arg(long, value_name = "FILE", env = "VHOSTD_CONFIG", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The daemon: watch, reconcile, order and renew
    Run,
    /// Parse and resolve vhost files, without nginx
    Check(check::Check),
    /// Read everything again, test, activate, reload, verify
    Reload(reload::Reload),
    /// Renew the certificates that are due (what the timer runs)
    Renew(renew::Renew),
    /// Vhosts, the serving generation, certificates and their next renewal
    Status(status::Status),
    /// The generations that were activated
    History(history::History),
    /// Serve an earlier generation's vhosts again, with today's certificates
    Rollback(rollback::Rollback),
    /// Take certificates over from certbot, without an order
    Adopt(adopt::Adopt),
    /// Who we are at each ACME CA, and the CAA records that let nobody else issue
    Account(account::Account),
    /// The internal CA (`tls: internal`): its roots, and this system's trust in them
    Ca(ca::Ca),
    /// Who is told of changes (`hooks` in the settings): try it out
    Hooks(hooks::Hooks),
    /// A complete private instance in a temporary directory: needs no root, domain or network
    Demo(demo::Demo),
    /// Prepare this host: directories, generation 0, the include line
    Setup(setup::Setup),
}

/// The contract's exit statuses.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Exit {
    /// Done, or nothing to do.
    Done = 0,
    /// Failed, nginx is down, or rolled back; what served before still serves.
    Failed = 1,
    /// Usage or settings error.
    Usage = 2,
    /// Done, but at least one vhost is rejected.
    Rejected = 3,
    /// Done, but at least one certificate is not there yet.
    CertificateMissing = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Arguments {
    /// Logs to standard error; `VHOSTD_LOG` sets the level (`debug`) or that of a room
    /// (`vhostd::daemon=debug`). The daemon tells what it changed; a command's own words are its
    /// output, so it logs only what went wrong.
    pub fn start_tracing(&self) {
        let default = match self.command {
            Command::Run => Targets::new().with_default(LevelFilter::INFO),
            _ => Targets::new().with_default(LevelFilter::ERROR),
        };
        let asked = std::env::var("VHOSTD_LOG").ok();
        let filter = asked
            .and_then(|asked| asked.parse().ok())
            .unwrap_or(default);
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(output::is_colourful(&std::io::stderr()))
            .without_time()
            .with_target(false);
        tracing_subscriber::registry()
            .with(lines.with_filter(filter))
            .init();
    }
}

pub fn run(arguments: Arguments) -> Exit {
    let config = arguments.config.as_deref();
    if let Command::Demo(demo) = arguments.command {
        // of this host's settings, the demo wants at most nginx's place
        return demo.run(Settings::load(config).unwrap_or_default().nginx.binary);
    }
    let settings = match Settings::load(config) {
        Ok(settings) => settings,
        Err(errors) => {
            let text = std::fs::read_to_string(Settings::path(config)).ok();
            for error in &errors {
                output::diagnostic(error, text.as_deref());
            }
            return Exit::Usage;
        }
    };
    match arguments.command {
        Command::Demo(demo) => demo.run(settings.nginx.binary),
        Command::Run => daemon(config, settings),
        Command::Check(check) => check.run(&settings),
        Command::Reload(reload) => reload.run(settings),
        Command::Renew(renew) => renew.run(settings),
        Command::Status(status) => status.run(&settings),
        Command::History(history) => history.run(&settings),
        Command::Rollback(rollback) => rollback.run(settings),
        Command::Adopt(adopt) => adopt.run(settings),
        Command::Account(account) => account.run(settings),
        Command::Ca(ca) => ca.run(settings),
        Command::Hooks(hooks) => hooks.run(&settings),
        Command::Setup(setup) => setup.run(settings),
    }
}

fn daemon(config: Option<&Path>, settings: Settings) -> Exit {
    let config = config.map(Path::to_path_buf);
    let ended = runtime()
        .map(|runtime| runtime.block_on(crate::daemon::run(config, settings, clock::system())));
    match ended {
        Some(Ok(())) => Exit::Done,
        Some(Err(error)) => {
            output::error(&format!("the daemon stops: failed to {error}"));
            if let DaemonError::Open(error) = &error {
                output::hint(error.hint());
            }
            Exit::Failed
        }
        None => Exit::Failed,
    }
}

/// Each order may look up the CA's name, which takes long where no name server answers: a reconcile
/// waits behind none of them. Threads that nobody needs are not started.
const BLOCKING_THREADS: usize = ORDERS_AT_ONCE + 4;

/// One thread for the loop; what blocks goes to a few others.
fn runtime() -> Option<tokio::runtime::Runtime> {
    let built = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build();
    built
        .inspect_err(|error| output::error(&format!("failed to start: {error}")))
        .ok()
}

fn open(settings: Settings) -> Result<Installation, Exit> {
    Installation::open(settings, clock::system()()).map_err(|error| {
        output::error(&format!("failed to {error}"));
        output::hint(error.hint());
        Exit::Failed
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_blocks_next_waits_behind_no_order() {
        let runtime = runtime().unwrap();
        let (end, ended) = mpsc::channel::<()>();
        let ended = std::sync::Arc::new(std::sync::Mutex::new(ended));
        for _ in 0..ORDERS_AT_ONCE {
            let ended = ended.clone();
            runtime.spawn_blocking(move || drop(ended.lock().map(|ended| ended.recv())));
        }
        let (done, next) = mpsc::channel();
        runtime.spawn_blocking(move || done.send(()));
        let answered = next.recv_timeout(Duration::from_secs(10));
        drop(end);
        answered.unwrap();
    }
}
