//! P: the text of a vhost file → its app, or everything that is wrong with it.

pub(crate) mod assets; // P cache_assets
pub(crate) mod challenge; // P `challenge` and `dns`, of a vhost and of the settings
mod realms; // P pki__realms
pub(crate) mod tls; // P the `tls` key, and what the settings share with it

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{
    App, AppName, NO_OWNER, NameError, PathError, Realm, RootDir, ServerName, TlsDefaults, TlsMode,
    TlsSpec, Upstream, UpstreamError, VhostName, VhostSpec,
};
use crate::diagnostic::{Diagnostic, Located, Position};
use crate::yaml::{self, Fields, Node, Problems, Value, quoted};

/// Parses a vhost file, in one of its three forms (docs/vhost-file.md).
///
/// The app belongs to no user until [`App::owned_by`] says. `roots` and `default_tls` are the settings': what a `root` must lie below, and what a vhost
/// without a `tls` key gets. All errors of the file are returned, in its order, each at the
/// scalar that is wrong; a syntax error is alone.
pub fn parse(
    app: &AppName,
    file: &Path,
    text: &str,
    roots: &[PathBuf],
    default_tls: &TlsDefaults,
) -> Result<App, Vec<Diagnostic>> {
    let node = yaml::parse(file, text).map_err(|diagnostic| vec![diagnostic])?;
    let mut problems = Problems::of(file);
    let reading = Reading {
        app,
        roots,
        default_tls,
    };
    let parsed = reading.app(file, node, &mut problems);
    if let Some(app) = &parsed {
        refuse_repeated_names(app, &mut problems);
        realms::refuse_unusable(app, default_tls, &mut problems);
    }
    problems.or(parsed)
}

/// What the parsing of one file refers to.
struct Reading<'a> {
    app: &'a AppName,
    roots: &'a [PathBuf],
    default_tls: &'a TlsDefaults,
}

impl Reading<'_> {
    fn app(&self, file: &Path, node: Node, problems: &mut Problems) -> Option<App> {
        let (vhosts, realms) = match node.value {
            Value::Null => {
                problems.add_with_hint(
                    node.at,
                    "the file is empty",
                    Some("write at least `server_name` and `proxy_pass_url` or `root`"),
                );
                return None;
            }
            Value::Sequence(items) => (self.list(node.at, items, problems), Vec::new()),
            Value::Mapping(_) => {
                let fields = Fields::of(node, "a vhost", problems)?;
                if is_ansible(&fields) {
                    self.ansible(fields, problems)
                } else {
                    let only = self.vhost(VhostName::only(self.app), fields, problems);
                    (only.into_iter().collect(), Vec::new())
                }
            }
            other => {
                let reason = format!("expected a vhost (a mapping), found {}", other.kind());
                problems.add_with_hint(
                    node.at,
                    reason,
                    Some("as in server_name: hello.example.com"),
                );
                return None;
            }
        };
        (!vhosts.is_empty()).then(|| App {
            name: self.app.clone(),
            file: file.to_path_buf(),
            uid: NO_OWNER,
            vhosts,
            realms,
        })
    }

    /// The form of Ansible's users: `nginx__vhosts`, and `pki__realms` beside it.
    fn ansible(&self, mut fields: Fields, problems: &mut Problems) -> (Vec<VhostSpec>, Vec<Realm>) {
        let vhosts = match fields.take(ANSIBLE_VHOSTS) {
            Some(Node {
                at,
                value: Value::Sequence(items),
            }) => self.list(at, items, problems),
            Some(node) => {
                let found = node.value.kind();
                problems.add(node.at, format!("expected a list of vhosts, found {found}"));
                Vec::new()
            }
            None => {
                if !fields.given(ANSIBLE_VHOSTS) {
                    problems.add(fields.at, format!("`{ANSIBLE_VHOSTS}` is missing"));
                }
                Vec::new()
            }
        };
        let realms = realms::parse(fields.take(ANSIBLE_REALMS), problems);
        fields.finish(&[], problems);
        (vhosts, realms)
    }

    fn list(&self, at: Position, items: Vec<Node>, problems: &mut Problems) -> Vec<VhostSpec> {
        if items.is_empty() {
            problems.add(at, "the list of vhosts is empty");
        }
        let mut vhosts = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            if problems.give_up() {
                break;
            }
            let name = VhostName::nth(self.app, index);
            vhosts.extend(
                Fields::of(item, "a vhost", problems)
                    .and_then(|fields| self.vhost(name, fields, problems)),
            );
        }
        vhosts
    }

    fn vhost(
        &self,
        name: VhostName,
        mut fields: Fields,
        problems: &mut Problems,
    ) -> Option<VhostSpec> {
        let at = fields.at;
        let server_names = each(
            fields.strings("server_name", problems),
            problems,
            server_name_hint,
        );
        let redirect_from = each(
            fields.strings("redirect_from", problems),
            problems,
            server_name_hint,
        );
        refuse_redirect_to_wildcard(&server_names, &redirect_from, problems);
        let root = self.root(&mut fields, problems);
        let upstreams = upstreams(&mut fields, problems);
        let cache_assets = assets::parse(fields.take("cache_assets"), problems);
        let tls = tls::parse(fields.take("tls"), self.default_tls, problems);
        if !fields.given("server_name") {
            let hint = "the names that it answers, as in server_name: hello.example.com";
            problems.add_with_hint(at, "`server_name` is missing", Some(hint));
        }
        if !fields.given("root") && !fields.given("proxy_pass_url") {
            let hint = "a vhost needs one of them, or both";
            problems.add_with_hint(
                at,
                "neither `root` nor `proxy_pass_url` says what to serve",
                Some(hint),
            );
        }
        fields.belong_below("tls", tls::KEYS);
        fields.finish(PLANNED_KEYS, problems);
        let names = || server_names.iter().chain(&redirect_from);
        let asked = tls.or(self.default_tls);
        // what is in files was asked for by somebody else
        if asked.mode == TlsMode::Auto && tls.files.is_none() {
            refuse_unobtainable(names(), &tls, self.default_tls, problems);
            refuse_profile(names(), &asked, problems);
        }
        (!server_names.is_empty()).then_some(VhostSpec {
            name,
            at,
            server_names,
            redirect_from,
            root,
            upstreams,
            cache_assets,
            tls,
        })
    }

    fn root(&self, fields: &mut Fields, problems: &mut Problems) -> Option<RootDir> {
        let Located { value, at } = fields.string("root", problems)?;
        match RootDir::parse(&value, at, self.roots) {
            Ok(root) => Some(root),
            Err(error @ PathError::Outside { .. }) => {
                problems.add_not_permitted(at, error.to_string(), error.hint());
                None
            }
            Err(error) => {
                problems.add_with_hint(at, error.to_string(), Some(error.hint()));
                None
            }
        }
    }
}

/// Also where one of its keys is misspelt, so that the right one is suggested.
fn is_ansible(fields: &Fields) -> bool {
    let keys = [ANSIBLE_VHOSTS, ANSIBLE_REALMS];
    keys.iter().any(|key| fields.has(key)) || (!fields.has("server_name") && fields.has_like(&keys))
}

/// Parses each text; what is wrong is left out and reported as "`text`: why". Of a list that is wrong
/// all through, the rest is not looked at.
fn each<T: FromStr<Err: Display>, H: Into<String>>(
    texts: Vec<Located<String>>,
    problems: &mut Problems,
    hint: impl Fn(&T::Err, &str) -> Option<H>,
) -> Vec<Located<T>> {
    let (mut parsed, mut wrong) = (Vec::new(), 0);
    for Located { value: text, at } in texts {
        match text.parse() {
            Ok(value) => parsed.push(Located { value, at }),
            Err(_) if wrong == MAX_WRONG => break,
            Err(error) => {
                wrong += 1;
                let reason = format!("{}: {error}", quoted(&text));
                problems.add_with_hint(at, reason, hint(&error, &text));
            }
        }
    }
    parsed
}

fn server_name_hint(error: &NameError, text: &str) -> Option<String> {
    if let NameError::Character(_) | NameError::Host = error
        && let Some(meant) = ServerName::suggested_for(text)
    {
        return Some(format!("did you mean `{meant}`?"));
    }
    error.hint().map(str::to_owned)
}

/// All of one scheme, none twice: they become one nginx upstream.
fn upstreams(fields: &mut Fields, problems: &mut Problems) -> Vec<Upstream> {
    let mut texts = fields.strings("proxy_pass_url", problems);
    if let Some(beyond) = texts.get(MAX_UPSTREAMS) {
        problems.add(beyond.at, format!("more than {MAX_UPSTREAMS} upstreams"));
    }
    texts.truncate(MAX_UPSTREAMS);
    let upstreams: Vec<Located<Upstream>> =
        each(texts, problems, |error: &UpstreamError, _: &str| {
            error.hint()
        });
    for (index, upstream) in upstreams.iter().enumerate() {
        let before = &upstreams[..index];
        if before.iter().any(|other| other.value == upstream.value) {
            problems.add(upstream.at, format!("`{}` is listed twice", upstream.value));
        } else if before
            .first()
            .is_some_and(|first| first.value.scheme() != upstream.value.scheme())
        {
            problems.add_with_hint(
                upstream.at,
                "http:// and https:// in one list",
                Some("every `proxy_pass_url` of a vhost must have the same scheme"),
            );
        }
    }
    upstreams
        .into_iter()
        .map(|upstream| upstream.value)
        .collect()
}

/// What no challenge at hand can prove (RFC 8555 §8.4, RFC 8738), and what no public CA puts into
/// one certificate.
fn refuse_unobtainable<'a>(
    names: impl Iterator<Item = &'a Located<ServerName>>,
    tls: &TlsSpec,
    default_tls: &TlsDefaults,
    problems: &mut Problems,
) {
    const HINT: &str = "set `tls: internal` (vhostd's own CA) or `tls: off` for this vhost";
    let effective = tls.or(default_tls);
    for (index, name) in names.enumerate() {
        let shown = &name.value;
        if effective.challenge_of([&shown.to_identifier()]).is_none() {
            let (why, hint) = challenge::no_way(tls.challenge.as_ref(), &default_tls.providers);
            let reason = format!("a certificate for `{shown}` needs dns-01, {why}");
            problems.add_with_hint(name.at, reason, Some(hint));
        } else if index == MAX_CERTIFICATE_NAMES {
            let reason = format!("a certificate holds at most {MAX_CERTIFICATE_NAMES} names");
            problems.add_with_hint(name.at, reason, Some(HINT));
        }
    }
}

/// What the CA is known to refuse: an address with another profile than the one that takes them.
fn refuse_profile<'a>(
    mut names: impl Iterator<Item = &'a Located<ServerName>>,
    tls: &TlsDefaults,
    problems: &mut Problems,
) {
    let (Some(only), Some(profile)) = (tls.address_profile, &tls.profile) else {
        return;
    };
    if only == profile {
        return;
    }
    if let Some(name) = names.find(|name| name.value.is_address()) {
        let reason = format!(
            "Let's Encrypt gives certificates for addresses such as `{}` with the profile `{only}` alone, not `{profile}`",
            name.value
        );
        let hint = format!("set `tls: {{profile: {only}}}` for this vhost");
        problems.add_with_hint(name.at, reason, Some(&hint));
    }
}

/// A redirect has one target: a wildcard is none.
fn refuse_redirect_to_wildcard(
    server_names: &[Located<ServerName>],
    redirect_from: &[Located<ServerName>],
    problems: &mut Problems,
) {
    let is_target = |name: &Located<ServerName>| !name.value.is_wildcard();
    // names that are wrong are told, and might have been targets
    let (Some(first), false) = (redirect_from.first(), server_names.is_empty()) else {
        return;
    };
    if !server_names.iter().any(is_target) {
        let reason = format!(
            "`{}` has no name to redirect to: `server_name` has wildcards alone",
            first.value
        );
        let hint = "add a name without `*` to `server_name`: the first of those is the target";
        problems.add_with_hint(first.at, reason, Some(hint));
    }
}

/// A name answers in one place: twice in one file is a mistake, whichever was meant.
fn refuse_repeated_names(app: &App, problems: &mut Problems) {
    let mut seen = BTreeMap::new();
    for name in app.vhosts.iter().flat_map(VhostSpec::all_names) {
        if let Some(line) = seen.insert(&name.value, name.at.line) {
            let reason = format!("`{}` is already in line {line} of this file", name.value);
            problems.add(name.at, reason);
        }
    }
}

const ANSIBLE_VHOSTS: &str = "nginx__vhosts";
const ANSIBLE_REALMS: &str = "pki__realms";

/// Let's Encrypt's limit for one order.
const MAX_CERTIFICATE_NAMES: usize = 100;

/// Of one list: more than anybody counts.
const MAX_WRONG: usize = 1_000;
/// Of one vhost.
const MAX_UPSTREAMS: usize = 100;

/// Keys that the documentation names and a later version brings.
const PLANNED_KEYS: &[&str] = &[
    "access_log",
    "allow",
    "balance",
    "basic_auth",
    "client_max_body_size",
    "compression",
    "deny",
    "error_pages",
    "forward_auth",
    "headers",
    "health_check",
    "http3",
    "locations",
    "maintenance",
    "micro_cache",
    "rate_limit",
    "timeouts",
];

#[cfg(test)]
mod tests;
