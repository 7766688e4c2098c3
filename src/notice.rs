//! P: what an operator is told: what happened, what happens next, and when.
//!
//! What is told is a difference between two states: what was told last, which is on disk, and what
//! is the case now, which is read from disk as well. So nothing is told twice, and what happened
//! while nobody looked, or before a crash, is told at the next look.

pub mod change; // P what was told and what is → what is to be told
pub mod herald; // N looks, remembers, sends: beside the daemon, or once
pub mod memory; // W what was told, and what is still to be sent
pub mod message; // P a notice → what a receiver of each kind wants to read
pub mod observe; // R what is the case now
pub mod secret; // R secrets, read when they are needed
pub mod send; // N one message to one receiver
mod words; // P what is said of each event

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

/// One thing that changed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Notice {
    /// The same however often it is sent.
    pub id: String,
    pub event: Event,
    #[serde(rename = "type")]
    pub weight: Weight,
    /// When it was noticed.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub subject: Subject,
    /// The names that visitors use and that it is about.
    pub names: Vec<String>,
    /// A line without a final full stop.
    pub title: String,
    pub happened: String,
    pub next: String,
    #[serde(with = "time::serde::rfc3339::option")]
    pub next_at: Option<OffsetDateTime>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Subject {
    pub kind: SubjectKind,
    pub name: String,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SubjectKind {
    Certificate,
    Generation,
    Nginx,
    /// A name at nginx's listeners.
    ServerName,
    Test,
    Vhost,
}

/// Stable words, for receivers that are programs.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    CertificateExpired,
    CertificateExpiring,
    CertificateFailing,
    CertificateInvalid,
    CertificateObtained,
    CertificateRecovered,
    CertificateRenewed,
    NginxDown,
    NginxRecovered,
    ReloadFailed,
    ReloadRecovered,
    ServedDiffers,
    ServedRecovered,
    Test,
    VhostRecovered,
    VhostRejected,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// Visitors notice, or somebody has to do something.
    Failure,
    Info,
    /// What was wrong is right again, or something came off.
    Success,
    /// It will be a failure if it stays so.
    Warning,
}

impl Event {
    /// As programs read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::CertificateExpired => "certificate_expired",
            Self::CertificateExpiring => "certificate_expiring",
            Self::CertificateFailing => "certificate_failing",
            Self::CertificateInvalid => "certificate_invalid",
            Self::CertificateObtained => "certificate_obtained",
            Self::CertificateRecovered => "certificate_recovered",
            Self::CertificateRenewed => "certificate_renewed",
            Self::NginxDown => "nginx_down",
            Self::NginxRecovered => "nginx_recovered",
            Self::ReloadFailed => "reload_failed",
            Self::ReloadRecovered => "reload_recovered",
            Self::ServedDiffers => "served_differs",
            Self::ServedRecovered => "served_recovered",
            Self::Test => "test",
            Self::VhostRecovered => "vhost_recovered",
            Self::VhostRejected => "vhost_rejected",
        }
    }

    /// Whether `hooks.on_failure` is told: of what goes wrong, and of its end.
    pub fn is_about_failure(self) -> bool {
        !matches!(self, Self::CertificateObtained | Self::CertificateRenewed)
    }
}

impl Weight {
    pub fn word(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::Info => "info",
            Self::Success => "success",
            Self::Warning => "warning",
        }
    }
}

impl SubjectKind {
    pub fn word(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Generation => "generation",
            Self::Nginx => "nginx",
            Self::ServerName => "server_name",
            Self::Test => "test",
            Self::Vhost => "vhost",
        }
    }
}

impl Notice {
    /// What is sent to see whether it arrives.
    pub fn test(at: OffsetDateTime) -> Self {
        let words = words::Words {
            title: "a test message of vhostd".to_owned(),
            happened: "somebody ran `vhostd hooks test`".to_owned(),
            next: "nothing: whoever reads this will hear when something changes".to_owned(),
            ..words::Words::default()
        };
        let subject = Subject {
            kind: SubjectKind::Test,
            name: "test".to_owned(),
        };
        Self::new(Event::Test, Weight::Info, subject, words, at)
    }

    fn new(
        event: Event,
        weight: Weight,
        subject: Subject,
        words: words::Words,
        at: OffsetDateTime,
    ) -> Self {
        let what = format!("{} {} {at}", event.word(), subject.name);
        let digest = Sha256::digest(what.as_bytes());
        Self {
            id: digest[..8].iter().map(|it| format!("{it:02x}")).collect(),
            event,
            weight,
            at,
            subject,
            names: words.names,
            title: words.title,
            happened: words.happened,
            next: words.next,
            next_at: words.next_at,
        }
    }

    /// What happened and what happens next, as two sentences.
    pub fn message(&self) -> String {
        format!("{}\nNext: {}", self.happened, self.next)
    }
}
