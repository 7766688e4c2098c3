use super::*;
use crate::certificate::Challenge;
use crate::settings::{KeyType, KeyTypes};

#[test]
fn an_address_at_lets_encrypt_has_the_only_profile_that_takes_it_or_is_refused() {
    let parsed = |tls: &str, profile: Option<&str>| {
        let text = format!("server_name: [a.example, 203.0.113.7]\nroot: /srv/a\ntls: {tls}\n");
        let defaults = TlsDefaults {
            profile: profile.map(str::to_owned),
            address_profile: Some("shortlived"),
            ..TlsMode::Auto.into()
        };
        let (name, roots) = ("hello".parse().unwrap(), [PathBuf::from("/srv")]);
        let app = parse(&name, Path::new("hello.yml"), &text, &roots, &defaults)
            .map_err(|errors| errors[0].to_string())?;
        let wanted = crate::desired::wanted(&app, &defaults).remove(0).remove(0);
        Ok(wanted.profile)
    };
    let short = || Ok(Some("shortlived".to_owned()));
    assert_eq!(parsed("auto", None), short());
    assert_eq!(parsed("auto", Some("shortlived")), short());
    assert_eq!(parsed("{profile: shortlived}", Some("tlsserver")), short());
    // our own CA has none
    assert_eq!(
        parsed("internal", Some("tlsserver")),
        Ok(Some("tlsserver".into()))
    );
    let refused = "hello.yml:1:26: Let's Encrypt gives certificates for addresses such as `203.0.113.7` \
                   with the profile `shortlived` alone, not `tlsserver`";
    let refused: Result<_, String> = Err(refused.into());
    assert_eq!(parsed("auto", Some("tlsserver")), refused);
    assert_eq!(parsed("{profile: tlsserver}", None), refused);
}

#[test]
fn an_order_has_a_hundred_names_at_most() {
    let list = |count: usize| {
        let names: String = (1..=count).map(|n| format!("- n{n}.example\n")).collect();
        format!("root: /srv/a\nserver_name:\n{names}")
    };
    assert!(parsed_with(&list(100), TlsMode::Auto).is_ok());
    let said = refused(&list(101));
    assert!(
        said.starts_with("hello.yml:103:3: a certificate holds at most 100 names"),
        "{said}"
    );
    assert!(parsed_with(&list(101), TlsMode::Internal).is_ok());
    let realm = |count: usize| {
        let names: Vec<String> = (1..=count).map(|n| format!("n{n}.example")).collect();
        let vhost = |name: &String| format!("- {{server_name: {name}, root: /srv/a}}\n");
        let vhosts: String = names.iter().map(vhost).collect();
        let domains = names.join(", ");
        format!("pki__realms: [{{domains: [{domains}]}}]\nnginx__vhosts:\n{vhosts}")
    };
    assert!(parsed_with(&realm(100), TlsMode::Auto).is_ok());
    let said = refused(&realm(101));
    assert!(
        said.contains("a certificate holds at most 100 names"),
        "{said}"
    );
}

#[test]
fn wildcards_need_another_tls_than_auto() {
    for name in ["\"*.example.org\""] {
        let text = format!("server_name: {name}\nroot: /srv/a\n");
        assert!(
            refused(&text).starts_with("hello.yml:1:14: "),
            "{}",
            refused(&text)
        );
        assert!(parsed_with(&text, TlsMode::Internal).is_ok());
        assert!(parsed_with(&text, TlsMode::Off).is_ok());
        for tls in ["internal", "off", "false", "\"off\"", "no"] {
            assert!(
                parsed_with(&format!("{text}tls: {tls}\n"), TlsMode::Auto).is_ok(),
                "{tls}"
            );
        }
        assert!(parsed_with(&format!("{text}tls: auto\n"), TlsMode::Internal).is_err());
    }
}

#[test]
fn tls_knows_the_booleans_of_yaml_1_1() {
    for (written, mode) in [
        ("auto", TlsMode::Auto),
        ("true", TlsMode::Auto),
        ("yes", TlsMode::Auto),
        ("internal", TlsMode::Internal),
        ("off", TlsMode::Off),
        ("\"off\"", TlsMode::Off),
        ("false", TlsMode::Off),
    ] {
        let app = parsed(&format!(
            "server_name: a.example\nroot: /srv/a\ntls: {written}\n"
        ));
        assert_eq!(app.vhosts[0].tls.mode, Some(mode), "{written}");
    }
}

#[test]
fn a_mapping_for_tls_says_what_is_asked_of_the_ca() {
    let head = "server_name: a.example\nroot: /srv/a\ntls: ";
    let tls = |text: &str| parsed(&format!("{head}{text}\n")).vhosts[0].tls.clone();
    let asked = tls("{profile: shortlived, key_type: rsa-2048}");
    assert_eq!(asked.mode, Some(TlsMode::Auto));
    assert_eq!(asked.profile.as_deref(), Some("shortlived"));
    assert_eq!(asked.key_types, Some(KeyType::Rsa2048.into()));
    let both = tls("{key_type: [rsa-2048, ecdsa-p384]}").key_types;
    assert_eq!(both, KeyTypes::both(KeyType::EcdsaP384, KeyType::Rsa2048));
    assert!(both.is_some());
    // a key type is for every CA
    assert_eq!(tls("{key_type: ecdsa-p384}").mode, None);
    let said = |text: &str| refused(&format!("{head}{text}\n"));
    assert_eq!(
        said("{keytype: rsa-2048}"),
        "hello.yml:3:7: unknown key `keytype` (did you mean `key_type`?)"
    );
    assert!(
        said("{key_type: [ecdsa-p256, ecdsa-p384]}")
            .starts_with("hello.yml:3:17: `key_type` is one type, or an ECDSA and an RSA one")
    );
    assert!(said("{key_type: [ecdsa-p256, rsa]}").contains("3:30: expected"));
    assert!(said("{key_type: rsa-4096}").contains("rsa-2048, found `rsa-4096`"));
    assert!(said("{profile: 'a b'}").contains("not the name of a profile"));
    let files = tls("{certificate: /a/chain.pem, certificate_key: /a/key.pem}");
    assert_eq!(files.mode, Some(TlsMode::Auto));
    assert_eq!(files.files.unwrap().key, Path::new("/a/key.pem"));
    assert!(said("{certificate: /a/c.pem}").contains("`certificate_key` is missing"));
    assert!(said("{certificate_key: /a/k.pem}").contains("`certificate` is missing"));
    assert!(said("{certificate: a, certificate_key: /k}").contains("not an absolute path"));
    let both = said("{certificate: /c, certificate_key: /k, profile: classic}");
    assert!(
        both.contains("leave `profile` and `key_type` out, and"),
        "{both}"
    );
    assert!(said("{hsts: on}").contains("`hsts` is not supported by this version"));
}

fn with_providers(text: &str, providers: &[&str], preferred: Option<&str>) -> Result<App, String> {
    let default_tls = TlsDefaults {
        dns: preferred.map(str::to_owned),
        providers: providers.iter().map(|name| (*name).to_owned()).collect(),
        ..TlsMode::Auto.into()
    };
    let (app, file, roots) = (
        "hello".parse().unwrap(),
        Path::new("hello.yml"),
        ["/srv".into()],
    );
    parse(&app, file, text, &roots, &default_tls).map_err(|diagnostics| {
        let hint = diagnostics[0].hint.clone().unwrap_or_default();
        format!("{} ({hint})", diagnostics[0])
    })
}

#[test]
fn a_vhost_says_how_and_through_whom_its_names_are_proven() {
    let providers = ["hetzner", "own"];
    let tls = |text: &str, preferred| {
        let text = format!("server_name: a.example\nroot: /srv/a\ntls: {text}\n");
        with_providers(&text, &providers, preferred).map(|app| app.vhosts[0].tls.clone())
    };
    let dns01 = |name: &str| Some(Challenge::Dns01(name.into()));
    for text in ["{dns: own}", "{challenge: dns-01, dns: own}"] {
        let tls = tls(text, None).unwrap();
        assert_eq!(
            (tls.challenge, tls.mode),
            (dns01("own"), Some(TlsMode::Auto))
        );
    }
    assert_eq!(
        tls("{challenge: dns-01}", Some("own")).unwrap().challenge,
        dns01("own")
    );
    let http = tls("{challenge: http-01}", Some("own")).unwrap();
    assert_eq!(http.challenge, Some(Challenge::Http01));
    for (text, said) in [
        (
            "{dns: hetner}",
            "3:12: there is no DNS provider `hetner` (did you mean `hetzner`?)",
        ),
        (
            "{dns: zzz}",
            "3:12: there is no DNS provider `zzz` (the settings have hetzner, own)",
        ),
        (
            "{challenge: dns-01}",
            "3:18: dns-01 through which DNS provider? (as in dns: hetzner; there are hetzner, own)",
        ),
        (
            "{challenge: http-01, dns: own}",
            "3:32: `dns` is for dns-01 (leave one of them out)",
        ),
        (
            "{challenge: dns-02}",
            "3:18: expected http-01 or dns-01, found `dns-02` (did you mean `dns-01`?)",
        ),
        (
            "{challenge: tls-alpn-01}",
            "3:18: tls-alpn-01 does not go through nginx, which has port 443 (http-01 or dns-01; docs/dns-01.md#tls-alpn-01 says why)",
        ),
    ] {
        assert_eq!(tls(text, None).unwrap_err(), format!("hello.yml:{said}"));
    }
}

#[test]
fn a_wildcard_is_proven_by_dns_where_it_is_clear_through_whom() {
    let text = |tls: &str| format!("server_name: [a.example, '*.a.example']\nroot: /srv/a\n{tls}");
    let challenge = |providers: &[&str], preferred| {
        let app = with_providers(&text(""), providers, preferred).unwrap();
        let default_tls = TlsDefaults {
            dns: preferred.map(str::to_owned),
            providers: providers.iter().map(|name| (*name).to_owned()).collect(),
            ..TlsMode::Auto.into()
        };
        crate::desired::wanted(&app, &default_tls)[0][0]
            .clone()
            .challenge
    };
    assert_eq!(challenge(&["own"], None), Challenge::Dns01("own".into()));
    assert_eq!(
        challenge(&["a", "own"], Some("own")),
        Challenge::Dns01("own".into())
    );
    let said =
        |tls: &str, providers: &[&str]| with_providers(&text(tls), providers, None).unwrap_err();
    let begin = "hello.yml:1:26: a certificate for `*.a.example` needs dns-01, and ";
    for (tls, providers, end) in [
        (
            "",
            &[][..],
            "the settings have no DNS provider (name one in `dns.providers`",
        ),
        (
            "",
            &["a", "b"],
            "there are several DNS providers (choose one, as in tls: {dns: a}",
        ),
        (
            "tls: {challenge: http-01}\n",
            &["a"],
            "this vhost says http-01 (leave `challenge` out",
        ),
    ] {
        let said = said(tls, providers);
        assert!(said.starts_with(&format!("{begin}{end}")), "{said}");
    }
}

#[test]
fn a_key_of_a_certificate_beside_tls_says_where_it_belongs() {
    let said = refused(&format!("{FOUR_KEYS}certificate: /etc/ssl/a.pem\n"));
    assert_eq!(
        said,
        "hello.yml:5:1: unknown key `certificate` (it belongs below `tls`, as in tls: {certificate: …})"
    );
    assert!(refused(&format!("{FOUR_KEYS}dns: own\n")).contains("below `tls`"));
}

#[test]
fn a_challenge_that_is_refused_is_refused_once_also_beside_wildcards() {
    for (tls, line) in [
        ("{dns: zzz}", "3:12: there is no DNS provider `zzz`"),
        (
            "{challenge: dns-01, dns: zzz}",
            "3:31: there is no DNS provider `zzz`",
        ),
        (
            "{challenge: dns-01}",
            "3:18: dns-01 through which DNS provider?",
        ),
        (
            "{challenge: tls-alpn-01}",
            "3:18: tls-alpn-01 does not go through nginx, which has port 443",
        ),
    ] {
        let names = "[a.example, '*.a.example', '*.b.example']";
        let text = format!("server_name: {names}\nroot: /srv/a\ntls: {tls}\n");
        let default_tls = TlsDefaults {
            providers: vec!["a".into(), "b".into()],
            ..TlsMode::Auto.into()
        };
        let (app, file) = ("hello".parse().unwrap(), Path::new("hello.yml"));
        let refused = parse(&app, file, &text, &["/srv".into()], &default_tls).unwrap_err();
        let refused: Vec<_> = refused.iter().map(ToString::to_string).collect();
        assert_eq!(refused, [format!("hello.yml:{line}")]);
    }
}
