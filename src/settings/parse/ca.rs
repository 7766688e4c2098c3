//! P: `acme.directory` as a list, and `external_account`.

use std::path::PathBuf;

use super::{directory_url, email, path};
use crate::diagnostic::{Located, Position};
use crate::settings::AcmeSettings;
use crate::settings::ca::{CaSettings, ExternalAccount};
use crate::vhost::parse::tls;
use crate::yaml::{Fields, Node, Problems, Value, quoted, string};

/// One CA of the list, as it is written.
pub(super) struct Listed {
    at: Position,
    directory: String,
    staging: Option<String>,
    email: Option<String>,
    ca_file: Option<PathBuf>,
    profile: Option<String>,
    external_account: Option<ExternalAccount>,
}

/// A URL, or a list of URLs and mappings.
pub(super) fn directories(node: Node, problems: &mut Problems) -> Vec<Listed> {
    let Value::Sequence(nodes) = node.value else {
        let expected = "a URL or a list";
        let text = string(node, expected, problems);
        return text
            .and_then(|text| Some(plain(directory_url(&text, problems)?, text.at)))
            .into_iter()
            .collect();
    };
    if nodes.is_empty() {
        problems.add(node.at, "an empty list: at least one CA is needed");
    }
    let mut all: Vec<Listed> = Vec::new();
    for node in nodes {
        let Some(listed) = one(node, problems) else {
            continue;
        };
        match all.iter().any(|known| known.directory == listed.directory) {
            true => problems.add(
                listed.at,
                format!("{} is listed twice", quoted(&listed.directory)),
            ),
            false => all.push(listed),
        }
    }
    if let Some(late) = all.iter().skip(1).find(|listed| listed.staging.is_some()) {
        let reason = "`staging` of a CA that is not the first: only the first is rehearsed";
        problems.add(late.at, reason);
    }
    all
}

fn one(node: Node, problems: &mut Problems) -> Option<Listed> {
    let at = node.at;
    if !matches!(node.value, Value::Mapping(_)) {
        let text = string(node, "a URL, or a mapping with `directory`", problems)?;
        return Some(plain(directory_url(&text, problems)?, at));
    }
    let mut fields = Fields::of(node, "a CA", problems)?;
    let directory = fields.string("directory", problems);
    if directory.is_none() && !fields.given("directory") {
        problems.add(at, "a CA without `directory`");
    }
    let directory = directory.and_then(|text| directory_url(&text, problems));
    let staging = fields.string("staging", problems);
    let contact = fields.string("email", problems);
    let ca_file = fields.string("ca_file", problems);
    let profile = fields.string("profile", problems);
    let external = fields.take("external_account");
    let listed = Listed {
        at,
        staging: staging.and_then(|text| directory_url(&text, problems)),
        email: contact.and_then(|text| email(&text, problems)),
        ca_file: ca_file.and_then(|text| path(&text, problems)),
        profile: profile.and_then(|text| tls::profile(&text, problems)),
        external_account: external.and_then(|node| external_account(node, problems)),
        directory: directory.clone().unwrap_or_default(),
    };
    fields.finish(&[], problems);
    directory.map(|_| listed)
}

/// `{key_id: …, hmac_key_file: …}`, as the CA gave them.
pub(super) fn external_account(node: Node, problems: &mut Problems) -> Option<ExternalAccount> {
    let mut fields = Fields::of(node, "an external account", problems)?;
    let at = fields.at;
    let key_id = fields.string("key_id", problems);
    let file = fields.string("hmac_key_file", problems);
    for key in ["key_id", "hmac_key_file"] {
        if !fields.given(key) {
            problems.add(at, format!("an external account without `{key}`"));
        }
    }
    fields.refuse_secret("hmac_key", "hmac_key_file", problems);
    fields.finish(&[], problems);
    let key_id = key_id.and_then(|text| self::key_id(&text, problems));
    let file = file.and_then(|text| path(&text, problems));
    Some(ExternalAccount {
        key_id: key_id?,
        hmac_key_file: file?,
    })
}

fn key_id(text: &Located<String>, problems: &mut Problems) -> Option<String> {
    let plain = text.value.bytes().all(|byte| byte.is_ascii_graphic());
    if (1..=LONGEST_KEY_ID).contains(&text.value.len()) && plain {
        return Some(text.value.clone());
    }
    problems.add(
        text.at,
        "not a key identifier: printable ASCII without spaces",
    );
    None
}

/// Puts the first where the plain keys are, and gives the others what they do not say themselves.
pub(super) fn settle(
    settings: &mut AcmeSettings,
    listed: Vec<Listed>,
    external_at: Option<Position>,
    problems: &mut Problems,
) {
    let several = listed.len() > 1;
    let mut listed = listed.into_iter();
    let Some(first) = listed.next() else {
        return;
    };
    if let Some(at) = external_at.filter(|_| several) {
        let reason = "`external_account` beside several CAs: it belongs to one of them";
        let hint = "write the CA as {directory: …, external_account: …} in the list";
        problems.add_with_hint(at, reason, Some(hint));
    }
    settings.fallbacks = listed
        .map(|listed| CaSettings {
            directory: listed.directory,
            email: listed.email.or_else(|| settings.email.clone()),
            ca_file: listed.ca_file.or_else(|| settings.ca_file.clone()),
            profile: listed.profile,
            external_account: listed.external_account,
        })
        .collect();
    settings.directory = first.directory;
    let replace = |target: &mut Option<String>, own: Option<String>| {
        if own.is_some() {
            *target = own;
        }
    };
    replace(&mut settings.staging, first.staging);
    replace(&mut settings.email, first.email);
    replace(&mut settings.profile, first.profile);
    settings.ca_file = first.ca_file.or(settings.ca_file.take());
    settings.external_account = first.external_account.or(settings.external_account.take());
}

fn plain(directory: String, at: Position) -> Listed {
    Listed {
        at,
        directory,
        staging: None,
        email: None,
        ca_file: None,
        profile: None,
        external_account: None,
    }
}

const LONGEST_KEY_ID: usize = 1024;
