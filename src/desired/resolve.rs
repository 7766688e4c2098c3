//! P: accepted apps and certificates → what nginx should serve.

use time::OffsetDateTime;

use super::{CertificateFiles, DesiredState, DesiredTls, DesiredVhost, HostFacts};
use crate::certificate::{CertificateInventory, Challenge, Identifier, Issuer, WantedCertificate};
use crate::vhost::{App, Realm, ServerName, TlsDefaults, TlsMode, VhostSpec};

/// The certificate that each vhost of `app` should have, in its order; `None` for plain HTTP.
///
/// The realm that holds all names of the vhost gives the identifiers, else the vhost's own names.
pub fn wanted(app: &App, default: &TlsDefaults) -> Vec<Option<WantedCertificate>> {
    app.vhosts
        .iter()
        .map(|vhost| {
            let tls = vhost.tls.or(default);
            let issuer = match tls.mode {
                TlsMode::Auto if vhost.tls.files.is_some() => Issuer::File,
                TlsMode::Auto => Issuer::Acme,
                TlsMode::Internal => Issuer::Internal,
                TlsMode::Off => return None,
            };
            let identifiers = identifiers(app, vhost);
            let challenge = match issuer {
                // refused where there is no way
                Issuer::Acme => tls.challenge_of(&identifiers).unwrap_or_default(),
                _ => Challenge::default(),
            };
            Some(WantedCertificate {
                profile: tls.profile,
                key_type: tls.key_types.first(),
                challenge,
                files: vhost.tls.files.clone(),
                ..WantedCertificate::new(identifiers, issuer)?
            })
        })
        .collect()
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
/// vhost has TLS, so that the port stays free.
pub fn desired(
    apps: &[App],
    host: HostFacts,
    default_tls: &TlsDefaults,
    inventory: &CertificateInventory,
    now: OffsetDateTime,
) -> Result<DesiredState, DesiredError> {
    let mut vhosts = Vec::new();
    let mut missing: Vec<WantedCertificate> = Vec::new();
    for app in apps {
        for (spec, wanted) in app.vhosts.iter().zip(wanted(app, default_tls)) {
            match tls(wanted, inventory, now) {
                Ok(tls) => vhosts.push(DesiredVhost {
                    spec: spec.clone(),
                    tls,
                }),
                Err(wanted) if missing.contains(&wanted) => {}
                Err(wanted) => missing.push(*wanted),
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
    })
}

fn tls(
    wanted: Option<WantedCertificate>,
    inventory: &CertificateInventory,
    now: OffsetDateTime,
) -> Result<DesiredTls, Box<WantedCertificate>> {
    let Some(wanted) = wanted else {
        return Ok(DesiredTls::Off);
    };
    match inventory.serving(&wanted, now) {
        Some(stored) => Ok(DesiredTls::On {
            files: CertificateFiles::from(stored),
            trusted: stored.issuer != Issuer::Placeholder,
            wanted,
        }),
        None => Err(Box::new(wanted)),
    }
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
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::certificate::{CertificateName, StoredCertificate, Validity};
    use crate::desired::{Features, Listener, Probe, UnsetHttpDirectives};

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
        };
        HostFacts {
            http: vec![listener],
            https: vec![listener],
            features: Features::default(),
            thumbprint: None,
            probe: Probe {
                secret: "s".into(),
                certificate: CertificateFiles {
                    chain: "/c".into(),
                    key: "/k".into(),
                },
            },
            log_dir: "/var/log/nginx".into(),
            unset_http_directives: UnsetHttpDirectives::default(),
        }
    }

    fn stored(names: &[&str], issuer: Issuer) -> (CertificateName, StoredCertificate) {
        let identifiers: Vec<_> = names
            .iter()
            .map(|name| Identifier::Dns((*name).into()))
            .collect();
        let name = CertificateName::of(&identifiers[0]);
        let stored = StoredCertificate {
            name: name.clone(),
            serial: "01".into(),
            issuer,
            identifiers,
            validity: Validity {
                not_before: NOW,
                not_after: NOW,
            },
            origin: None,
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
            .map(|wanted| wanted.map(|it| it.identifiers.iter().map(ToString::to_string).collect()))
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
            let state = desired(&apps, host(), &TlsMode::Auto.into(), inventory, NOW).unwrap();
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
    fn a_certificate_without_even_a_placeholder_is_an_error_that_names_it_once() {
        let apps = [app(
            "pki__realms: [{domains: [a.example, b.example]}]\nnginx__vhosts:\n\
             - {server_name: a.example, root: /srv/a}\n- {server_name: b.example, root: /srv/a}\n",
        )];
        let inventory = CertificateInventory::default();
        let error = desired(&apps, host(), &TlsMode::Auto.into(), &inventory, NOW).unwrap_err();
        let DesiredError::NoCertificate { missing } = error;
        assert_eq!(missing.len(), 1);
        assert_eq!(missing[0].name.as_str(), "a.example");
    }

    #[test]
    fn the_https_port_stays_free_while_no_vhost_has_tls() {
        let apps = [app("server_name: a.example\nroot: /srv/a\ntls: off\n")];
        let inventory = CertificateInventory::default();
        let state = desired(&apps, host(), &TlsMode::Auto.into(), &inventory, NOW).unwrap();
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
            &TlsMode::Auto.into(),
            &inventory,
            NOW,
        )
        .unwrap();
        let last = state.vhosts.last().unwrap();
        assert_eq!(last.spec.name.to_string(), "hello#11");
    }
}
