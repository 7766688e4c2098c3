//! P: `pki__realms`: lists of `{domains: […]}`, each the identifiers of one certificate.

use super::{each, server_name_hint};
use crate::desired;
use crate::diagnostic::Located;
use crate::vhost::{App, Realm, ServerName, TlsMode, VhostSpec};
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
pub(super) fn refuse_unusable(app: &App, default_tls: TlsMode, problems: &mut Problems) {
    for (index, realm) in app.realms.iter().enumerate() {
        for (place, domain) in realm.domains.iter().enumerate() {
            refuse_domain(app, index, place, domain, problems);
        }
        for vhost in &app.vhosts {
            refuse_partial(realm, vhost, problems);
        }
        refuse_mixed(app, realm, default_tls, problems);
    }
}

fn refuse_domain(
    app: &App,
    realm: usize,
    place: usize,
    domain: &Located<ServerName>,
    problems: &mut Problems,
) {
    let shown = &domain.value;
    let mut earlier = app.realms[..realm]
        .iter()
        .flat_map(|realm| &realm.domains)
        .chain(&app.realms[realm].domains[..place]);
    if earlier.any(|other| other.value == domain.value) {
        problems.add(
            domain.at,
            format!("`{shown}` is already in a realm of this file"),
        );
        return;
    }
    let mut names = app.vhosts.iter().flat_map(VhostSpec::all_names);
    if !names.any(|name| name.value == domain.value) {
        problems.add_with_hint(
            domain.at,
            format!("no vhost of this file answers `{shown}`"),
            Some("add it to `server_name` or `redirect_from`, or take it out of the realm"),
        );
    }
}

fn refuse_partial(realm: &Realm, vhost: &VhostSpec, problems: &mut Problems) {
    let inside = |name: &&Located<ServerName>| desired::realm_covers(realm, &name.value);
    let (Some(first), Some(missing)) = (
        vhost.all_names().find(inside),
        vhost.all_names().find(|name| !inside(name)),
    ) else {
        return;
    };
    problems.add_with_hint(
        missing.at,
        format!(
            "the realm with `{}` lacks `{}` of the same vhost",
            first.value, missing.value
        ),
        Some("a realm holds all names of a vhost, `redirect_from` included"),
    );
}

/// One certificate has one issuer.
fn refuse_mixed(app: &App, realm: &Realm, default_tls: TlsMode, problems: &mut Problems) {
    let mut first = None;
    for vhost in &app.vhosts {
        let mode = vhost.tls.unwrap_or(default_tls);
        let canonical = &vhost.server_names[0];
        if mode == TlsMode::Off || !desired::realm_covers(realm, &canonical.value) {
            continue;
        }
        if *first.get_or_insert(mode) != mode {
            problems.add(
                canonical.at,
                "the vhosts of one realm must have the same `tls`",
            );
        }
    }
}
