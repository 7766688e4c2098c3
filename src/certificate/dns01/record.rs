//! P: the texts that prove control of a name (RFC 8555 §8.4), and where they are put.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::certificate::CertificateName;

/// One text. Several may be at one name: those of a name and of its wildcard are.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Record {
    /// Where the CA looks: `_acme-challenge.NAME`.
    pub name: String,
    /// Where the name's CNAMEs lead: where the record is.
    pub target: String,
    /// The apex of the zone that the target is in.
    pub zone: String,
    /// No secret: everybody may read it.
    pub value: String,
}

/// A record that may be in DNS by our doing.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Presented {
    /// The one of the settings that took it.
    pub provider: String,
    pub record: Record,
    /// Why it could not be taken out, a lowercase fragment that fits "failed to …"; `None`: nobody
    /// has tried yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Presented {
    pub fn new(provider: &str, record: &Record) -> Self {
        Self {
            provider: provider.to_owned(),
            record: record.clone(),
            error: None,
        }
    }

    /// Whatever became of it.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (&self.provider, &self.record) == (&other.provider, &other.record)
    }
}

/// Where the CA looks for the text of an identifier, a wildcard's without its `*.`.
pub fn name_of(identifier: &str) -> String {
    let bare = identifier.strip_prefix("*.").unwrap_or(identifier);
    format!("_acme-challenge.{bare}")
}

/// What must be shown at each name.
pub fn by_name(records: &[Record]) -> BTreeMap<&str, Vec<&str>> {
    let mut names: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for record in records {
        names.entry(&record.name).or_default().push(&record.value);
    }
    names
}

/// Under which an order that installs nothing keeps what it puts into DNS: nothing of the
/// certificate's own is touched. No identifier has such a name.
pub(super) fn rehearsal_of(name: &CertificateName) -> Option<CertificateName> {
    CertificateName::from_file_name(&format!("{name}{REHEARSAL}"))
}

/// The certificate that something is kept under such a name for, or under its own.
pub fn certificate_of(name: &CertificateName) -> &str {
    let name = name.as_str();
    name.strip_suffix(REHEARSAL).unwrap_or(name)
}

const REHEARSAL: &str = "_dry-run";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_its_wildcard_have_their_texts_side_by_side() {
        assert_eq!(name_of("a.example"), "_acme-challenge.a.example");
        assert_eq!(name_of("*.a.example"), "_acme-challenge.a.example");
        let record = |value: &str, name: &str| Record {
            name: name.into(),
            target: "t.example".into(),
            zone: "example".into(),
            value: value.into(),
        };
        let records = [record("1", "a"), record("2", "a"), record("3", "b")];
        let expected = BTreeMap::from([("a", vec!["1", "2"]), ("b", vec!["3"])]);
        assert_eq!(by_name(&records), expected);
    }
}
