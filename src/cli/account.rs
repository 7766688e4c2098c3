//! `vhostd account show`, `roll-over`

mod roll_over; // `vhostd account roll-over`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Exit, output, runtime};
use crate::certificate::Issuer;
use crate::certificate::account::AccountKey;
use crate::certificate::advice::{Domains, caa_records, domains};
use crate::certificate::order::AcmeClient;
use crate::settings::Settings;
use crate::status::StatusRecord;

#[derive(Args, Debug)]
pub(super) struct Account {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print who we are at each CA, and the CAA records that let nobody else issue
    Show(Form),
    /// Give the account another key; its URL, and so the CAA records, stay
    RollOver(roll_over::RollOver),
}

#[derive(Args, Clone, Copy, Debug)]
struct Form {
    /// Print data for programs
    #[arg(long)]
    json: bool,
}

/// The account at one CA, as `--json` shows it.
#[derive(Serialize)]
struct Shown {
    directory: String,
    /// Null until the first order.
    url: Option<String>,
    email: Option<String>,
    thumbprint: String,
    key_file: PathBuf,
    /// The CA's names in CAA records; null where it did not answer.
    caa_identities: Option<Vec<String>>,
    /// Lines of a zone file.
    caa_records: Vec<String>,
    error: Option<String>,
}

impl Account {
    pub(super) fn run(self, settings: Settings) -> Exit {
        match self.verb {
            Verb::Show(form) => show(form, &settings),
            Verb::RollOver(roll_over) => roll_over.run(settings),
        }
    }
}

fn show(form: Form, settings: &Settings) -> Exit {
    let Some(runtime) = runtime() else {
        return Exit::Failed;
    };
    let shown = match shown(settings, &runtime) {
        Ok(shown) => shown,
        Err(error) => {
            output::error(&format!("failed to {error}"));
            output::hint(Some("run it as root"));
            return Exit::Failed;
        }
    };
    if form.json {
        output::json(&serde_json::json!({ "accounts": shown }));
        return Exit::Done;
    }
    for account in &shown {
        describe(account);
    }
    if shown.iter().any(|account| !account.caa_records.is_empty()) {
        let several = match shown.len() {
            1 => "",
            _ => ", every one of a domain together",
        };
        output::hint(Some(&format!(
            "with these CAA records{several} no other account can get certificates for these domains; names below are included"
        )));
    }
    Exit::Done
}

fn shown(
    settings: &Settings,
    runtime: &tokio::runtime::Runtime,
) -> Result<Vec<Shown>, Box<dyn std::error::Error>> {
    let wanted = StatusRecord::read(&settings.state_dir).map(|record| record.wanted);
    let wanted = wanted.unwrap_or_default();
    let of_acme = wanted.iter().filter(|wanted| wanted.issuer == Issuer::Acme);
    let domains = domains(of_acme);
    let mut all = Vec::new();
    for client in AcmeClient::all(settings)? {
        let key = AccountKey::open(&settings.state_dir, client.directory())?;
        let account = key.registration()?;
        let identities = runtime.block_on(client.caa_identities());
        let url = account.as_ref().map(|account| account.url.clone());
        all.push(Shown {
            directory: client.directory().to_owned(),
            caa_records: records(&domains, identities.as_ref().ok(), url.as_deref()),
            url,
            email: account.and_then(|account| account.email),
            thumbprint: key.thumbprint().to_owned(),
            key_file: key.path().to_path_buf(),
            error: identities.as_ref().err().map(ToString::to_string),
            caa_identities: identities.ok(),
        });
    }
    Ok(all)
}

fn records(domains: &Domains, identities: Option<&Vec<String>>, url: Option<&str>) -> Vec<String> {
    // of several names, one is enough
    let identity = identities.and_then(|identities| identities.first());
    let records = identity
        .zip(url)
        .and_then(|(identity, url)| caa_records(domains, identity, url));
    records.unwrap_or_default()
}

/// On standard error, beside the records.
fn describe(account: &Shown) {
    output::note(&output::strong(&account.directory));
    let url = account.url.as_deref();
    output::note(&format!(
        "  account      {}",
        url.unwrap_or("none yet: it is made with the first order")
    ));
    output::note(&format!(
        "  contact      {}",
        account.email.as_deref().unwrap_or("none")
    ));
    output::note(&format!("  thumbprint   {}", account.thumbprint));
    output::note(&format!("  key          {}", account.key_file.display()));
    let caa = match (&account.caa_identities, &account.error) {
        (Some(identities), _) if identities.is_empty() => {
            "the CA does not say its name in CAA records".to_owned()
        }
        (Some(identities), _) => identities.join(", "),
        (None, error) => format!("failed to {}", error.as_deref().unwrap_or("ask")),
    };
    output::note(&format!("  in CAA       {caa}"));
    for record in &account.caa_records {
        output::line(record);
    }
}
