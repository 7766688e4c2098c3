//! P: what is said to an app that does not get what it asks for.

use super::Claim;
use crate::desired::entrance::SHARED_HINT;
use crate::desired::owners::Reservation;
use crate::diagnostic::Diagnostic;
use crate::vhost::ServerName;

pub(super) fn unspeakable(claim: Claim<'_>, other: Claim<'_>) -> Diagnostic {
    let line = other
        .at
        .map_or_else(String::new, |at| format!(":{}", at.line));
    let reason = format!(
        "clients of `{}` name no host, and can only get the certificate of `{}` ({}{line})",
        claim.name,
        other.name,
        other.file.display(),
    );
    diagnostic(claim, reason, SHARED_HINT)
}

/// `held`: a rollback holds the other app.
pub(super) fn explain(claim: Claim<'_>, other: Claim<'_>, held: bool) -> Diagnostic {
    let (name, theirs) = (claim.name, other.name);
    let file = other.file.display();
    // an owner that is rejected, or held by a rollback, has no line for it
    let owner = match other.at {
        Some(at) => format!("{} ({file}:{})", other.app, at.line),
        None if held => format!("{} ({file}, which a rollback holds)", other.app),
        None => format!("{} ({file}, which is rejected now)", other.app),
    };
    let reason = if name == theirs {
        format!("`{name}` already belongs to {owner}")
    } else if theirs.is_above(name) {
        format!("`{name}` is under `{theirs}`, which belongs to {owner}")
    } else {
        format!("`{name}` is above `{theirs}`, which belongs to {owner}")
    };
    diagnostic(claim, reason, OWNER_HINT)
}

/// After those that are told one by one.
pub(super) fn further(claim: Claim<'_>) -> Diagnostic {
    let reason = format!("`{}` conflicts with further names", claim.name);
    diagnostic(claim, reason, OWNER_HINT)
}

/// The name is kept for the user who gave it up; `kept` is that name, or one above or below it.
pub(super) fn reserved(
    claim: Claim<'_>,
    kept: &ServerName,
    reservation: Reservation,
) -> Diagnostic {
    let until = reservation.until.date();
    let whose = match reservation.uid {
        0 => "root's".to_owned(),
        uid => format!("user {uid}'s"),
    };
    let reason = format!("`{kept}` is reserved for {whose} vhost files until {until}");
    diagnostic(claim, reason, RESERVED_HINT)
}

pub(super) fn diagnostic(claim: Claim<'_>, reason: String, hint: &str) -> Diagnostic {
    let diagnostic = Diagnostic::new(claim.file, reason).hint(hint);
    match claim.at {
        Some(at) => diagnostic.at(at),
        None => diagnostic,
    }
}

const RESERVED_HINT: &str =
    "its former owner can have it back until then; `vhostd reload`, run by root, frees it at once";
const OWNER_HINT: &str = "a name has one owner: take it out of one of the two files";
pub(super) const HAND_WRITTEN_HINT: &str =
    "take it out of that file, which vhostd does not touch, or out of this one";
pub(super) const BELOW_HINT: &str =
    "write the names below it, each; who runs the suffix itself writes that site by hand";
pub(super) const REGISTRY_HINT: &str =
    "write the name that you have below it; who runs the suffix itself writes that site by hand";
