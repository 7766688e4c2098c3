//! P: whom the operator wants to be told, and of what.

use std::fmt;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::origin::HookUrl;

use crate::diagnostic::{Located, Position};
use crate::vhost::parse::tls::path;
use crate::yaml::{self, Fields, Node, Problems, Value, quoted};

/// The section `hooks`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HookSettings {
    /// Told of what goes wrong, and of its end.
    pub on_failure: Vec<Hook>,
    /// Told of everything.
    pub on_change: Vec<Hook>,
}

/// Somebody who is told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Hook {
    Command(Argv),
    Discord(Place),
    Ntfy(Place),
    Slack(Place),
    Webhook(Place),
}

/// Where a message is sent to. Nothing is read before it is needed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    pub url: UrlSource,
    /// Of ntfy an access token, of a webhook the key of its signatures.
    pub secret: Option<SecretSource>,
    /// PEM; further trust for the receiver's TLS.
    pub ca_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum UrlSource {
    Here(HookUrl),
    Secret(SecretSource),
}

/// Where a secret is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SecretSource {
    /// Of systemd: `LoadCredential=` and its kin.
    Credential(String),
    File(PathBuf),
}

/// An absolute program and its arguments, which are shown to nobody.
#[derive(Clone, Eq, PartialEq)]
pub struct Argv {
    pub program: PathBuf,
    pub arguments: Vec<String>,
}

impl fmt::Debug for Argv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = self.arguments.len();
        write!(f, "{} (+{more})", self.program.display())
    }
}

/// Tells one hook from another, whatever its place in the file.
#[derive(
    Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, serde::Deserialize, serde::Serialize,
)]
#[serde(transparent)]
pub struct HookId(String);

impl HookSettings {
    pub fn is_empty(&self) -> bool {
        self.on_failure.is_empty() && self.on_change.is_empty()
    }

    /// Each once, with its place in the file.
    pub fn all(&self) -> Vec<(String, &Hook)> {
        let lists = [
            ("on_failure", &self.on_failure),
            ("on_change", &self.on_change),
        ];
        let mut all: Vec<(String, &Hook)> = Vec::new();
        for (key, hooks) in lists {
            for (index, hook) in hooks.iter().enumerate() {
                if all.iter().all(|(_, known)| *known != hook) {
                    all.push((format!("hooks.{key}[{index}] ({})", hook.kind()), hook));
                }
            }
        }
        all
    }

    /// Every place of a secret.
    pub fn secret_files(&self) -> Vec<&PathBuf> {
        let mut files = Vec::new();
        for (_, hook) in self.all() {
            let Some(place) = hook.place() else {
                continue;
            };
            let url = match &place.url {
                UrlSource::Secret(source) => Some(source),
                UrlSource::Here(_) => None,
            };
            for source in url.into_iter().chain(&place.secret) {
                if let SecretSource::File(path) = source {
                    files.push(path);
                }
            }
        }
        files
    }
}

impl Hook {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Command(_) => "command",
            Self::Discord(_) => "discord",
            Self::Ntfy(_) => "ntfy",
            Self::Slack(_) => "slack",
            Self::Webhook(_) => "webhook",
        }
    }

    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Command(_) => None,
            Self::Discord(place)
            | Self::Ntfy(place)
            | Self::Slack(place)
            | Self::Webhook(place) => Some(place),
        }
    }

    pub fn id(&self) -> HookId {
        let mut digest = Sha256::new();
        let mut add = |text: &str| {
            digest.update(text.len().to_le_bytes());
            digest.update(text.as_bytes());
        };
        add(self.kind());
        match self {
            Self::Command(argv) => {
                add(&argv.program.to_string_lossy());
                argv.arguments.iter().for_each(|argument| add(argument));
            }
            Self::Discord(place)
            | Self::Ntfy(place)
            | Self::Slack(place)
            | Self::Webhook(place) => match &place.url {
                UrlSource::Here(url) => add(&url.uri().to_string()),
                UrlSource::Secret(SecretSource::File(path)) => add(&path.to_string_lossy()),
                UrlSource::Secret(SecretSource::Credential(name)) => add(name),
            },
        }
        let digest = digest.finalize();
        HookId(digest[..8].iter().map(|it| format!("{it:02x}")).collect())
    }
}

pub(super) fn hooks(mut fields: Fields, problems: &mut Problems) -> HookSettings {
    let settings = HookSettings {
        on_failure: list(fields.take("on_failure"), problems),
        on_change: list(fields.take("on_change"), problems),
    };
    fields.finish(&[], problems);
    settings
}

/// A list, one hook by itself, or nothing.
fn list(node: Option<Node>, problems: &mut Problems) -> Vec<Hook> {
    let nodes = match node {
        None => Vec::new(),
        Some(node) => match node.value {
            Value::Null => Vec::new(),
            Value::Sequence(nodes) => nodes,
            value => vec![Node { value, ..node }],
        },
    };
    let hooks = nodes.into_iter();
    hooks.filter_map(|node| hook(node, problems)).collect()
}

fn hook(node: Node, problems: &mut Problems) -> Option<Hook> {
    let hint = "as in {slack: {url_file: /etc/vhostd/slack.url}}";
    if let Value::String(text) = &node.value
        && text.contains("://")
    {
        problems.add_unshown(node.at, "a URL is not a hook yet", hint);
        return None;
    }
    let mut fields = Fields::of(node, "a hook", problems)?;
    let at = fields.at;
    let mut found: Vec<(&str, Node)> = KINDS
        .iter()
        .filter_map(|kind| Some((*kind, fields.take(kind)?)))
        .collect();
    let misspelt = KINDS.iter().any(|kind| fields.given(kind));
    fields.finish(&[], problems);
    let hint = Some(hint);
    match (found.pop(), found.is_empty()) {
        (Some((kind, node)), true) => of_kind(kind, node, problems),
        (Some(_), false) => {
            problems.add_with_hint(at, "a hook is one of several kinds, not many", hint);
            None
        }
        (None, _) => {
            if !misspelt {
                problems.add_with_hint(at, "expected a hook, found an empty mapping", hint);
            }
            None
        }
    }
}

fn of_kind(kind: &str, node: Node, problems: &mut Problems) -> Option<Hook> {
    if kind == "command" {
        return argv(node, problems).map(Hook::Command);
    }
    // whoever knows the URL of one of these may write there: it does not belong into the settings
    let is_secret = matches!(kind, "discord" | "slack");
    if let Value::String(_) = node.value {
        let reason = format!("expected `{kind}` (a mapping), found a string");
        match is_secret {
            true => problems.add_unshown(node.at, &reason, SECRET_URL),
            false => {
                let hint = format!("as in {kind}: {{url: URL}}");
                problems.add_with_hint(node.at, reason, Some(hint));
            }
        }
        return None;
    }
    let mut fields = Fields::of(node, &format!("`{kind}`"), problems)?;
    let at = fields.at;
    let secret = match kind {
        "ntfy" => {
            fields.refuse_secret("token", "token_file", problems);
            secret(&mut fields, "token_file", "token_credential", problems)
        }
        "webhook" => {
            fields.refuse_secret("secret", "secret_file", problems);
            secret(&mut fields, "secret_file", "secret_credential", problems)
        }
        _ => None,
    };
    let url = url(&mut fields, is_secret, problems);
    let ca_file = match is_secret {
        true => None,
        false => fields
            .string("ca_file", problems)
            .and_then(|text| path(&text, problems)),
    };
    let given = ["url", "url_file", "url_credential"]
        .iter()
        .any(|key| fields.given(key));
    fields.finish(&[], problems);
    if url.is_none() && !given {
        let reason = format!("`{kind}` without a URL");
        let hint = match is_secret {
            true => "write `url_file: FILE` or `url_credential: NAME`",
            false => "write `url: URL`, `url_file: FILE` or `url_credential: NAME`",
        };
        problems.add_with_hint(at, reason, Some(hint));
    }
    let place = Place {
        url: url?,
        secret,
        ca_file,
    };
    match kind {
        "discord" => Some(Hook::Discord(place)),
        "ntfy" => Some(Hook::Ntfy(place)),
        "slack" => Some(Hook::Slack(place)),
        _ => Some(Hook::Webhook(place)),
    }
}

fn url(fields: &mut Fields, is_secret: bool, problems: &mut Problems) -> Option<UrlSource> {
    let at = fields.at;
    let elsewhere = secret(fields, "url_file", "url_credential", problems);
    if is_secret {
        if fields.has("url")
            && let Some(node) = fields.take("url")
        {
            problems.add_unshown(node.at, "this URL is a secret", SECRET_URL);
        }
        return elsewhere.map(UrlSource::Secret);
    }
    let here = fields.string("url", problems);
    match (here, elsewhere) {
        (Some(_), Some(_)) => {
            problems.add(at, "two URLs for one hook");
            None
        }
        (None, elsewhere) => elsewhere.map(UrlSource::Secret),
        (Some(text), None) => match HookUrl::parse(&text.value) {
            Ok(url) => Some(UrlSource::Here(url)),
            Err(error) => {
                let hint = "as in https://ntfy.sh/my-topic";
                problems.add_with_hint(text.at, error.to_string(), Some(hint));
                None
            }
        },
    }
}

fn secret(
    fields: &mut Fields,
    file: &'static str,
    credential: &'static str,
    problems: &mut Problems,
) -> Option<SecretSource> {
    let at = fields.at;
    let file_text = fields.string(file, problems);
    let name = fields.string(credential, problems);
    match (file_text, name) {
        (Some(_), Some(_)) => {
            problems.add(at, format!("both `{file}` and `{credential}`"));
            None
        }
        (Some(text), None) => path(&text, problems).map(SecretSource::File),
        (None, Some(name)) => credential_name(&name, problems),
        (None, None) => None,
    }
}

/// systemd.exec(5): a file name of ASCII characters.
fn credential_name(text: &Located<String>, problems: &mut Problems) -> Option<SecretSource> {
    let name = &text.value;
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
    if (1..=255).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.') {
        return Some(SecretSource::Credential(name.clone()));
    }
    let reason = format!("{}: not the name of a credential", quoted(name));
    let hint = "as in `LoadCredential=NAME:FILE` of the unit";
    problems.add_with_hint(text.at, reason, Some(hint));
    None
}

fn argv(node: Node, problems: &mut Problems) -> Option<Argv> {
    let at: Position = node.at;
    let list = matches!(node.value, Value::Sequence(_));
    let mut texts = yaml::strings(node, "a list of strings", problems).into_iter();
    let program = texts.next()?;
    let hint = Some("as in [/usr/local/bin/tell-me, --urgent]; there is no shell");
    if !list && program.value.contains(char::is_whitespace) {
        problems.add_with_hint(at, "a program and its arguments are a list", hint);
        return None;
    }
    let absolute = program.value.starts_with('/');
    let odd = |text: &Located<String>| text.value.contains('\0');
    let rest: Vec<_> = texts.collect();
    if !absolute || odd(&program) || rest.iter().any(odd) {
        problems.add_with_hint(program.at, "not the absolute path of a program", hint);
        return None;
    }
    Some(Argv {
        program: program.value.into(),
        arguments: rest.into_iter().map(|text| text.value).collect(),
    })
}

const SECRET_URL: &str =
    "its URL is a secret: put it into a file that only root can read, and write `url_file: FILE`";
const KINDS: [&str; 5] = ["slack", "discord", "ntfy", "webhook", "command"];

#[cfg(test)]
mod tests;
