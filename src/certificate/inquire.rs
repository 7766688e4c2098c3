//! N: a CA is asked when it wants a certificate renewed, and its answer is remembered.

use tokio::task::spawn_blocking;

use crate::certificate::ledger::Ledger;
use crate::certificate::order::AcmeClient;
use crate::certificate::renew::Clock;
use crate::certificate::renewal_info::{Inquiry, RenewalInfo};

/// Asks, and remembers. What cannot be written down is remembered by this process.
///
/// `chance`: from 0 up to 1; where in the window our moment is.
pub async fn inquire(
    inquiry: &Inquiry,
    acme: &AcmeClient,
    ledger: &Ledger,
    clock: Clock<'_>,
    chance: f64,
) -> RenewalInfo {
    let reply = acme.renewal_info(&inquiry.id).await;
    let name = &inquiry.name;
    let previous = ledger.renewal_info_of(name).unwrap_or_else(|error| {
        tracing::warn!(identifier = %name, "failed to {error}");
        None
    });
    let info = RenewalInfo::after(previous.as_ref(), inquiry, &reply, clock(), chance);
    tell(inquiry, previous.as_ref(), &info);
    let (ledger, written) = (ledger.clone(), (name.clone(), info.clone()));
    let recorded = spawn_blocking(move || ledger.record_renewal_info(&written.0, &written.1)).await;
    match recorded {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(identifier = %name, "failed to {error}"),
        Err(error) => tracing::error!(identifier = %name, "failed to remember: {error}"),
    }
    info
}

/// A moment that is new is told; so is why, where the CA gives a reason.
fn tell(inquiry: &Inquiry, previous: Option<&RenewalInfo>, info: &RenewalInfo) {
    let of = |info: &RenewalInfo| {
        let suggestion = info.suggestion.clone()?;
        Some((suggestion.renew_at, suggestion.explanation_url))
    };
    let before = previous
        .filter(|previous| previous.serial == info.serial)
        .and_then(of);
    match of(info) {
        Some((next, Some(why))) if before != Some((next, Some(why.clone()))) => {
            tracing::warn!(identifier = %inquiry.name, %next, "the CA asks for a renewal, and says why: {why}");
        }
        Some((next, None)) if before.is_none_or(|(known, _)| known != next) => {
            tracing::info!(identifier = %inquiry.name, %next, "the CA suggests when to renew");
        }
        _ => {}
    }
}
