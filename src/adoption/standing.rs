//! P: what is to be done about a lineage, or why nothing can be.

use std::fmt;

use time::OffsetDateTime;

use super::lineage::{Lineage, Material};
use crate::certificate::schedule::renew_at;
use crate::certificate::{
    CertificateInventory, Identifier, Issuer, StoredCertificate, Validity, WantedCertificate,
    covers,
};
use crate::settings::AcmeSettings;

/// A vhost here, and the certificate that it wants.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Use {
    pub vhost: String,
    pub wanted: WantedCertificate,
}

/// Where a lineage is between certbot and us.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Standing {
    /// For these vhosts.
    Adoptable(Vec<Use>),
    /// certbot does not renew it, and we have what its vhosts want.
    Adopted(Vec<Use>),
    Refused(Refusal),
}

/// Why a good lineage cannot be adopted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// Some vhost wants some of its names, and others that are not in it.
    Lacking {
        vhost: String,
        names: Vec<Identifier>,
    },
    /// The vhost that would use it wants another issuer.
    OtherIssuer { vhost: String },
    /// From a CA for trials.
    Staging(String),
    /// No vhost here wants any of its names.
    Unused,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lacking { vhost, names } => {
                let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "the vhost {vhost} also wants {}, not in it",
                    names.join(", ")
                )
            }
            Self::OtherIssuer { vhost } => {
                write!(
                    f,
                    "the vhost {vhost} wants a certificate from vhostd's own CA (`tls`)"
                )
            }
            Self::Staging(server) => {
                write!(f, "it is from {server}, whose root no browser trusts")
            }
            Self::Unused => f.write_str("no vhost here wants its names"),
        }
    }
}

impl Refusal {
    /// The next step.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Lacking { .. } => {
                "let vhostd order one (`vhostd reload --wait`), or take the names out of the vhost file"
            }
            Self::OtherIssuer { .. } => {
                "remove `tls: internal` from its file, or from the settings"
            }
            Self::Staging(_) => "let vhostd order one: `vhostd reload --wait`",
            Self::Unused => {
                "write its vhost file first: `vhostd check` says what is wrong with one that is there"
            }
        }
    }
}

/// `uses`: all vhosts here.
pub fn standing(
    lineage: &Lineage,
    material: &Material,
    uses: &[Use],
    inventory: &CertificateInventory,
    acme: &AcmeSettings,
    now: OffsetDateTime,
) -> Standing {
    let server = lineage.conf.server().unwrap_or_default();
    // certbot's own rule (`util.is_staging`)
    if server.contains("staging") && server != acme.directory {
        return Standing::Refused(Refusal::Staging(server.to_owned()));
    }
    let (mine, refusal) = mine(&material.chain.identifiers, uses);
    let kept = |it: &Use| {
        let stored = inventory.stored(&it.wanted);
        stored.is_some_and(|stored| keeps(&it.wanted, stored, material.chain.validity, now))
    };
    match refusal {
        // it was taken over when there was a vhost
        _ if mine.is_empty() && lineage.conf.is_marked() => Standing::Adopted(mine),
        Some(refusal) if mine.is_empty() => Standing::Refused(refusal),
        _ if !lineage.conf.renews() && mine.iter().all(kept) => Standing::Adopted(mine),
        _ => Standing::Adoptable(mine),
    }
}

/// Those that a certificate for `identifiers` does for, or why it does for none.
fn mine(identifiers: &[Identifier], uses: &[Use]) -> (Vec<Use>, Option<Refusal>) {
    let (mut mine, mut refusal) = (Vec::new(), Refusal::Unused);
    for it in uses {
        let (have, lacking): (Vec<_>, Vec<_>) = it
            .wanted
            .identifiers
            .iter()
            .cloned()
            .partition(|wanted| covers(identifiers, wanted));
        let vhost = it.vhost.clone();
        match (have.is_empty(), lacking.is_empty()) {
            (true, _) => {}
            (false, false) => {
                let names = lacking;
                refusal = Refusal::Lacking { vhost, names };
            }
            (false, true) if it.wanted.issuer != Issuer::Acme => {
                refusal = Refusal::OtherIssuer { vhost };
            }
            (false, true) => mine.push(it.clone()),
        }
    }
    let refusal = mine.is_empty().then_some(refusal);
    (mine, refusal)
}

/// Names that certbot renews in it, and that nobody here wants: our renewal will not have them.
pub fn left_out(material: &Material, uses: &[Use]) -> Vec<Identifier> {
    let identifiers = material.chain.identifiers.iter();
    let wanted = |it: &&Identifier| {
        let mut wanted = uses.iter().flat_map(|one| &one.wanted.identifiers);
        wanted.any(|one| one == *it)
    };
    identifiers.filter(|it| !wanted(it)).cloned().collect()
}

/// Whether ours is kept where certbot has one that is valid during `theirs`: what we obtained by
/// ourselves, until it is due; and whatever lasts longer.
pub(super) fn keeps(
    wanted: &WantedCertificate,
    ours: &StoredCertificate,
    theirs: Validity,
    now: OffsetDateTime,
) -> bool {
    let good = ours.issuer == wanted.issuer
        && ours.covers(&wanted.identifiers)
        && ours.validity.is_usable(now);
    let young = !ours.adopted && renew_at(ours.validity, None) > now;
    good && (young || ours.validity.not_after >= theirs.not_after)
}
