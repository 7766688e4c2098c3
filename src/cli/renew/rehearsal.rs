//! `vhostd renew --dry-run`: orders from the CA's staging area, which install nothing.

use crate::atomic_file;
use crate::certificate::Issuer;
use crate::certificate::renew::Obtained;
use crate::cli::stop::until_stopped;
use crate::cli::{Exit, output};
use crate::clock;
use crate::control::{RenewalResult, Renewed, RenewedCertificate};
use crate::obtain::{Obtaining, Selection};
use crate::settings::Settings;
use crate::status::StatusRecord;

/// Of what is served, or what `names` says of it. Asks no daemon: nothing of what that has is
/// touched.
pub(super) fn rehearse(
    names: &[String],
    settings: &Settings,
    runtime: &tokio::runtime::Runtime,
) -> Result<Renewed, Exit> {
    let Some(directory) = settings.acme.staging_directory() else {
        let ca = &settings.acme.directory;
        output::error(&format!("no staging area of {ca} is known"));
        output::hint(Some("set `acme.staging` to its directory"));
        return Err(Exit::Usage);
    };
    let record = StatusRecord::read(&settings.state_dir);
    let (wanted, vhosts) = record.map_or_else(Default::default, |record| {
        let vhosts = record.certificates_of_vhosts();
        (record.wanted, vhosts)
    });
    let selection = Selection::new(names, true, &wanted, &vhosts).map_err(|name| {
        output::error(&format!("there is no vhost or certificate `{name}`"));
        Exit::Usage
    })?;
    let mut wanted = selection.of(&wanted);
    wanted.retain(|wanted| wanted.issuer == Issuer::Acme);
    // a dot-file, which the next run would remove
    let scratch = settings.state_dir.join("rehearsal");
    let scratch =
        atomic_file::temporary_beside(&scratch).map_err(|error| output::failed(&error))?;
    let obtaining = Obtaining::rehearsal(settings, directory, &scratch, clock::system());
    let ended = obtaining.map(|obtaining| {
        let ended = until_stopped(runtime, obtaining.rehearse(&wanted))?.into_iter();
        let with_warnings = ended.map(|(name, obtained)| {
            let warnings = obtaining.warnings(&name);
            (name, obtained, warnings)
        });
        Ok(with_warnings.collect::<Vec<_>>())
    });
    atomic_file::remove(&scratch).map_err(|error| output::failed(&error))?;
    let ended = ended.map_err(|error| output::failed(&error))??;
    let certificates = ended
        .into_iter()
        .map(|(name, obtained, warnings)| RenewedCertificate {
            name: name.to_string(),
            result: match &obtained {
                Obtained::Stored(_) => RenewalResult::Rehearsed,
                _ => RenewalResult::Failed,
            },
            not_after: None,
            missing_identifiers: Vec::new(),
            error: match obtained {
                Obtained::Failed { error, .. } => Some(error),
                _ => None,
            },
            next: None,
            limit: None,
            warnings,
            directory: Some(directory.to_owned()),
        });
    Ok(Renewed {
        certificates: certificates.collect(),
    })
}
