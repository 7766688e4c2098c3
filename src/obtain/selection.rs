//! W: which certificates a `renew` is about, and what is ordered of them.

use super::{Obtaining, ObtainingError};
use crate::certificate::{CertificateName, CertificateRequest, Issuer, WantedCertificate};

/// Which certificates a `renew` is about.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Selection {
    /// None: all.
    certificates: Option<Vec<CertificateName>>,
    force: bool,
}

impl Selection {
    /// `names` are identifiers or certificates; `vhosts` says which certificates a vhost has. The
    /// error is the name that nothing has.
    pub fn new(
        names: &[String],
        force: bool,
        wanted: &[WantedCertificate],
        vhosts: &[(String, CertificateName)],
    ) -> Result<Self, String> {
        if names.is_empty() {
            return Ok(Self {
                certificates: None,
                force,
            });
        }
        let mut certificates = Vec::new();
        for name in names {
            let before = certificates.len();
            certificates.extend(
                wanted
                    .iter()
                    .filter(|wanted| {
                        [wanted.name.as_str(), wanted.name.base()].contains(&name.as_str())
                            || wanted
                                .identifiers
                                .iter()
                                .any(|one| one.to_string() == name.trim_matches(['[', ']']))
                    })
                    .map(|wanted| wanted.name.clone()),
            );
            let of_vhost = |vhost: &str| vhost == name || vhost.split('#').next() == Some(name);
            certificates.extend(
                vhosts
                    .iter()
                    .filter(|(vhost, _)| of_vhost(vhost))
                    .map(|(_, name)| name.clone()),
            );
            if certificates.len() == before {
                return Err(name.clone());
            }
        }
        Ok(Self {
            certificates: Some(certificates),
            force,
        })
    }

    pub fn includes(&self, wanted: &WantedCertificate) -> bool {
        self.certificates
            .as_ref()
            .is_none_or(|names| names.contains(&wanted.name))
    }

    pub fn of(&self, wanted: &[WantedCertificate]) -> Vec<WantedCertificate> {
        let mine = wanted.iter().filter(|wanted| self.includes(wanted));
        mine.cloned().collect()
    }

    /// What is due of it; with `force`, all of it. A certificate that was named and keeps failing
    /// is tried now: the operator says so.
    pub fn requests(
        &self,
        obtaining: &Obtaining,
        wanted: &[WantedCertificate],
    ) -> Result<Vec<CertificateRequest>, ObtainingError> {
        let mine = self.of(wanted);
        if self.force {
            return mine
                .iter()
                .filter(|wanted| wanted.issuer != Issuer::File)
                .map(|wanted| obtaining.request_now(wanted))
                .collect();
        }
        let named = self.certificates.is_some();
        if named {
            for wanted in &mine {
                obtaining.ledger.retry_now(&wanted.name)?;
            }
        }
        let mut due = obtaining.schedule(&mine)?.due;
        for request in &mut due {
            request.insisted |= named;
        }
        Ok(due)
    }
}
