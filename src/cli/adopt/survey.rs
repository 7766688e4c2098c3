//! R: lineages and vhosts → what is to be done about each lineage.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use crate::adoption::lineage::{Lineage, LineageError, Material, names};
use crate::adoption::standing::{Standing, Use, left_out, standing};
use crate::certificate::store::CertificateStore;
use crate::certificate::{CertificateInventory, Identifier};
use crate::cli::check::{candidate, given, worker};
use crate::desired::{self, Given};
use crate::installation::has_ipv6;
use crate::policy::Policy;
use crate::reconcile::intent::parse_alone;
use crate::settings::{AcmeSettings, Settings};
use crate::vhost::source;

/// What lineages are held against.
pub(super) struct Surveyor {
    uses: Vec<Use>,
    inventory: CertificateInventory,
    acme: AcmeSettings,
    state_dir: PathBuf,
    now: OffsetDateTime,
}

/// A lineage that could be read, and where it stands.
pub(super) struct Found {
    pub(super) lineage: Lineage,
    /// `None`: adopted long ago, and what certbot has is no use any more.
    pub(super) material: Option<Material>,
    pub(super) standing: Standing,
    /// Names that only certbot renews in it.
    pub(super) left_out: Vec<Identifier>,
    /// Where ours are.
    pub(super) certificates: PathBuf,
}

impl Surveyor {
    /// Reads vhost files and the store. The error is in words.
    pub(super) fn new(settings: &Settings, now: OffsetDateTime) -> Result<Self, String> {
        let listing = source::read(&settings.vhosts_dir);
        let files = listing.map_err(|error| error.to_string())?.files;
        let worker = worker(settings);
        let mut policy = Policy::new(settings, &worker, has_ipv6());
        let parsed = files.iter().filter_map(|file| {
            let (app, _) = parse_alone(file, &mut policy, now).ok()?;
            Some(candidate(app, file))
        });
        // a hand-written site may have just gone: the reload says where one still has the name
        let given = Given {
            hand_written: BTreeMap::new(),
            patterns: Vec::new(),
            ..given(settings, &files)
        };
        let accepted = desired::accept(parsed.collect(), &given);
        let uses = accepted.apps.iter().flat_map(|app| {
            let wanted = desired::wanted(app, &settings.tls_defaults());
            let vhosts = app.vhosts.iter().map(|vhost| vhost.name.to_string());
            // of two types of key the one that is always there
            let first = vhosts
                .zip(wanted)
                .map(|(vhost, wanted)| (vhost, wanted.into_iter().next()));
            first.filter_map(|(vhost, wanted)| {
                Some(Use {
                    vhost,
                    wanted: wanted?,
                })
            })
        });
        let store = CertificateStore::new(&settings.state_dir);
        let (inventory, _) = store.inventory().map_err(|error| error.to_string())?;
        Ok(Self {
            uses: uses.collect(),
            inventory,
            acme: settings.acme.clone(),
            state_dir: settings.state_dir.clone(),
            now,
        })
    }

    pub(super) fn find(&self, config_dir: &Path, name: &str) -> Result<Found, LineageError> {
        let lineage = Lineage::read(config_dir, name)?;
        let material = match lineage.material(self.now) {
            Err(_) if lineage.conf.is_marked() => None,
            material => Some(material?),
        };
        let (standing, left_out) = match &material {
            None => (Standing::Adopted(Vec::new()), Vec::new()),
            Some(material) => {
                let (uses, inventory) = (&self.uses, &self.inventory);
                let standing = standing(&lineage, material, uses, inventory, &self.acme, self.now);
                (standing, left_out(material, uses))
            }
        };
        Ok(Found {
            lineage,
            material,
            standing,
            left_out,
            certificates: self.state_dir.join("certificates"),
        })
    }
}

/// The names of all lineages; none where certbot was never run.
pub(super) fn all(config_dir: &Path) -> Result<Vec<String>, LineageError> {
    names(config_dir)
}

/// The configuration directory and the name that an operator means: `NAME`, or `DIR/live/NAME`.
pub(super) fn place(name: &str, config_dir: &Path) -> (PathBuf, String) {
    let path = Path::new(name);
    let parts = (path.parent().and_then(Path::parent), path.file_name());
    match (name.contains('/'), parts) {
        (true, (Some(above), Some(name))) => {
            let above = match above.as_os_str().is_empty() {
                true => Path::new("."),
                false => above,
            };
            (above.to_path_buf(), name.to_string_lossy().into_owned())
        }
        _ => (config_dir.to_path_buf(), name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_below_live_is_a_name_too() {
        let usual = Path::new("/etc/letsencrypt");
        let at = |name: &str| place(name, usual);
        assert_eq!(at("a.example"), (usual.into(), "a.example".into()));
        for given in ["/srv/le/live/a.example", "/srv/le/live/a.example/"] {
            assert_eq!(at(given), ("/srv/le".into(), "a.example".into()));
        }
        assert_eq!(at("live/a.example"), (".".into(), "a.example".into()));
    }
}
