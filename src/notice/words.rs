//! P: what is said of each event.

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::change::{CertificateSeen, Difference, Failing, Unapplied, Version};
use crate::certificate::words::first_few;
use crate::diagnostic::printable;
use crate::reconcile::report::Rejected;

#[derive(Clone, Debug, Default)]
pub(super) struct Words {
    pub title: String,
    pub happened: String,
    pub next: String,
    pub next_at: Option<OffsetDateTime>,
    pub names: Vec<String>,
}

pub(super) fn failing(seen: &CertificateSeen, failing: &Failing, now: OffsetDateTime) -> Words {
    let (name, verb) = (&seen.name, verb(seen));
    Words {
        title: format!("certificate {name} could not be {verb}"),
        happened: format!(
            "failed to {}; {}",
            printable(&failing.error),
            state(seen, now)
        ),
        next: match failing.next {
            Some(next) => format!(
                "vhostd tries again at {}; `vhostd renew {name}` tries now",
                clock(next)
            ),
            None => "vhostd looks again at every change, and every half minute".to_owned(),
        },
        next_at: failing.next,
        names: seen.identifiers.clone(),
    }
}

pub(super) fn invalid(seen: &CertificateSeen, failing: &Failing, now: OffsetDateTime) -> Words {
    let (name, verb) = (&seen.name, verb(seen));
    let again = failing.next.map_or_else(String::new, |next| {
        format!(" (it is tried once a day all the same, at {})", clock(next))
    });
    Words {
        title: format!("certificate {name} cannot be {verb} until something is changed"),
        happened: format!(
            "failed to {}; {}",
            printable(&failing.error),
            state(seen, now)
        ),
        next: format!("mend what it says, then run `vhostd renew {name}`{again}"),
        next_at: failing.next,
        names: seen.identifiers.clone(),
    }
}

pub(super) fn expiring(seen: &CertificateSeen, version: &Version) -> Words {
    let name = &seen.name;
    let why = match &seen.failing {
        Some(failing) => format!("its renewal failed to {}", printable(&failing.error)),
        None => "it was not renewed in time".to_owned(),
    };
    let next = seen.failing.as_ref().and_then(|failing| failing.next);
    Words {
        title: format!(
            "certificate {name} expires at {}",
            clock(version.validity.not_after)
        ),
        happened: format!("little is left of its life, and {why}"),
        next: match next {
            Some(next) => format!("vhostd tries again at {}", clock(next)),
            None if version.renew_at.is_none() => FILES.to_owned(),
            None => format!("`vhostd renew {name}` tries now, `vhostd status` says more"),
        },
        next_at: next.or(Some(version.validity.not_after)),
        names: seen.identifiers.clone(),
    }
}

pub(super) fn expired(seen: &CertificateSeen, version: &Version) -> Words {
    let expiring = expiring(seen, version);
    let name = &seen.name;
    let ended = clock(version.validity.not_after);
    let why = match &seen.failing {
        Some(failing) => format!("; its renewal failed to {}", printable(&failing.error)),
        None => String::new(),
    };
    Words {
        title: format!("certificate {name} has expired"),
        happened: format!("it ended at {ended}, and visitors are warned{why}"),
        next_at: seen.failing.as_ref().and_then(|failing| failing.next),
        ..expiring
    }
}

pub(super) fn stored(seen: &CertificateSeen, version: &Version, what: &str) -> Words {
    Words {
        title: format!("certificate {} {what}", seen.name),
        happened: format!(
            "a new one serves, valid until {}",
            clock(version.validity.not_after)
        ),
        ..settled(seen, version)
    }
}

/// It was well, and is all that is wanted again.
pub(super) fn settled(seen: &CertificateSeen, version: &Version) -> Words {
    Words {
        title: format!("certificate {} is well again", seen.name),
        happened: format!(
            "the one that serves has all that is wanted, and is valid until {}",
            clock(version.validity.not_after)
        ),
        next: match version.renew_at {
            Some(at) => format!("vhostd renews it at {}", clock(at)),
            None => FILES.to_owned(),
        },
        next_at: version.renew_at,
        names: seen.identifiers.clone(),
    }
}

pub(super) fn unwanted(name: &str) -> Words {
    Words {
        title: format!("certificate {name} is no longer wanted"),
        happened: "no vhost asks for it any more, so its trouble is over".to_owned(),
        next: NOTHING.to_owned(),
        ..Words::default()
    }
}

pub(super) fn nginx_down() -> Words {
    Words {
        title: "nginx is not running".to_owned(),
        happened: "nothing serves".to_owned(),
        next: "vhostd never starts nginx: `nginx -t` says whether it could start, and `systemctl start nginx` starts it"
            .to_owned(),
        ..Words::default()
    }
}

pub(super) fn nginx_recovered() -> Words {
    Words {
        title: "nginx is running again".to_owned(),
        happened: "it serves".to_owned(),
        next: NOTHING.to_owned(),
        ..Words::default()
    }
}

pub(super) fn unapplied(unapplied: &Unapplied) -> Words {
    let hint = unapplied.hint.as_deref().map(printable);
    Words {
        title: "what should serve does not: the last change was not applied".to_owned(),
        happened: format!(
            "{}; what served before still serves, where anything did",
            printable(&unapplied.error)
        ),
        next: hint.unwrap_or_else(|| {
            "vhostd tries again by itself, and at once when a vhost file changes".to_owned()
        }),
        ..Words::default()
    }
}

pub(super) fn reload_recovered() -> Words {
    Words {
        title: "what should serve does again".to_owned(),
        happened: "the configuration was applied".to_owned(),
        next: NOTHING.to_owned(),
        ..Words::default()
    }
}

pub(super) fn rejected(rejected: &Rejected) -> Words {
    let line = rejected
        .line
        .map_or_else(String::new, |line| format!(":{line}"));
    let file = rejected.file.display().to_string();
    let hint = rejected
        .hint
        .as_deref()
        .map_or_else(String::new, |hint| format!(" ({})", printable(hint)));
    Words {
        title: format!("vhost {} is rejected", printable(&rejected.name)),
        happened: format!(
            "{}{line}: {}{hint}; {}",
            printable(&file),
            printable(&rejected.reason),
            match rejected.stale {
                true => "its last good version keeps serving",
                false => "it is not served",
            }
        ),
        next: "correct the file: it is read as soon as it is saved, where the daemon runs"
            .to_owned(),
        ..Words::default()
    }
}

pub(super) fn vhost_recovered(name: &str) -> Words {
    Words {
        title: format!("vhost {} is no longer rejected", printable(name)),
        happened: "its file was corrected, or has gone".to_owned(),
        next: NOTHING.to_owned(),
        ..Words::default()
    }
}

pub(super) fn differs(difference: &Difference) -> Words {
    let host = printable(&difference.host);
    Words {
        title: format!("{host} is not served with its certificate"),
        happened: format!(
            "at {}: {}",
            difference.addresses.join(", "),
            printable(&difference.found)
        ),
        next: format!(
            "look for another server block with this name (`nginx -T | grep -n {host}`), then run `vhostd reload`; vhostd looks again in some minutes"
        ),
        next_at: None,
        names: vec![host.clone()],
    }
}

pub(super) fn served_recovered(host: &str) -> Words {
    Words {
        title: format!("{host} is served with its certificate again"),
        happened: "nginx was asked, and showed the right one".to_owned(),
        next: NOTHING.to_owned(),
        names: vec![host.to_owned()],
        ..Words::default()
    }
}

/// To the minute, in UTC.
pub(super) fn clock(at: OffsetDateTime) -> String {
    at.to_offset(time::UtcOffset::UTC)
        .format(MINUTE)
        .unwrap_or_default()
}

/// `was renewed without b.example`
pub(super) fn without(what: &str, missing: &[String]) -> String {
    match missing.is_empty() {
        true => what.to_owned(),
        false => format!("{what} without {}", first_few(missing, ", ")),
    }
}

fn verb(seen: &CertificateSeen) -> &'static str {
    match seen.version {
        Some(_) => "renewed",
        None => "obtained",
    }
}

fn state(seen: &CertificateSeen, now: OffsetDateTime) -> String {
    match &seen.version {
        Some(version) if now <= version.validity.not_after => {
            let until = clock(version.validity.not_after);
            match seen.missing.is_empty() {
                true => format!("the one that serves is valid until {until}"),
                false => {
                    let missing = first_few(&seen.missing, ", ");
                    format!("the one that is there lacks {missing}, and is valid until {until}")
                }
            }
        }
        Some(version) => format!(
            "the last one ended at {}",
            clock(version.validity.not_after)
        ),
        None => "there is none yet, so browsers warn".to_owned(),
    }
}

const FILES: &str = "whoever writes its files renews it; vhostd takes what is there at once";
const NOTHING: &str = "nothing, all is well";
const MINUTE: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
