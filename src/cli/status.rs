//! `vhostd status`

use std::collections::BTreeMap;

use clap::Args;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::renew::host;
use super::{Exit, open, output, reload, verdict};
use crate::certificate::CertificateName;
use crate::certificate::words::first_few;
use crate::clock;
use crate::control::Question;
use crate::overview::{CertificateShown, CertificateWord, Overview, overview};
use crate::settings::Settings;
use crate::status::{VhostState, VhostStatus};

#[derive(Args, Debug)]
pub(super) struct Status {
    /// Only this vhost
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Print data for programs
    #[arg(long)]
    json: bool,
}

/// As `vhostd status` without arguments, without asking the daemon: it may be this very process.
pub(super) fn show(settings: &Settings) {
    if let Ok(shown) = on_disk(settings) {
        print(&shown, clock::system()());
    }
}

impl Status {
    pub(super) fn run(self, settings: &Settings) -> Exit {
        let mut shown = match shown(settings) {
            Ok(shown) => shown,
            Err(exit) => return exit,
        };
        if let Some(name) = &self.name {
            keep_only(&mut shown, name);
        }
        if let Some(name) = &self.name
            && shown.vhosts.is_empty()
        {
            output::error(&format!("there is no vhost `{name}`"));
            return Exit::Usage;
        }
        if self.json {
            output::json(&shown);
        } else {
            print(&shown, clock::system()());
        }
        Exit::Done
    }
}

/// As the daemon sees it, where one runs and answers: it alone knows what it could not write down,
/// and answers members of its group too. Else as it is on disk.
fn shown(settings: &Settings) -> Result<Overview, Exit> {
    if let Some(answer) = reload::asked(settings, Question::Status)? {
        return Ok(answer);
    }
    on_disk(settings)
}

fn on_disk(settings: &Settings) -> Result<Overview, Exit> {
    let installation = open(settings.clone())?;
    let mut shown = overview(&installation, None).map_err(|why| output::failed(&why))?;
    shown.warnings.extend(installation.repaired());
    Ok(shown)
}

fn keep_only(shown: &mut Overview, name: &str) {
    let vhosts = &mut shown.vhosts;
    vhosts.retain(|vhost| verdict::matches(name, &vhost.name, &vhost.server_names));
    let is_theirs = |certificate: &str| {
        let certificate = CertificateName::from_file_name(certificate);
        let base = certificate.as_ref().map(CertificateName::base);
        base.is_some() && vhosts.iter().any(|it| it.certificate.as_deref() == base)
    };
    shown.certificates.retain(|it| is_theirs(&it.name));
    shown.texts_in_dns.retain(|it| is_theirs(&it.certificate));
}

fn print(shown: &Overview, now: OffsetDateTime) {
    let nginx = match shown.nginx.running {
        true => output::good("running"),
        false => output::bad("not running"),
    };
    let pinned = shown.pinned.map_or_else(String::new, |number| {
        format!(", pinned to the vhosts of {number}")
    });
    output::line(&format!(
        "nginx {} {nginx} · generation {} active{}{pinned}\n",
        shown.nginx.version,
        shown.generation.active,
        match shown.generation.serving {
            None if !shown.nginx.running => String::new(),
            Some(serving) if serving == shown.generation.active => ", serving".into(),
            Some(serving) => output::bad(&format!(", but {serving} answers")),
            None => output::doubtful(", nothing answers"),
        }
    ));
    if shown.vhosts.is_empty() {
        output::line("no vhosts yet: drop a file into the vhosts directory");
    } else {
        print_vhosts(shown, now);
    }
    print_texts(shown);
    for warning in &shown.warnings {
        output::warning(warning);
    }
    if let Some(error) = &shown.error {
        output::error(error);
    }
}

fn print_vhosts(shown: &Overview, now: OffsetDateTime) {
    let name_width = width(shown.vhosts.iter().map(|vhost| vhost.name.len()), "VHOST");
    let names = |vhost: &VhostStatus| match vhost.server_names.len() {
        0 => "-".to_owned(),
        1 => vhost.server_names[0].clone(),
        more => format!("{} (+{})", vhost.server_names[0], more - 1),
    };
    let names_width = width(shown.vhosts.iter().map(|vhost| names(vhost).len()), "NAMES");
    let header = format!(
        "{:<name_width$}  {:<names_width$}  {:<9}  CERTIFICATE",
        "VHOST", "NAMES", "STATE"
    );
    output::line(&output::faint(&header));
    for vhost in &shown.vhosts {
        let state = match vhost.state {
            VhostState::Serving => output::good(&format!("{:<9}", "serving")),
            VhostState::Pending => output::doubtful(&format!("{:<9}", "pending")),
            VhostState::Rejected => output::bad(&format!("{:<9}", "rejected")),
            VhostState::Stale => output::doubtful(&format!("{:<9}", "stale")),
        };
        let certificate = certificate_words(vhost, shown, now);
        output::line(&format!(
            "{:<name_width$}  {:<names_width$}  {state}  {certificate}",
            vhost.name,
            names(vhost)
        ));
    }
    // what all vhosts wait for is said once, below
    let own_reason = |vhost: &&VhostStatus| vhost.reason.is_some() && vhost.reason != shown.error;
    for vhost in shown.vhosts.iter().filter(own_reason) {
        let at = vhost
            .line
            .map_or_else(String::new, |line| format!(":{line}"));
        let reason = vhost.reason.as_deref().unwrap_or_default();
        output::line("");
        output::warning(&format!("{}{at}: {reason}", vhost.file.display()));
        output::hint(vhost.hint.as_deref());
        if let Some(words) = &vhost.nginx {
            output::line(&format!("nginx: {words}"));
        }
    }
    for certificate in shown
        .certificates
        .iter()
        .filter(|certificate| certificate.last_error.is_some())
    {
        output::line("");
        let error = certificate.last_error.as_deref().unwrap_or_default();
        let name = &certificate.name;
        output::warning(&match certificate.attempts {
            0 => format!("{name}: not tried yet: failed to {error}"),
            1 => format!("{name}: 1 failed attempt: {error}"),
            more => format!("{name}: {more} failed attempts: {error}"),
        });
        output::hint(Some(&match certificate.renew_at.as_deref() {
            _ if certificate.issuer == "file" => {
                "mend its files: they are looked at as soon as they change".to_owned()
            }
            Some(next) => format!("tried again at {next}; `vhostd renew {name}` tries now"),
            None => format!("`vhostd renew {name}` tries now"),
        }));
    }
    print_incidents(shown);
    print_differences(shown);
    print_remarks(shown);
}

/// What is still in DNS, by the certificate that it was for and by why it is there.
fn print_texts(shown: &Overview) {
    let mut groups: BTreeMap<(&str, Option<&str>), Vec<String>> = BTreeMap::new();
    for text in &shown.texts_in_dns {
        let texts = groups.entry((&text.certificate, text.error.as_deref()));
        let record = format!("TXT {} at {}", text.value, text.name);
        texts.or_default().push(record);
    }
    for ((certificate, error), texts) in groups {
        let texts = first_few(&texts, ", ");
        output::line("");
        match error {
            Some(error) => {
                output::warning(&format!(
                    "{certificate}: still in DNS: {texts}: failed to {error}"
                ));
                output::hint(Some(
                    "`vhostd renew` tries again to take it out, or sees that you have",
                ));
            }
            None => {
                output::line(&format!("{certificate}: in DNS for its order: {texts}"));
                output::hint(Some(
                    "where no order is under way, one was killed: `vhostd renew` takes it out",
                ));
            }
        }
    }
}

/// Visitors are shown something else than what is stored.
fn print_differences(shown: &Overview) {
    let served = shown
        .certificates
        .iter()
        .filter_map(|it| it.served.as_ref());
    for difference in served.flat_map(|served| &served.differs) {
        let (host, found) = (&difference.host, &difference.found);
        let addresses = difference.addresses.join(", ");
        output::line("");
        output::warning(&format!(
            "{host} is not served with its certificate: at {addresses}: {found}"
        ));
        output::hint(Some(&format!(
            "look for another server block with this name: `nginx -T | grep -n {host}`; then run `vhostd reload`"
        )));
    }
}

/// What looked odd at an order.
fn print_remarks(shown: &Overview) {
    for certificate in &shown.certificates {
        // those of a chain from files are in the list above
        let others = certificate.warnings.iter();
        for warning in others.filter(|it| !shown.warnings.contains(it)) {
            output::line("");
            output::warning(warning);
        }
    }
}

/// A CA that says why it wants a renewal has an incident.
fn print_incidents(shown: &Overview) {
    for certificate in &shown.certificates {
        let suggestion = certificate.suggestion.as_ref();
        let why = suggestion.and_then(|suggestion| suggestion.explanation_url.as_ref());
        let (Some(why), Some(at)) = (why, &certificate.renew_at) else {
            continue;
        };
        output::line("");
        let name = &certificate.name;
        output::warning(&format!(
            "{name}: its CA asks for a renewal, on {at}: {why}"
        ));
        output::hint(Some(&format!(
            "`vhostd renew {name} --force` renews it now"
        )));
    }
}

/// Where certificates are of several CAs, also which.
fn issuer(certificate: &CertificateShown, shown: &Overview) -> String {
    let directories = shown.certificates.iter();
    let mut directories = directories.filter_map(|it| it.directory.as_ref());
    let several = match directories.next() {
        Some(first) => directories.any(|other| other != first),
        None => false,
    };
    match &certificate.directory {
        Some(directory) if several => format!("{} by {}", certificate.issuer, host(directory)),
        _ => certificate.issuer.clone(),
    }
}

fn width(lengths: impl Iterator<Item = usize>, header: &str) -> usize {
    lengths.max().unwrap_or_default().max(header.len())
}

fn certificate_words(vhost: &VhostStatus, shown: &Overview, now: OffsetDateTime) -> String {
    let Some(name) = &vhost.certificate else {
        return match vhost.state {
            VhostState::Rejected => String::new(),
            _ => "none (plain HTTP)".into(),
        };
    };
    let mut theirs: Vec<&CertificateShown> = shown.certificates.iter().collect();
    theirs.retain(|certificate| certificate.is_of(name));
    theirs.sort_by_key(|certificate| certificate.further());
    // one that is not wanted any more is good, and not renewed
    let unwanted = |it: &CertificateShown| {
        it.further().is_some() && it.state == CertificateWord::Valid && it.renew_at.is_none()
    };
    theirs.retain(|it| !unwanted(it));
    match theirs.is_empty() {
        true => "pending".into(),
        false => {
            let words = theirs.iter().map(|it| words_of(it, shown, now));
            words.collect::<Vec<_>>().join("; ")
        }
    }
}

fn words_of(certificate: &CertificateShown, shown: &Overview, now: OffsetDateTime) -> String {
    let further = certificate.further();
    let until = certificate
        .not_after
        .as_deref()
        .and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
    let days = until.map_or(0, |until| (until - now).whole_days());
    let instead = match until {
        Some(until) if until < now => "expired",
        _ if further.is_some() => "missing",
        _ => "placeholder",
    };
    let words = match certificate.state {
        CertificateWord::Valid => format!("{}, {days} days left", issuer(certificate, shown)),
        CertificateWord::Pending => "pending".into(),
        CertificateWord::Placeholder => output::doubtful("placeholder, browsers warn"),
        CertificateWord::Failing if !certificate.missing_identifiers.is_empty() => {
            let missing = first_few(&certificate.missing_identifiers, ", ");
            let issuer = issuer(certificate, shown);
            output::bad(&format!(
                "{issuer}, {days} days left, without {missing}, failing"
            ))
        }
        CertificateWord::Failing => output::bad(&format!("{instead}, failing")),
        CertificateWord::Invalid => output::bad(&format!("{instead}, cannot be obtained")),
    };
    match further {
        Some(key_type) => format!("{}: {words}", key_type.as_str()),
        None => words,
    }
}
