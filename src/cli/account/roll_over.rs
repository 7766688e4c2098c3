//! `vhostd account roll-over`: an account gets another key.
//!
//! nginx answers challenges for one key by itself, so it is told to look for files first before the key
//! is changed, and to answer for the new one by itself afterwards. Killed at any moment, what is on disk
//! works on, and the next run finishes it.

use clap::Args;
use serde::Serialize;

use crate::certificate::order::AcmeClient;
use crate::cli::{Exit, open, output, reload, runtime};
use crate::generation::manifest::Reason;
use crate::reconcile;
use crate::settings::Settings;

#[derive(Args, Debug)]
pub(in crate::cli) struct RollOver {
    /// The CA's host or directory; default: all of `acme.directory`
    #[arg(value_name = "CA")]
    ca: Option<String>,
    /// Print data for programs
    #[arg(long)]
    json: bool,
}

/// What became of one account.
#[derive(Serialize)]
struct Rolled {
    directory: String,
    /// Of the key that it has now.
    thumbprint: Option<String>,
    error: Option<String>,
}

impl RollOver {
    pub(in crate::cli) fn run(self, settings: Settings) -> Exit {
        let Some(runtime) = runtime() else {
            return Exit::Failed;
        };
        let clients = match AcmeClient::all(&settings) {
            Ok(clients) => clients,
            Err(error) => {
                output::error(&format!("failed to {error}"));
                output::hint(Some("run it as root"));
                return Exit::Failed;
            }
        };
        let chosen: Vec<_> = clients
            .iter()
            .enumerate()
            .filter(|(_, client)| self.is_meant(client.directory()))
            .collect();
        if chosen.is_empty() {
            let ca = self.ca.as_deref().unwrap_or_default();
            output::error(&format!("`{ca}` is no CA of `acme.directory`"));
            return Exit::Usage;
        }
        let mut rolled = Vec::new();
        for (nth, client) in chosen {
            let changed = match nth {
                0 => of_first(&settings, client, &runtime),
                _ => of_fallback(client, &runtime),
            };
            let key = client.key().ok();
            rolled.push(Rolled {
                directory: client.directory().to_owned(),
                thumbprint: key.map(|key| key.thumbprint().to_owned()),
                error: changed.err().map(|error| format!("failed to {error}")),
            });
        }
        self.conclude(&rolled)
    }

    fn is_meant(&self, directory: &str) -> bool {
        let host = directory.split("://").nth(1).unwrap_or_default();
        let host = host.split('/').next().unwrap_or_default();
        let meant = |ca: &str| ca == directory || ca == host || Some(ca) == host.split(':').next();
        self.ca.as_deref().is_none_or(meant)
    }

    fn conclude(&self, rolled: &[Rolled]) -> Exit {
        if self.json {
            output::json(&serde_json::json!({ "accounts": rolled }));
        }
        let failed = rolled.iter().any(|one| one.error.is_some());
        for one in rolled.iter().filter(|_| !self.json) {
            match &one.error {
                Some(error) => output::error(&format!("{}: {error}", one.directory)),
                None => output::success(&format!(
                    "the account at {} has another key; keep a copy of its file",
                    one.directory
                )),
            }
        }
        if failed && !self.json {
            output::hint(Some(
                "certificates are renewed as before; run the command again to finish",
            ));
        }
        match failed {
            true => Exit::Failed,
            false => Exit::Done,
        }
    }
}

type Failure = Box<dyn std::error::Error>;

/// nginx answers by itself for this one.
fn of_first(
    settings: &Settings,
    client: &AcmeClient,
    runtime: &tokio::runtime::Runtime,
) -> Result<(), Failure> {
    if !client.key()?.has_former() {
        prepare(client, runtime)?;
        // nginx looks for files first, from now on
        serve(settings)?;
        runtime.block_on(client.change_key())?;
    }
    // nginx answers for the new key by itself, and only then there are no files any more
    serve(settings)?;
    client.key()?.settle()?;
    serve(settings)
}

/// Its challenges are answered by files in any case.
fn of_fallback(client: &AcmeClient, runtime: &tokio::runtime::Runtime) -> Result<(), Failure> {
    if !client.key()?.has_former() {
        prepare(client, runtime)?;
        runtime.block_on(client.change_key())?;
    }
    Ok(client.key()?.settle()?)
}

/// Before anything is written the CA has to answer, and to offer such a change.
fn prepare(client: &AcmeClient, runtime: &tokio::runtime::Runtime) -> Result<(), Failure> {
    if !runtime.block_on(client.can_change_key())? {
        let directory = client.directory();
        return Err(format!("change the account's key: {directory} offers no such change").into());
    }
    Ok(client.key()?.prepare_successor()?)
}

/// The vhosts that serve, rendered for the account as it is now. Under the lock that the daemon takes,
/// too; what it finds afterwards is what it would have made.
fn serve(settings: &Settings) -> Result<(), Failure> {
    let installation = open(settings.clone()).map_err(|_| "open the state directory")?;
    let request = reload::request(Reason::Certificate);
    let report = reconcile::refresh(&installation, &request, &mut |_| {})?.report;
    // an nginx that is down reads it when it starts
    let served = report.succeeded() || report.is_on_disk() && !report.nginx_running;
    if served && !report.nginx_upgrading {
        return Ok(());
    }
    let why = report.error.as_deref();
    let why = why.unwrap_or("nginx did not take it, or is being upgraded");
    Err(format!("let nginx answer for both keys: {why}").into())
}
