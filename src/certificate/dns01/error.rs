//! P: why a name was not proven by DNS, and whether to try again.

use std::time::Duration;

use super::exec::ExecError;
use super::propagation::Lack;
use super::rfc2136::Rfc2136Error;
use crate::certificate::attempts::RetryAdvice;
use crate::certificate::ledger::LedgerError;
use crate::certificate::words::first_few;
use crate::dns::NoAnswer;

#[derive(Debug, thiserror::Error)]
pub enum Dns01Error {
    #[error("try the order: another trial of it is under way")]
    Busy,
    #[error("publish the texts for dns-01 within {} s: {}", limit.as_secs(), list(lacks))]
    Lacking { limit: Duration, lacks: Vec<Lack> },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("find the zone of {}: {source}", first_few(names, ", "))]
    NoPlace {
        /// Of the records, at least one.
        names: Vec<String>,
        /// Of the first.
        #[source]
        source: NoAnswer,
    },
    #[error("prove control by dns-01: the settings have no DNS provider {0}")]
    NoProvider(String),
    #[error("publish a text for dns-01 through {provider}: {source}")]
    Provider {
        provider: String,
        #[source]
        source: Box<ProviderError>,
    },
}

/// Why a provider did not change a zone.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    #[error(transparent)]
    Exec(ExecError),
    /// Of a provider that is none of ours.
    #[error("{0}")]
    Other(String),
    #[error(transparent)]
    Rfc2136(Rfc2136Error),
}

impl ProviderError {
    /// Whether the provider could never have put the record there.
    pub(super) fn is_outside(&self) -> bool {
        matches!(self, Self::Rfc2136(Rfc2136Error::Outside { .. }))
    }
}

impl Dns01Error {
    pub fn retry(&self) -> RetryAdvice {
        match self {
            Self::NoProvider(_) => RetryAdvice::Useless,
            Self::Busy
            | Self::Lacking { .. }
            | Self::Ledger(_)
            | Self::NoPlace { .. }
            | Self::Provider { .. } => RetryAdvice::Retry,
        }
    }
}

fn list(lacks: &[Lack]) -> String {
    let each: Vec<String> = lacks.iter().map(ToString::to_string).collect();
    first_few(&each, "; ")
}
