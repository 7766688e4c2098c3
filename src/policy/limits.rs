//! P: names, upstreams and certificates of one file, by the settings.

use crate::certificate::Challenge;
use crate::certificate::internal::scope::Scope;
use crate::diagnostic::{Diagnostic, Located};
use crate::settings::Settings;
use crate::settings::users::UserLimits;
use crate::vhost::{App, LocalUser, ServerName, TlsMode, VhostSpec};

/// What `app` may not ask for. `owner` is not root; `limits`: what the settings say of that user.
pub(super) fn errors(
    app: &App,
    owner: &LocalUser,
    limits: Option<&UserLimits>,
    settings: &Settings,
) -> Vec<Diagnostic> {
    let mut errors = Vec::new();
    let refuse = |reason: String, hint: String| {
        Diagnostic::new(&app.file, reason)
            .hint(hint)
            .not_permitted()
    };
    for vhost in &app.vhosts {
        if let Some(limits) = limits {
            for name in vhost
                .all_names()
                .filter(|it| !limits.permits_name(&it.value))
            {
                let reason = format!("{owner} may not have `{}`", name.value);
                let hint = format!("`users.{owner}.names` in vhostd's settings lists the names");
                errors.push(refuse(reason, hint).at(name.at));
            }
            let upstreams = vhost.upstreams.iter().map(|it| it.address());
            for upstream in upstreams.filter(|it| !limits.permits_upstream(it)) {
                let reason = format!("{owner} may not have the upstream {upstream}");
                let hint =
                    format!("`users.{owner}.upstreams` in vhostd's settings lists the upstreams");
                errors.push(refuse(reason, hint).at(vhost.at));
            }
            if let Some(name) = first_unpermitted_by_dns(app, vhost, limits, settings) {
                let reason = format!("{owner} may not prove `{}` by a DNS provider", name.value);
                let hint = format!("`users.{owner}.dns` in vhostd's settings lists the zones");
                errors.push(refuse(reason, hint).at(name.at));
            }
        }
        let public = vhost
            .all_names()
            .find(|it| !internal_is_permitted(&it.value, settings));
        if let Some(name) = public
            && vhost.tls.or(&settings.tls_defaults()).mode == TlsMode::Internal
        {
            let reason = format!("the internal CA may not speak for `{}` here", name.value);
            let hint = format!(
                "add its zone to `internal_ca.permit` in vhostd's settings, or let root own the vhost file instead of {owner}"
            );
            errors.push(refuse(reason, hint).at(name.at));
        }
    }
    errors
}

/// The first name that only a DNS provider proves, and that is in none of the user's zones.
fn first_unpermitted_by_dns<'a>(
    app: &'a App,
    vhost: &'a VhostSpec,
    limits: &UserLimits,
    settings: &Settings,
) -> Option<&'a Located<ServerName>> {
    let tls = vhost.tls.or(&settings.tls_defaults());
    if tls.mode != TlsMode::Auto || vhost.tls.files.is_some() {
        return None;
    }
    let realms = app.realms.iter().flat_map(|realm| &realm.domains);
    let names: Vec<_> = vhost.all_names().chain(realms).collect();
    let identifiers: Vec<_> = names.iter().map(|it| it.value.to_identifier()).collect();
    match tls.challenge_of(&identifiers) {
        Some(Challenge::Dns01(_)) => names
            .into_iter()
            .find(|name| !limits.permits_dns(&name.value)),
        Some(Challenge::Http01) | None => None,
    }
}

/// Roots of the internal CA are trusted by people: a user adds no public zone to them.
fn internal_is_permitted(name: &ServerName, settings: &Settings) -> bool {
    let identifier = name.to_identifier();
    let permitted = settings.internal_ca.permit.as_ref();
    permitted.is_some_and(|scope| scope.permits(&identifier))
        || Scope::around([]).permits(&identifier)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::certificate::internal::scope::Subtree;
    use crate::vhost::parse;

    fn settings(limits: UserLimits) -> Settings {
        Settings {
            users: [("deploy".to_owned(), limits)].into(),
            ..Settings::default()
        }
    }

    /// The reasons against the text, in a file of a user with these limits.
    fn reasons(text: &str, limits: Option<&UserLimits>, settings: &Settings) -> Vec<String> {
        let mut defaults = settings.tls_defaults();
        defaults.providers = vec!["own".to_owned()];
        let (name, file) = ("a".parse().unwrap(), Path::new("a.yml"));
        let roots = [PathBuf::from("/srv")];
        let app = parse::parse(&name, file, text, &roots, &defaults).unwrap();
        let errors = errors(&app, &LocalUser::with_uid(54_321), limits, settings);
        assert!(errors.iter().all(|error| error.not_permitted));
        errors.into_iter().map(|error| error.reason).collect()
    }

    fn names(names: &[&str]) -> Vec<ServerName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn names_upstreams_and_zones_outside_of_the_limits_are_refused() {
        let limits = UserLimits {
            names: Some(names(&["*.a.example"])),
            upstreams: Some(Vec::new()),
            ..UserLimits::default()
        };
        let settings = settings(limits.clone());
        let all = |text: &str| reasons(text, Some(&limits), &settings);
        for (text, expected) in [
            ("{server_name: x.a.example, root: /srv/x}", &[][..]),
            (
                "{server_name: [x.a.example, a.example], root: /srv/x, redirect_from: b.example}",
                &[
                    "54321 may not have `a.example`",
                    "54321 may not have `b.example`",
                ],
            ),
            (
                "{server_name: x.a.example, proxy_pass_url: 'http://127.0.0.1:8000'}",
                &["54321 may not have the upstream 127.0.0.1:8000"],
            ),
            (
                "{server_name: '*.a.example', root: /srv/x, tls: {dns: own}}",
                &["54321 may not prove `*.a.example` by a DNS provider"],
            ),
            (
                "{server_name: x.a.example, root: /srv/x, tls: {challenge: dns-01, dns: own}}",
                &["54321 may not prove `x.a.example` by a DNS provider"],
            ),
        ] {
            assert_eq!(all(text), expected, "{text}");
            assert!(reasons(text, None, &settings).is_empty(), "{text}");
        }
        let zone = UserLimits {
            dns: names(&["a.example"]),
            ..UserLimits::default()
        };
        let wildcard = "{server_name: '*.a.example', root: /srv/x, tls: {dns: own}}";
        assert!(reasons(wildcard, Some(&zone), &settings).is_empty());
    }

    #[test]
    fn the_internal_ca_speaks_for_private_and_permitted_names_alone() {
        let mut settings = settings(UserLimits::default());
        let refused = |settings: &Settings, name: &str| {
            let text = format!("{{server_name: {name}, root: /srv/x, tls: internal}}");
            !reasons(&text, None, settings).is_empty()
        };
        for (name, expected) in [
            ("login.bank.example", true),
            ("app.internal", false),
            ("app.home.arpa", false),
            ("10.0.0.7", false),
            ("192.0.2.7", true),
        ] {
            assert_eq!(refused(&settings, name), expected, "{name}");
        }
        let permitted = Subtree::parse("bank.example").unwrap();
        settings.internal_ca.permit = Some([permitted].into_iter().collect());
        assert!(!refused(&settings, "login.bank.example"));
        assert!(refused(&settings, "shop.example"));
    }
}
