//! P: accepted apps and certificates → what nginx should serve.

use std::collections::BTreeMap;
use std::path::PathBuf;

use time::OffsetDateTime;

use super::{CertificateFiles, DesiredState, DesiredTls, DesiredVhost, HostFacts};
use crate::certificate::{CertificateInventory, Challenge, Identifier, Issuer, WantedCertificate};
use crate::vhost::{App, Realm, ServerName, TlsDefaults, TlsMode, VhostSpec};

/// The certificates that each vhost of `app` should have, in its order: one for each type of key, the
/// first of which has a placeholder while none is there; none for plain HTTP.
///
/// The realm that holds all names of the vhost gives the identifiers, else the vhost's own names.
pub fn wanted(app: &App, default: &TlsDefaults) -> Vec<Vec<WantedCertificate>> {
    let of_vhost = |vhost| certificates(app, vhost, default);
    app.vhosts.iter().map(of_vhost).collect()
}

fn certificates(app: &App, vhost: &VhostSpec, default: &TlsDefaults) -> Vec<WantedCertificate> {
    let tls = vhost.tls.or(default);
    let issuer = match tls.mode {
        TlsMode::Auto if vhost.tls.files.is_some() => Issuer::File,
        TlsMode::Auto => Issuer::Acme,
        TlsMode::Internal => Issuer::Internal,
        TlsMode::Off => return Vec::new(),
    };
    let Some(wanted) = WantedCertificate::new(identifiers(app, vhost), issuer) else {
        return Vec::new();
    };
    let challenge = tls.challenge_of(&wanted.identifiers);
    let any_address = || wanted.identifiers.iter().any(Identifier::is_address);
    let profile = match (issuer, tls.profile) {
        (Issuer::Acme, None) if any_address() => tls.address_profile.map(str::to_owned),
        (_, profile) => profile,
    };
    let challenge = match issuer {
        // refused where there is no way
        Issuer::Acme => challenge.unwrap_or_default(),
        _ => Challenge::default(),
    };
    let first = WantedCertificate {
        profile,
        challenge,
        key_type: tls.key_types.first(),
        files: vhost.tls.files.clone(),
        uid: app.uid,
        app: Some(app.name.as_str().into()),
        ..wanted
    };
    let further = tls.key_types.second();
    // files hold one pair
    let further = further.filter(|_| issuer != Issuer::File);
    let further = further.map(|second| first.further(second));
    std::iter::once(first).chain(further).collect()
}

fn identifiers(app: &App, vhost: &VhostSpec) -> Vec<Identifier> {
    let covering = app.realms.iter().find(|realm| {
        vhost
            .all_names()
            .all(|name| realm_covers(realm, &name.value))
    });
    match covering {
        Some(realm) => realm
            .domains
            .iter()
            .map(|domain| domain.value.to_identifier())
            .collect(),
        None => vhost
            .all_names()
            .map(|name| name.value.to_identifier())
            .collect(),
    }
}

/// Whether a certificate for `realm` is good for `name`: itself, or one label below a wildcard
/// (RFC 6125 §6.4.3; nginx's wildcards go deeper).
fn realm_covers(realm: &Realm, name: &ServerName) -> bool {
    realm.domains.iter().any(|domain| {
        let zone = domain.value.as_str().strip_prefix("*.");
        let parent = name.as_str().split_once('.').map(|(_, parent)| parent);
        domain.value == *name || (zone.is_some() && zone == parent && !name.is_wildcard())
    })
}

/// Everything that nginx should serve.
///
/// The caller has stored at least a placeholder for every certificate that [`wanted`] names:
/// [`DesiredError::NoCertificate`] lists those that are missing. `host.https` is emptied where no
/// vhost has TLS, so that the port stays free. `links_checked_below` is of each root
/// (`root::links_checked_below`).
pub fn desired(
    apps: &[App],
    host: HostFacts,
    links_checked_below: &BTreeMap<PathBuf, PathBuf>,
    default_tls: &TlsDefaults,
    inventory: &CertificateInventory,
    now: OffsetDateTime,
) -> Result<DesiredState, DesiredError> {
    let mut vhosts = Vec::new();
    let mut missing: Vec<WantedCertificate> = Vec::new();
    for app in apps {
        for (spec, wanted) in app.vhosts.iter().zip(wanted(app, default_tls)) {
            match tls(spec, wanted, inventory, now) {
                Ok(tls) => vhosts.push(DesiredVhost {
                    spec: spec.clone(),
                    links_checked_below: spec
                        .root
                        .as_ref()
                        .and_then(|root| links_checked_below.get(root.as_path()).cloned()),
                    tls,
                }),
                Err(wanted) => {
                    missing.extend(wanted.map(|it| *it).filter(|it| !missing.contains(it)))
                }
            }
        }
    }
    if !missing.is_empty() {
        return Err(DesiredError::NoCertificate { missing });
    }
    vhosts.sort_by(|left, right| left.spec.name.cmp(&right.spec.name));
    Ok(DesiredState {
        host: without_idle_https(host, &vhosts),
        vhosts,
        kept: Vec::new(),
    })
}

fn tls(
    vhost: &VhostSpec,
    wanted: Vec<WantedCertificate>,
    inventory: &CertificateInventory,
    now: OffsetDateTime,
) -> Result<DesiredTls, Option<Box<WantedCertificate>>> {
    if wanted.is_empty() {
        return Ok(DesiredTls::Off);
    }
    let served = inventory.served(&wanted, now);
    if served.is_empty() {
        return Err(wanted.into_iter().next().map(Box::new));
    }
    let files = served.iter().copied().map(CertificateFiles::from).collect();
    let is_placeholder = served.iter().any(|it| it.issuer == Issuer::Placeholder);
    // a client may get any of them
    let covered = |name: &ServerName| {
        let identifier = [name.to_identifier()];
        served.iter().all(|stored| stored.covers(&identifier))
    };
    let uncovered = vhost.all_names().map(|name| &name.value);
    let uncovered: Vec<_> = uncovered.filter(|name| !covered(name)).cloned().collect();
    let trusted = !is_placeholder && uncovered.len() < vhost.all_names().count();
    let of_all = served.iter().flat_map(|stored| stored.identifiers.iter());
    Ok(DesiredTls::On {
        files,
        covered: of_all.cloned().collect(),
        trusted,
        uncovered: if trusted { uncovered } else { Vec::new() },
        wanted,
    })
}

fn without_idle_https(mut host: HostFacts, vhosts: &[DesiredVhost]) -> HostFacts {
    let tls = |vhost: &DesiredVhost| matches!(vhost.tls, DesiredTls::On { .. });
    if !vhosts.iter().any(tls) {
        host.https.clear();
    }
    host
}

/// Why there is no desired state. Retrying helps once the certificates are stored.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum DesiredError {
    #[error("resolve the vhosts: {} certificates have not even a placeholder", missing.len())]
    NoCertificate { missing: Vec<WantedCertificate> },
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::certificate::{CertificateName, StoredCertificate, Validity};
    use crate::desired::{Features, Listener, Probe};
    use crate::settings::KeyType;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn app(text: &str) -> App {
        let name = "hello".parse().unwrap();
        let roots = [PathBuf::from("/srv")];
        crate::vhost::parse::parse(
            &name,
            Path::new("h.yml"),
            text,
            &roots,
            &TlsMode::Auto.into(),
        )
        .unwrap()
    }

    fn host() -> HostFacts {
        let listener = Listener {
            address: "0.0.0.0:443".parse().unwrap(),
            default_server: true,
            http2: true,
        };
        HostFacts {
            http: vec![listener],
            https: vec![listener],
            features: Features::default(),
            thumbprint: None,
            challenge_files: None,
            probe: Probe {
                secret: "s".into(),
                certificate: CertificateFiles {
                    chain: "/c".into(),
                    key: "/k".into(),
                },
            },
            real_ip: None,
            log_dir: "/var/log/nginx".into(),
            names_hash_bucket_size: None,
        }
    }

    fn stored(names: &[&str], issuer: Issuer) -> (CertificateName, StoredCertificate) {
        let identifiers: Vec<_> = names
            .iter()
            .map(|name| Identifier::Dns((*name).into()))
            .collect();
        let name = CertificateName::of(&identifiers[0]);
        let stored = StoredCertificate {
            uid: None,
            name: name.clone(),
            serial: "01".into(),
            issuer,
            identifiers,
            validity: Validity {
                not_before: NOW,
                not_after: NOW,
            },
            origin: None,
            adopted: false,
            key_type: None,
            chain: format!("/{issuer:?}.pem").into(),
            key: "/k".into(),
            leaf: Vec::new(),
        };
        (name, stored)
    }

    fn wanted_names(app: &App) -> Vec<Option<Vec<String>>> {
        wanted(app, &TlsMode::Auto.into())
            .into_iter()
            .map(|wanted| {
                let first = wanted.first()?;
                Some(first.identifiers.iter().map(ToString::to_string).collect())
            })
            .collect()
    }

    #[test]
    fn a_vhost_wants_its_names_or_the_realm_that_has_all_of_them() {
        let file = app(
            "pki__realms: [{domains: [b.example, a.example]}]\nnginx__vhosts:\n\
             - {server_name: a.example, root: /srv/a}\n\
             - {server_name: b.example, root: /srv/a}\n\
             - {server_name: c.example, redirect_from: www.c.example, root: /srv/a}\n\
             - {server_name: d.example, root: /srv/a, tls: off}\n",
        );
        let realm = Some(vec!["b.example".to_owned(), "a.example".to_owned()]);
        let own = Some(vec!["c.example".to_owned(), "www.c.example".to_owned()]);
        assert_eq!(wanted_names(&file), [realm.clone(), realm, own, None]);
    }

    #[test]
    fn each_type_of_key_is_a_certificate_of_its_own() {
        let file = app("server_name: a.example\nroot: /srv/a\n\
             tls: {key_type: [rsa-2048, ecdsa-p256], profile: classic}\n");
        let [wanted] = &wanted(&file, &TlsMode::Auto.into())[..] else {
            panic!("one vhost")
        };
        let names: Vec<&str> = wanted.iter().map(|wanted| wanted.name.as_str()).collect();
        assert_eq!(names, ["a.example", "a.example+rsa-2048"]);
        assert_eq!(wanted[0].key_type, KeyType::EcdsaP256);
        assert_eq!(wanted[1].profile.as_deref(), Some("classic"));
        assert_eq!(
            CertificateName::from_file_name(names[1]),
            Some(wanted[1].name.clone())
        );
    }

    #[test]
    fn a_placeholder_is_served_only_where_nothing_else_is() {
        let file = app("server_name: a.example\nroot: /srv/a\n\
             tls: {key_type: [ecdsa-p256, rsa-2048]}\n");
        let wanted = wanted(&file, &TlsMode::Auto.into()).remove(0);
        let mut inventory = CertificateInventory::default();
        let issuers = |inventory: &CertificateInventory| {
            let served = inventory.served(&wanted, NOW);
            served
                .iter()
                .map(|stored| stored.issuer)
                .collect::<Vec<_>>()
        };
        assert_eq!(issuers(&inventory), []);
        let real = |wanted: &WantedCertificate, key_type| {
            let stored = StoredCertificate {
                name: wanted.name.clone(),
                key_type: Some(key_type),
                ..stored(&["a.example"], Issuer::Acme).1
            };
            (wanted.name.clone(), stored)
        };
        let placeholder = stored(&["a.example"], Issuer::Placeholder);
        inventory.placeholders.extend([placeholder]);
        assert_eq!(issuers(&inventory), [Issuer::Placeholder]);
        let further = real(&wanted[1], KeyType::Rsa2048);
        inventory.certificates.extend([further]);
        assert_eq!(issuers(&inventory), [Issuer::Acme]);
        // still of the type that was wanted before: nginx takes one of a kind
        let before = real(&wanted[0], KeyType::Rsa2048);
        inventory.certificates.extend([before]);
        assert_eq!(issuers(&inventory), [Issuer::Acme]);
        let first = real(&wanted[0], KeyType::EcdsaP256);
        inventory.certificates.extend([first]);
        assert_eq!(issuers(&inventory), [Issuer::Acme, Issuer::Acme]);
    }

    #[test]
    fn a_wildcard_realm_covers_one_label_only() {
        let file = app(
            "pki__realms: [{domains: ['*.x.example']}]\nnginx__vhosts:\n\
             - {server_name: '*.x.example', root: /srv/a, tls: internal}\n\
             - {server_name: a.x.example, root: /srv/a, tls: internal}\n\
             - {server_name: a.b.x.example, root: /srv/a, tls: internal}\n",
        );
        let first = |it: &Option<Vec<String>>| it.as_ref().unwrap()[0].clone();
        let firsts: Vec<String> = wanted_names(&file).iter().map(first).collect();
        assert_eq!(firsts, ["*.x.example", "*.x.example", "a.b.x.example"]);
    }

    #[test]
    fn only_a_certificate_that_is_no_placeholder_is_trusted() {
        let apps = [app("server_name: a.example\nroot: /srv/a\n")];
        let mut inventory = CertificateInventory::default();
        inventory
            .placeholders
            .extend([stored(&["a.example"], Issuer::Placeholder)]);
        let trusted = |inventory: &CertificateInventory| {
            let state = desired(
                &apps,
                host(),
                &BTreeMap::new(),
                &TlsMode::Auto.into(),
                inventory,
                NOW,
            )
            .unwrap();
            assert_eq!(state.host.https.len(), 1);
            match &state.vhosts[0].tls {
                DesiredTls::On { trusted, .. } => *trusted,
                DesiredTls::Off => panic!("off"),
            }
        };
        assert!(!trusted(&inventory));
        inventory
            .certificates
            .extend([stored(&["a.example"], Issuer::Acme)]);
        assert!(trusted(&inventory));
    }

    #[test]
    fn a_name_that_the_certificate_lacks_is_known_also_where_it_is_the_first() {
        let apps = [app(
            "server_name: [a.example, b.example]\nredirect_from: c.example\nroot: /srv/a\n",
        )];
        let uncovered = |have: &[&str]| {
            let mut inventory = CertificateInventory::default();
            let (_, real) = stored(have, Issuer::Acme);
            let (name, placeholder) = stored(&["a.example"], Issuer::Placeholder);
            inventory.certificates.insert(name.clone(), real);
            inventory.placeholders.insert(name, placeholder);
            let state = desired(
                &apps,
                host(),
                &BTreeMap::new(),
                &TlsMode::Auto.into(),
                &inventory,
                NOW,
            )
            .unwrap();
            match &state.vhosts[0].tls {
                DesiredTls::On {
                    trusted, uncovered, ..
                } => (
                    *trusted,
                    uncovered.iter().map(ToString::to_string).collect(),
                ),
                DesiredTls::Off => panic!("off"),
            }
        };
        let expected = |trusted, names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned());
            (trusted, names.collect::<Vec<_>>())
        };
        assert_eq!(
            uncovered(&["a.example", "b.example", "c.example"]),
            expected(true, &[])
        );
        assert_eq!(
            uncovered(&["a.example", "c.example"]),
            expected(true, &["b.example"])
        );
        assert_eq!(
            uncovered(&["b.example"]),
            expected(true, &["a.example", "c.example"])
        );
        // of no name at all: the placeholder, and no redirect
        assert_eq!(uncovered(&["d.example"]), expected(false, &[]));
    }

    #[test]
    fn a_certificate_without_even_a_placeholder_is_an_error_that_names_it_once() {
        let apps = [app(
            "pki__realms: [{domains: [a.example, b.example]}]\nnginx__vhosts:\n\
             - {server_name: a.example, root: /srv/a}\n- {server_name: b.example, root: /srv/a}\n",
        )];
        let inventory = CertificateInventory::default();
        let error = desired(
            &apps,
            host(),
            &BTreeMap::new(),
            &TlsMode::Auto.into(),
            &inventory,
            NOW,
        )
        .unwrap_err();
        let DesiredError::NoCertificate { missing } = error;
        assert_eq!(missing.len(), 1);
        assert_eq!(missing[0].name.as_str(), "a.example");
    }

    #[test]
    fn the_https_port_stays_free_while_no_vhost_has_tls() {
        let apps = [app("server_name: a.example\nroot: /srv/a\ntls: off\n")];
        let inventory = CertificateInventory::default();
        let state = desired(
            &apps,
            host(),
            &BTreeMap::new(),
            &TlsMode::Auto.into(),
            &inventory,
            NOW,
        )
        .unwrap();
        assert!(state.host.https.is_empty());
        assert_eq!(state.host.http.len(), 1);
    }

    #[test]
    fn vhosts_are_sorted_by_app_and_place() {
        let list: String = (1..=11)
            .map(|n| format!("- {{server_name: n{n}.example, root: /srv/a, tls: off}}\n"))
            .collect();
        let inventory = CertificateInventory::default();
        let state = desired(
            &[app(&list)],
            host(),
            &BTreeMap::new(),
            &TlsMode::Auto.into(),
            &inventory,
            NOW,
        )
        .unwrap();
        let last = state.vhosts.last().unwrap();
        assert_eq!(last.spec.name.to_string(), "hello#11");
    }
}
