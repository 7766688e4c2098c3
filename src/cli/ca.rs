//! `vhostd ca show`, `install`, `uninstall`, `replace`

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use super::renew::{self, Renew};
use super::{Exit, open, output};
use crate::certificate::Issuer;
use crate::certificate::internal::{InternalCa, InternalError, Root};
use crate::clock;
use crate::control::{RenewalResult, Renewed};
use crate::settings::Settings;
use crate::status::StatusRecord;
use crate::trust_store::{Changes, TrustError, TrustStore};

#[derive(Args, Debug)]
pub(super) struct Ca {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print the roots to trust, PEM, and what they may speak for
    Show(Form),
    /// Make this system trust them
    Install(Form),
    /// Make this system trust them no more
    Uninstall(Form),
    /// Take every root out of use, with its key, and make a new one for the names of today
    Replace(Form),
}

#[derive(Args, Clone, Copy, Debug)]
struct Form {
    /// Print data for programs
    #[arg(long)]
    json: bool,
}

/// Why a verb failed, and the next step.
#[derive(Debug, Serialize)]
struct Failure {
    error: String,
    hint: Option<String>,
}

/// A root, as `--json` shows it.
#[derive(Serialize)]
struct Shown {
    name: String,
    /// As browsers and OpenSSL write it.
    sha256: String,
    not_before: Option<String>,
    not_after: Option<String>,
    /// Null: every name.
    permits: Option<Vec<String>>,
    path: PathBuf,
    /// In this system's trust store; null where that is not known.
    installed: Option<bool>,
    pem: String,
}

/// What `install` and `uninstall` show.
#[derive(Serialize)]
struct Changed<'a> {
    store: &'a PathBuf,
    added: &'a [PathBuf],
    removed: &'a [PathBuf],
    foreign: &'a [PathBuf],
}

#[derive(Serialize)]
struct Replaced<'a> {
    root: Shown,
    retired: Vec<&'a str>,
    certificates: &'a Renewed,
}

impl Ca {
    pub(super) fn run(self, settings: Settings) -> Exit {
        let (form, ended) = match self.verb {
            Verb::Show(form) => (form, show(form, &settings)),
            Verb::Install(form) => (form, install(form, &settings)),
            Verb::Uninstall(form) => (form, uninstall(form, &settings)),
            Verb::Replace(form) => return replace(form, settings),
        };
        match ended {
            Ok(()) => Exit::Done,
            Err(failure) => failure.told(form),
        }
    }
}

fn show(form: Form, settings: &Settings) -> Result<(), Failure> {
    let roots = roots(&InternalCa::new(&settings.state_dir))?;
    let store = TrustStore::of_this_system().ok();
    if form.json {
        let roots: Vec<_> = roots
            .iter()
            .map(|it| Shown::of(it, store.as_ref()))
            .collect();
        output::json(&serde_json::json!({ "roots": roots }));
        return Ok(());
    }
    for root in &roots {
        output::data(&root.pem);
        describe(root, store.as_ref());
    }
    Ok(())
}

fn install(form: Form, settings: &Settings) -> Result<(), Failure> {
    only_root("install")?;
    let ca = InternalCa::new(&settings.state_dir);
    let now = clock::system()();
    let (current, mut former): (Vec<_>, Vec<_>) = roots(&ca)?
        .into_iter()
        .partition(|root| now <= root.validity.not_after);
    former.extend(ca.retired()?);
    let store = TrustStore::of_this_system()?;
    let changes = store.install(&current, &former)?;
    if told(form, &store, &changes) {
        return Ok(());
    }
    for root in &current {
        let ends = day(root.validity.not_after);
        output::success(&format!(
            "this system trusts {} until {ends}, for {}",
            root.name,
            scope(root)
        ));
    }
    output::hint(Some(
        "Firefox and Java have stores of their own; programs that run already may have to be restarted",
    ));
    Ok(())
}

fn uninstall(form: Form, settings: &Settings) -> Result<(), Failure> {
    only_root("uninstall")?;
    let ca = InternalCa::new(&settings.state_dir);
    let mut all = ca.roots()?;
    all.extend(ca.retired()?);
    let store = TrustStore::of_this_system()?;
    let changes = store.uninstall(&all)?;
    if !told(form, &store, &changes) {
        output::success("this system trusts no root of vhostd's CA");
    }
    Ok(())
}

fn replace(form: Form, settings: Settings) -> Exit {
    let installation = match open(settings.clone()) {
        Ok(installation) => installation,
        Err(exit) => return exit,
    };
    let wanted = StatusRecord::read(&settings.state_dir).map(|record| record.wanted);
    let internal = wanted.into_iter().flatten();
    let internal: Vec<_> = internal
        .filter(|wanted| wanted.issuer == Issuer::Internal)
        .collect();
    let identifiers: BTreeSet<_> = internal.iter().flat_map(|it| &it.identifiers).collect();
    let ca = &installation.internal_ca;
    let made = roots(ca).and_then(|retired| {
        let made = ca.replace(&identifiers, clock::system()())?;
        Ok((retired, made))
    });
    let (retired, made) = match made {
        Ok(made) => made,
        Err(failure) => return failure.told(form),
    };
    if !form.json {
        for root in &retired {
            output::line(&format!("  retired  {}", root.name));
        }
        output::line(&format!("  made     {}, for {}", made.name, scope(&made)));
    }
    let names: Vec<_> = internal
        .iter()
        .map(|wanted| wanted.name.to_string())
        .collect();
    let renewed = match names.is_empty() {
        true => Ok(Renewed::default()),
        false => Renew::forced(names).obtain(settings),
    };
    let renewed = match renewed {
        Ok(renewed) => renewed,
        Err(exit) => {
            output::hint(Some(
                "the root was replaced; run `vhostd renew --force` for certificates that it has signed",
            ));
            return exit;
        }
    };
    conclude(form, &retired, &made, &renewed)
}

fn conclude(form: Form, retired: &[Root], made: &Root, renewed: &Renewed) -> Exit {
    if form.json {
        output::json(&Replaced {
            root: Shown::of(made, TrustStore::of_this_system().ok().as_ref()),
            retired: retired.iter().map(|root| root.name.as_str()).collect(),
            certificates: renewed,
        });
    } else {
        if !renewed.certificates.is_empty() {
            renew::say(renewed);
        }
        output::hint(Some(
            "whoever trusted the former root has to trust the new one: `vhostd ca install` here, `vhostd ca show` for elsewhere",
        ));
    }
    let mut certificates = renewed.certificates.iter();
    match certificates.any(|one| one.result == RenewalResult::Failed) {
        true => Exit::CertificateMissing,
        false => Exit::Done,
    }
}

/// At least one.
fn roots(ca: &InternalCa) -> Result<Vec<Root>, Failure> {
    let roots = ca.roots()?;
    match roots.is_empty() {
        false => Ok(roots),
        true => Err(Failure {
            error: "there is no internal CA yet".into(),
            hint: Some("it is made with the first vhost that has `tls: internal`".into()),
        }),
    }
}

fn only_root(verb: &str) -> Result<(), Failure> {
    match nix::unistd::geteuid().is_root() {
        true => Ok(()),
        false => Err(Failure {
            error: "failed to change this system's trust store: only root may".into(),
            hint: Some(format!("run `sudo vhostd ca {verb}`")),
        }),
    }
}

/// Whether that is all that is to be said.
fn told(form: Form, store: &TrustStore, changes: &Changes) -> bool {
    let Changes {
        added,
        removed,
        foreign,
    } = changes;
    if form.json {
        output::json(&Changed {
            store: &store.directory,
            added,
            removed,
            foreign,
        });
        return true;
    }
    for path in added {
        output::line(&format!("  added    {}", path.display()));
    }
    for path in removed {
        output::line(&format!("  removed  {}", path.display()));
    }
    for path in foreign {
        let path = path.display();
        output::warning(&format!(
            "{path} stays: it holds something else than our root"
        ));
    }
    false
}

/// On standard error, beside the PEM.
fn describe(root: &Root, store: Option<&TrustStore>) {
    let trust = match store.map(|store| store.holds(root)) {
        Some(true) => "trusts it",
        Some(false) => "does not trust it: `vhostd ca install`",
        None => "has no trust store that vhostd knows",
    };
    let Root { name, path, .. } = root;
    output::note(&output::strong(name));
    output::note(&format!("  file         {}", path.display()));
    output::note(&format!("  sha256       {}", colons(&root.fingerprint)));
    output::note(&format!(
        "  valid        {} to {}",
        day(root.validity.not_before),
        day(root.validity.not_after)
    ));
    let scope = match &root.scope {
        Some(scope) => scope.subtrees().join(", "),
        None => scope(root),
    };
    output::note(&format!("  speaks for   {scope}"));
    output::note(&format!("  this system  {trust}"));
}

fn scope(root: &Root) -> String {
    match &root.scope {
        Some(scope) => scope.summary(),
        None => "every name (it is older than name constraints: `vhostd ca replace`)".to_owned(),
    }
}

impl Shown {
    fn of(root: &Root, store: Option<&TrustStore>) -> Self {
        let words = |at: OffsetDateTime| at.format(&Rfc3339).ok();
        Self {
            name: root.name.clone(),
            sha256: colons(&root.fingerprint),
            not_before: words(root.validity.not_before),
            not_after: words(root.validity.not_after),
            permits: root.scope.as_ref().map(|scope| scope.subtrees()),
            path: root.path.clone(),
            installed: store.map(|store| store.holds(root)),
            pem: root.pem.clone(),
        }
    }
}

impl Failure {
    fn told(self, form: Form) -> Exit {
        if form.json {
            output::json(&self);
        } else {
            output::error(&self.error);
            output::hint(self.hint.as_deref());
        }
        Exit::Failed
    }
}

impl From<InternalError> for Failure {
    fn from(error: InternalError) -> Self {
        let denied = matches!(
            &error,
            InternalError::Read { source, .. } if source.kind() == ErrorKind::PermissionDenied
        );
        Self {
            error: format!("failed to {error}"),
            hint: denied.then(|| "run it as root".into()),
        }
    }
}

impl From<TrustError> for Failure {
    fn from(error: TrustError) -> Self {
        let hint = match &error {
            TrustError::Command(_) | TrustError::Update { .. } => {
                "mend what it says, then run the command again"
            }
            TrustError::NoStore => {
                "on Debian, `apt install ca-certificates`; elsewhere, put what `vhostd ca show` prints where your system wants it"
            }
            TrustError::Read { .. } | TrustError::Write(_) => {
                "mend that, then run the command again"
            }
        };
        Self {
            error: format!("failed to {error}"),
            hint: Some(hint.into()),
        }
    }
}

/// `AB:CD:…`
fn colons(hex: &str) -> String {
    let bytes = hex.as_bytes().chunks(2);
    let pairs = bytes.map(|pair| String::from_utf8_lossy(pair).to_uppercase());
    pairs.collect::<Vec<_>>().join(":")
}

fn day(at: OffsetDateTime) -> String {
    at.format(&format_description!("[year]-[month]-[day]"))
        .unwrap_or_default()
}
