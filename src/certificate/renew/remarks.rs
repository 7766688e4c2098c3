//! W: what looked odd at an order, told once and kept for `status`.

use crate::certificate::CertificateRequest;
use crate::certificate::preflight::{Remark, Remarks, Verdict};

use super::Tools;

/// What is already known is not logged again: a CDN stays, and renewals come back.
pub(super) fn remark(request: &CertificateRequest, tools: Tools<'_>, verdict: Verdict) {
    // the order for all names has seen these, and why the others fail
    if !request.omitted().is_empty() {
        return;
    }
    let remarks = verdict.findings().into_iter().map(|finding| Remark {
        about: finding.about(),
        told: finding.told(),
    });
    let remarks: Vec<Remark> = remarks.collect();
    let known = tools
        .ledger
        .remarks_of(&request.name)
        .unwrap_or_else(|error| {
            tracing::warn!(identifier = %request.name, "failed to {error}");
            None
        });
    let known = known.map_or_else(Vec::new, |known| known.remarks);
    let is_known = |remark: &Remark| known.iter().any(|known| known.about == remark.about);
    for remark in remarks.iter().filter(|remark| !is_known(remark)) {
        tracing::warn!(identifier = %request.name, "{}", remark.told);
    }
    if remarks == known {
        return;
    }
    let remarks = Remarks {
        identifiers: request.identifiers.clone(),
        remarks,
    };
    if let Err(error) = tools.ledger.record_remarks(&request.name, &remarks) {
        tracing::error!(identifier = %request.name, "failed to {error}");
    }
}
