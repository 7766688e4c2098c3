//! W: what was put into DNS, until it is taken out again. Whoever writes here has the certificate's lock.

use super::{Ledger, LedgerError, PRESENTED, atomic_file, file_names};
use crate::certificate::CertificateName;
use crate::certificate::dns01::record::Presented;

impl Ledger {
    /// A file that cannot be parsed is as none, with a warning: nobody knows what was in it.
    pub fn presented(&self, name: &CertificateName) -> Result<Vec<Presented>, LedgerError> {
        Ok(self.read(name, PRESENTED)?.unwrap_or_default())
    }

    /// Durable when it returns.
    pub fn record_presented(
        &self,
        name: &CertificateName,
        presented: &[Presented],
    ) -> Result<(), LedgerError> {
        match presented.is_empty() {
            true => Ok(atomic_file::remove(&self.path(name, PRESENTED))?),
            false => self.write(name, PRESENTED, &presented, 0o600),
        }
    }

    /// The certificates of which something is in DNS.
    pub fn all_presented(&self) -> Result<Vec<CertificateName>, LedgerError> {
        let files = file_names(&self.directory)?;
        let names = files.iter().filter_map(|file| {
            let name = file.strip_suffix(PRESENTED)?;
            CertificateName::from_file_name(name)
        });
        Ok(names.collect())
    }
}
