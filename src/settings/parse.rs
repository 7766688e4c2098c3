//! P: the text of `vhostd.yml` → settings, or everything that is wrong with it.

mod ca; // P `acme.directory` as a list, and `external_account`
mod dns; // P `dns`: whom names are looked up with, and who publishes texts
mod provider; // P `dns.providers`
mod proxy; // P `acme.proxy`

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use super::hooks::hooks;
use super::origin;
use super::{AcmeSettings, DefaultServer, NginxSettings, SandboxPolicy, Settings, real_ip, users};
use crate::certificate::internal::scope::{Scope, Subtree};
use crate::diagnostic::{Diagnostic, Located};

use crate::vhost::parse::tls::path;
use crate::vhost::parse::{challenge, tls};
use crate::yaml::{self, Fields, Node, Problems, Value, quoted};

/// Parses the settings; what is absent has its default. An empty file is all defaults.
pub(super) fn parse(file: &Path, text: &str) -> Result<Settings, Vec<Diagnostic>> {
    let node = yaml::parse(file, text).map_err(|diagnostic| vec![diagnostic])?;
    let mut problems = Problems::of(file);
    let settings = match node.value {
        Value::Null => Some(Settings::default()),
        _ => Fields::of(node, "the settings", &mut problems)
            .map(|fields| settings(fields, &mut problems)),
    };
    problems.or(settings)
}

fn settings(mut fields: Fields, problems: &mut Problems) -> Settings {
    let mut settings = Settings::default();
    set_path(
        &mut settings.vhosts_dir,
        &mut fields,
        "vhosts_dir",
        problems,
    );
    if let Some(text) = fields.string("state_dir", problems) {
        set(&mut settings.state_dir, state_dir(&text, problems));
    }
    set_path(
        &mut settings.runtime_dir,
        &mut fields,
        "runtime_dir",
        problems,
    );
    set_path(
        &mut settings.templates_dir,
        &mut fields,
        "templates_dir",
        problems,
    );
    set_path(&mut settings.log_dir, &mut fields, "log_dir", problems);
    if let Some(section) = section(&mut fields, "nginx", problems) {
        nginx(&mut settings.nginx, section, problems);
    }
    let mut providers = Vec::new();
    if let Some(section) = section(&mut fields, "dns", problems) {
        (settings.dns, providers) = dns::dns(section, problems);
    }
    if let Some(section) = section(&mut fields, "acme", problems) {
        acme(&mut settings.acme, &providers, section, problems);
    }
    if let Some(section) = section(&mut fields, "real_ip", problems) {
        settings.real_ip = real_ip::parse(section, problems);
    }
    if let Some(section) = section(&mut fields, "internal_ca", problems) {
        settings.internal_ca.permit = permit(section, problems);
    }
    if let Some(section) = section(&mut fields, "hooks", problems) {
        settings.hooks = hooks(section, problems);
    }
    set(
        &mut settings.tls,
        fields
            .take("tls")
            .and_then(|node| tls::mode(node, problems)),
    );
    if let Some(text) = fields.string("sandbox", problems) {
        set(&mut settings.sandbox, sandbox(&text, problems));
    }
    let roots = fields.strings("roots", problems);
    if !roots.is_empty() {
        settings.roots = roots
            .iter()
            .filter_map(|root| path(root, problems))
            .collect();
    }
    if let Some(node) = fields.take("users") {
        settings.users = users::parse(node, problems);
    }
    if let Some(text) = fields.string("admin_group", problems) {
        settings.admin_group = group_name(&text, problems);
    }
    for (section, keys) in SECTIONS {
        fields.belong_below(section, keys);
    }
    fields.finish(&[], problems);
    settings
}

/// What group(5) can have: anything in its first field but white space and the separators.
fn group_name(text: &Located<String>, problems: &mut Problems) -> Option<String> {
    let refused = |char: char| char.is_control() || char.is_whitespace() || ":,".contains(char);
    if text.value.is_empty() || text.value.contains(refused) {
        let reason = format!("{} cannot be the name of a group", quoted(&text.value));
        problems.add_with_hint(text.at, reason, Some("write a name of `getent group`"));
        return None;
    }
    Some(text.value.clone())
}

fn nginx(settings: &mut NginxSettings, mut fields: Fields, problems: &mut Problems) {
    if let Some(text) = fields.string("binary", problems) {
        set(&mut settings.binary, binary(&text, problems));
    }
    set_path(&mut settings.config, &mut fields, "config", problems);
    if let Some(text) = fields.string("include", problems)
        && text.value != "auto"
    {
        settings.include = path(&text, problems);
    }
    if let Some(text) = fields.string("pid_file", problems) {
        settings.pid_file = path(&text, problems);
    }
    set(
        &mut settings.http_port,
        port(&mut fields, "http_port", problems),
    );
    let https_port = port(&mut fields, "https_port", problems);
    set(&mut settings.https_port, https_port);
    if settings.http_port == settings.https_port {
        problems.add(fields.at, "`http_port` and `https_port` are the same");
    }
    let listen = fields.strings("listen", problems);
    if !listen.is_empty() {
        settings.listen = Some(addresses(listen, problems));
    }
    let default_server = fields.take("default_server");
    set(
        &mut settings.default_server,
        default_server.and_then(|node| self::default_server(node, problems)),
    );
    fields.finish(&[], problems);
}

fn acme(
    settings: &mut AcmeSettings,
    providers: &[String],
    mut fields: Fields,
    problems: &mut Problems,
) {
    (settings.challenge, settings.dns) = challenge::default(&mut fields, providers, problems);
    let directories = fields.take("directory");
    let directories = directories.map(|node| ca::directories(node, problems));
    if let Some(text) = fields.string("staging", problems) {
        settings.staging = directory_url(&text, problems);
    }
    if let Some(text) = fields.string("email", problems) {
        settings.email = email(&text, problems);
    }
    if let Some(text) = fields.string("ca_file", problems) {
        settings.ca_file = path(&text, problems);
    }
    if let Some(text) = fields.string("profile", problems) {
        settings.profile = tls::profile(&text, problems);
    }
    let key_types = fields.take("key_type");
    set(
        &mut settings.key_types,
        key_types.and_then(|node| tls::key_types(node, problems)),
    );
    if let Some(node) = fields.take("reuse_key") {
        match node.value {
            Value::Bool(reuse) => settings.reuse_key = reuse,
            other => {
                let reason = format!("expected true or false, found {}", other.kind());
                problems.add(node.at, reason);
            }
        }
    }
    if let Some(text) = fields.string("renew", problems)
        && text.value != "auto"
    {
        let reason = format!("{} is not supported by this version", quoted(&text.value));
        problems.add_with_hint(text.at, reason, Some("write auto, or leave the key out"));
    }
    if let Some(node) = fields.take("proxy") {
        set(&mut settings.proxy.choice, proxy::choice(node, problems));
    }
    let external = fields.take("external_account");
    let external_at = external.as_ref().map(|node| node.at);
    settings.external_account = external.and_then(|node| ca::external_account(node, problems));
    fields.finish(&[], problems);
    ca::settle(
        settings,
        directories.unwrap_or_default(),
        external_at,
        problems,
    );
}

fn permit(mut fields: Fields, problems: &mut Problems) -> Option<Scope> {
    let texts = fields.strings("permit", problems);
    fields.finish(&[], problems);
    let mut subtrees = Vec::new();
    for Located { value, at } in &texts {
        match Subtree::parse(value) {
            Ok(subtree) => subtrees.push(subtree),
            Err(error) => {
                let reason = format!("{}: {error}", quoted(value));
                let hint = "zones and networks, as in example.internal or 10.0.0.0/8";
                problems.add_with_hint(*at, reason, Some(hint));
            }
        }
    }
    (!texts.is_empty()).then(|| subtrees.into_iter().collect())
}

/// A mapping, or nothing: a section whose keys are all commented out.
fn section(fields: &mut Fields, key: &'static str, problems: &mut Problems) -> Option<Fields> {
    let node = fields.take(key)?;
    match node.value {
        Value::Null => None,
        Value::Sequence(_) if key == "hooks" => {
            let reason = "expected `hooks` (a mapping), found a list";
            let hint = "hooks are listed below `on_failure` or `on_change`";
            problems.add_with_hint(node.at, reason, Some(hint));
            None
        }
        _ => Fields::of(node, &format!("`{key}`"), problems),
    }
}

fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

fn set_path(target: &mut PathBuf, fields: &mut Fields, key: &'static str, problems: &mut Problems) {
    if let Some(text) = fields.string(key, problems) {
        set(target, path(&text, problems));
    }
}

/// nginx's `include` reads files below it, by a word without quotes that could be a pattern.
fn state_dir(text: &Located<String>, problems: &mut Problems) -> Option<PathBuf> {
    let odd = |c: char| c.is_whitespace() || "*?[".contains(c);
    if text.value.contains(odd) {
        let reason = "a space, `*`, `?` or `[` in the path that nginx includes files from";
        problems.add(text.at, reason);
        return None;
    }
    path(text, problems)
}

/// A plain name, found on PATH, or an absolute path.
fn binary(text: &Located<String>, problems: &mut Problems) -> Option<PathBuf> {
    if !text.value.is_empty() && !text.value.contains('/') && !text.value.contains(char::is_control)
    {
        return Some(PathBuf::from(&text.value));
    }
    path(text, problems)
}

fn port(fields: &mut Fields, key: &'static str, problems: &mut Problems) -> Option<u16> {
    let Located { value, at } = fields.integer(key, problems)?;
    let port = u16::try_from(value).ok().filter(|port| *port > 0);
    if port.is_none() {
        problems.add(at, "not a port: a number from 1 to 65535");
    }
    port
}

/// `0.0.0.0`, `::` or, as nginx's `listen` writes it, `[::]`.
fn addresses(texts: Vec<Located<String>>, problems: &mut Problems) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for Located { value: text, at } in texts {
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .filter(|inner| inner.contains(':'))
            .unwrap_or(&text);
        match bare.parse::<IpAddr>() {
            Ok(address) if addresses.contains(&address) => {
                problems.add(at, format!("`{address}` is listed twice"));
            }
            Ok(address) => addresses.push(address),
            Err(_) => {
                let hint = if text.parse::<SocketAddr>().is_ok() {
                    "leave the port out: it is in `http_port` and `https_port`"
                } else {
                    "as in \"0.0.0.0\" or \"[::]\""
                };
                let reason = format!("{}: not an IP address", quoted(&text));
                problems.add_with_hint(at, reason, Some(hint));
            }
        }
    }
    addresses
}

fn default_server(node: Node, problems: &mut Problems) -> Option<DefaultServer> {
    // YAML 1.1: `on` and `off` are booleans
    if let Value::Bool(on) = node.value {
        return Some(if on {
            DefaultServer::On
        } else {
            DefaultServer::Off
        });
    }
    let text = yaml::string(node, "auto, on or off", problems)?;
    match text.value.as_str() {
        "auto" => Some(DefaultServer::Auto),
        "on" => Some(DefaultServer::On),
        "off" => Some(DefaultServer::Off),
        other => {
            problems.unknown_word(text.at, other, &["auto", "on", "off"]);
            None
        }
    }
}

fn sandbox(text: &Located<String>, problems: &mut Problems) -> Option<SandboxPolicy> {
    match text.value.as_str() {
        "auto" => Some(SandboxPolicy::Auto),
        "require" => Some(SandboxPolicy::Require),
        other => {
            problems.unknown_word(text.at, other, &["auto", "require"]);
            None
        }
    }
}

/// RFC 8555 §6.1 requires https. Plain http is for a test server on this host.
fn directory_url(text: &Located<String>, problems: &mut Problems) -> Option<String> {
    match origin::checked(&text.value) {
        Ok(_) => Some(text.value.clone()),
        Err(error) => {
            let reason = format!("{}: {error}", quoted(&text.value));
            let hint = "as in https://acme-v02.api.letsencrypt.org/directory";
            problems.add_with_hint(text.at, reason, Some(hint));
            None
        }
    }
}

fn email(text: &Located<String>, problems: &mut Problems) -> Option<String> {
    let plain = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !b",@?<>".contains(&byte))
    };
    let address = text.value.split_once('@');
    if address.is_some_and(|(user, host)| plain(user) && plain(host))
        && !text.value.starts_with("mailto:")
    {
        return Some(text.value.clone());
    }
    let reason = format!("{}: not an e-mail address", quoted(&text.value));
    problems.add_with_hint(
        text.at,
        reason,
        Some("as in admin@example.com, without mailto:"),
    );
    None
}

/// What is written at the top by whoever forgets the section.
const SECTIONS: &[(&str, &[&str])] = &[
    (
        "acme",
        &[
            "ca_file",
            "challenge",
            "directory",
            "email",
            "external_account",
            "key_type",
            "profile",
            "proxy",
            "reuse_key",
            "staging",
        ],
    ),
    ("dns", &["providers", "resolvers"]),
    ("hooks", &["on_change", "on_failure"]),
    ("internal_ca", &["permit"]),
    (
        "nginx",
        &[
            "binary",
            "config",
            "default_server",
            "http_port",
            "https_port",
            "include",
            "listen",
            "pid_file",
        ],
    ),
];

#[cfg(test)]
mod tests;
