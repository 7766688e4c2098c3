//! P: `pki__realms`: lists of `{domains: […]}`, each the identifiers of one certificate.

use std::collections::{BTreeMap, BTreeSet};

use super::{MAX_CERTIFICATE_NAMES, each, server_name_hint};
use crate::vhost::{App, Realm, ServerName, TlsDefaults, TlsMode, VhostSpec};
use crate::yaml::{Fields, Node, Problems, Value};

pub(super) fn parse(node: Option<Node>, problems: &mut Problems) -> Vec<Realm> {
    let Some(node) = node else {
        return Vec::new();
    };
    let items = match node.value {
        Value::Sequence(items) => items,
        other => {
            let reason = format!(
                "expected a list of {{domains: […]}}, found {}",
                other.kind()
            );
            problems.add(node.at, reason);
            return Vec::new();
        }
    };
    let mut realms = Vec::new();
    for item in items {
        realms.extend(realm(item, problems));
    }
    realms
}

fn realm(node: Node, problems: &mut Problems) -> Option<Realm> {
    let mut fields = Fields::of(node, "a realm", problems)?;
    let texts = fields.strings("domains", problems);
    if !fields.given("domains") {
        problems.add(fields.at, "`domains` is missing");
    }
    fields.finish(&[], problems);
    let domains = each(texts, problems, server_name_hint);
    (!domains.is_empty()).then_some(Realm { domains })
}

/// Refuses realms that could not be what was meant.
///
/// Each domain belongs to one realm and is answered by a vhost of this file (nobody orders
/// certificates for another app's names), and a realm has all names of a vhost or none. So a
/// certificate's name stands for one set of identifiers.
pub(super) fn refuse_unusable(app: &App, default_tls: &TlsDefaults, problems: &mut Problems) {
    refuse_domains(app, problems);
    let realms = Realms::of(app);
    for vhost in &app.vhosts {
        refuse_partial(&realms, vhost, problems);
    }
    refuse_mixed(&realms, app, default_tls, problems);
    refuse_long(&realms, app, default_tls, problems);
}

/// The realms by their domains, so that many of them take no longer than their text.
struct Realms<'a>(BTreeMap<&'a str, usize>);

impl<'a> Realms<'a> {
    fn of(app: &'a App) -> Self {
        let realms = app.realms.iter().enumerate();
        let domains = realms.flat_map(|(index, realm)| {
            let domains = realm.domains.iter();
            domains.map(move |domain| (domain.value.as_str(), index))
        });
        Self(domains.collect())
    }

    /// The realms that are good for `name`: that with the name, and that with the wildcard above
    /// it; see `desired::realm_covers`.
    fn covering(&self, name: &ServerName) -> impl Iterator<Item = usize> {
        let parent = name.as_str().split_once('.').map(|(_, parent)| parent);
        let wildcard = parent
            .filter(|_| !name.is_wildcard())
            .map(|parent| format!("*.{parent}"));
        let same = self.0.get(name.as_str()).copied();
        let above = wildcard.and_then(|wildcard| self.0.get(wildcard.as_str()).copied());
        same.into_iter()
            .chain(above.filter(move |above| Some(*above) != same))
    }

    fn covers(&self, realm: usize, name: &ServerName) -> bool {
        self.covering(name).any(|covering| covering == realm)
    }
}

fn refuse_domains(app: &App, problems: &mut Problems) {
    let names = app.vhosts.iter().flat_map(VhostSpec::all_names);
    let answered: BTreeSet<&ServerName> = names.map(|name| &name.value).collect();
    let mut seen = BTreeSet::new();
    for domain in app.realms.iter().flat_map(|realm| &realm.domains) {
        let shown = &domain.value;
        if !seen.insert(shown) {
            problems.add(
                domain.at,
                format!("`{shown}` is already in a realm of this file"),
            );
        } else if !answered.contains(shown) {
            problems.add_with_hint(
                domain.at,
                format!("no vhost of this file answers `{shown}`"),
                Some("add it to `server_name` or `redirect_from`, or take it out of the realm"),
            );
        }
    }
}

fn refuse_partial(realms: &Realms<'_>, vhost: &VhostSpec, problems: &mut Problems) {
    let mut seen = BTreeSet::new();
    for first in vhost.all_names() {
        for realm in realms.covering(&first.value).filter(|it| seen.insert(*it)) {
            let missing = vhost
                .all_names()
                .find(|name| !realms.covers(realm, &name.value));
            let Some(missing) = missing else { continue };
            problems.add_with_hint(
                missing.at,
                format!(
                    "the realm with `{}` lacks `{}` of the same vhost",
                    first.value, missing.value
                ),
                Some("a realm holds all names of a vhost, `redirect_from` included"),
            );
        }
    }
}

/// What no public CA puts into one certificate.
fn refuse_long(realms: &Realms<'_>, app: &App, default_tls: &TlsDefaults, problems: &mut Problems) {
    let auto = |vhost: &&VhostSpec| vhost.tls.or(default_tls).mode == TlsMode::Auto;
    let asked = app.vhosts.iter().filter(auto);
    let asked = asked.flat_map(|vhost| realms.covering(&vhost.server_names[0].value));
    for realm in asked.collect::<BTreeSet<_>>() {
        if let Some(beyond) = app.realms[realm].domains.get(MAX_CERTIFICATE_NAMES) {
            let reason = format!("a certificate holds at most {MAX_CERTIFICATE_NAMES} names");
            let hint = "make two realms of it";
            problems.add_with_hint(beyond.at, reason, Some(hint));
        }
    }
}

/// One certificate has one issuer.
fn refuse_mixed(
    realms: &Realms<'_>,
    app: &App,
    default_tls: &TlsDefaults,
    problems: &mut Problems,
) {
    let mut first = BTreeMap::new();
    for vhost in &app.vhosts {
        let tls = (vhost.tls.or(default_tls), &vhost.tls.files);
        let canonical = &vhost.server_names[0];
        if tls.0.mode == TlsMode::Off {
            continue;
        }
        for realm in realms.covering(&canonical.value) {
            if *first.entry(realm).or_insert_with(|| tls.clone()) != tls {
                problems.add(
                    canonical.at,
                    "the vhosts of one realm must have the same `tls`",
                );
            }
        }
    }
}
