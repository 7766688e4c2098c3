use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::certificate::Challenge;
use crate::settings::hooks::HookSettings;
use crate::settings::proxy::{ProxyChoice, ProxySettings, ProxyUrl};
use crate::settings::users::UserLimits;
use crate::settings::{
    Algorithm, DnsSettings, ExecSettings, InternalCaSettings, KeyType, Means, ProviderSettings,
    RealIp, Rfc2136Settings, SandboxPolicy,
};
use crate::vhost::TlsMode;

fn parsed(text: &str) -> Settings {
    parse(Path::new("vhostd.yml"), text).unwrap()
}

fn refused(text: &str) -> String {
    let diagnostics = parse(Path::new("vhostd.yml"), text).unwrap_err();
    let lines: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

#[test]
fn the_state_directory_is_one_word_for_nginx_and_no_pattern() {
    for odd in [
        "/var/lib/v hostd",
        "/var/*",
        "/var/v?",
        "/v[ab]",
        "/v\u{2003}",
    ] {
        let said = refused(&format!("state_dir: \"{odd}\"\n"));
        assert!(said.contains("nginx includes files from"), "{odd}: {said}");
    }
    assert!(refused("state_dir: /var/$x\n").contains("a character that"));
    let plain = parsed("state_dir: /var/lib/ü-1.x_y\n");
    assert_eq!(plain.state_dir, Path::new("/var/lib/ü-1.x_y"));
}

#[test]
fn an_empty_file_and_sections_of_comments_are_the_defaults() {
    for text in ["", "# nothing\n", "{}", "nginx:\n# http_port: 81\nacme:\n"] {
        assert_eq!(parsed(text), Settings::default(), "{text:?}");
    }
}

fn providers() -> BTreeMap<String, ProviderSettings> {
    let exec = ExecSettings {
        program: "/usr/local/bin/dns-hook".into(),
        arguments: vec!["--zone".into(), "example.com".into()],
        environment: [("TOKEN_FILE".into(), "/etc/vhostd/token".into())].into(),
    };
    let rfc2136 = Rfc2136Settings {
        server: "192.0.2.53:53".parse().unwrap(),
        zone: Some("example.com".into()),
        secret_file: "/etc/tsig.key".into(),
        key_name: Some("acme".into()),
        algorithm: Some(Algorithm::HmacSha512),
    };
    let provider = |means, timeout, propagation| ProviderSettings {
        means,
        timeout: Duration::from_secs(timeout),
        propagation: Duration::from_secs(propagation),
    };
    [
        ("hetzner".to_owned(), provider(Means::Exec(exec), 120, 120)),
        ("own".to_owned(), provider(Means::Rfc2136(rfc2136), 60, 600)),
    ]
    .into()
}

#[test]
fn a_dns_provider_is_a_program_or_a_name_server_and_complete() {
    let dns = |text: &str| refused(&format!("dns: {{providers: {{p: {text}}}}}\n"));
    for (text, said) in [
        ("{}", "1:19: neither `exec` nor `rfc2136`"),
        (
            "{exec: /a, rfc2136: {server: 1.2.3.4, secret_file: /k}}",
            "1:19: `exec` and `rfc2136` in one",
        ),
        (
            "{exec: 'dns-hook --all'}",
            "1:29: `dns-hook --all`: not the absolute path of a program",
        ),
        (
            "{exec: /a, timeout: 2h}",
            "1:42: not a duration from one second to one hour",
        ),
        (
            "{exec: /a, environment: {VHOSTD_X: a}}",
            "`VHOSTD_X` is not yours to set",
        ),
        (
            "{exec: /a, environment: {'A B': a}}",
            "`A B`: not the name of a variable",
        ),
        (
            "{exec: /a, environment: {A: 1}}",
            "expected a string, found a number",
        ),
        (
            "{rfc2136: {server: ns.example.com, secret_file: /k}}",
            "not the address of a name server",
        ),
        (
            "{rfc2136: {server: 192.0.2.1}}",
            "1:33: `secret_file` is missing",
        ),
        (
            "{rfc2136: {server: 192.0.2.1, secret: c2Vj}}",
            "a secret in the settings",
        ),
        (
            "{rfc2136: {server: 192.0.2.1, secret_file: /k, algorithm: hmac-md5}}",
            "or hmac-sha512, found `hmac-md5`",
        ),
        (
            "{rfc2136: {server: 192.0.2.1, secret_file: /k, zone: 'a b'}}",
            "`a b`: not a zone",
        ),
        ("{exce: /a}", "unknown key `exce`"),
    ] {
        let told = dns(text);
        assert!(told.contains(said), "{text}: {told}");
        assert!(!told.contains("c2Vj"), "{told}");
    }
    assert!(
        refused("dns: {providers: {'a b': {exec: /a}}}").contains("not a name for a DNS provider")
    );
}

#[test]
fn the_usual_challenge_and_its_provider_are_of_the_settings() {
    let head = "dns: {providers: {own: {exec: /a}, other: {exec: /b}}}\nacme: ";
    let acme = |text: &str| parsed(&format!("{head}{text}\n")).acme;
    let own = Challenge::Dns01("own".into());
    assert_eq!(acme("{dns: own}").challenge, own);
    assert_eq!(acme("{challenge: dns-01, dns: own}").challenge, own);
    let wildcards = acme("{challenge: http-01, dns: own}");
    assert_eq!(wildcards.challenge, Challenge::Http01);
    assert_eq!(wildcards.dns.as_deref(), Some("own"));
    let only = parsed("dns: {providers: {own: {exec: /a}}}\nacme: {challenge: dns-01}\n");
    assert_eq!(only.acme.challenge, own);
    let said = |text: &str| refused(&format!("{head}{text}\n"));
    assert!(said("{challenge: dns-01}").contains("2:19: dns-01 through which DNS provider?"));
    assert!(said("{dns: onw}").contains("2:13: there is no DNS provider `onw`"));
    assert!(refused("acme: {challenge: dns-01}").contains("1:19: dns-01 needs a DNS provider"));
}

#[test]
fn every_key_is_read() {
    let settings = parsed(
        r#"vhosts_dir: /a/vhosts.d/
state_dir: /a/state
runtime_dir: /a/run
templates_dir: /a/templates
log_dir: /a/log
nginx:
  binary: /usr/sbin/nginx
  config: /a/nginx.conf
  include: /a/vhostd.conf
  pid_file: /a/nginx.pid
  http_port: 8080
  https_port: 8443
  listen: ["127.0.0.1", "[::1]"]
  default_server: off
acme:
  directory: https://localhost:14000/dir
  staging: https://localhost:14001/dir
  email: admin@example.com
  ca_file: /a/pebble.pem
  profile: shortlived
  key_type: rsa-2048
  reuse_key: yes
  challenge: http-01
  dns: own
  renew: auto
dns:
  resolvers: [192.0.2.53, "[2001:db8::53]:5353"]
  providers:
    hetzner:
      exec: [/usr/local/bin/dns-hook, --zone, example.com]
      environment: {TOKEN_FILE: /etc/vhostd/token}
      timeout: 2m
    own:
      rfc2136: {server: 192.0.2.53, zone: Example.com., secret_file: /etc/tsig.key, key_name: acme, algorithm: hmac-sha512}
      propagation: 10m
internal_ca:
  permit: [example.com, 10.0.0.0/8]
tls: internal
roots: /a/sites
real_ip: {from: [192.0.2.7, "2001:db8::1/32"], header: CF-Connecting-IP}
users: {deploy: {names: a.example}}
admin_group: web-admins
sandbox: require
"#,
    );
    let limits = UserLimits {
        names: Some(vec!["a.example".parse().unwrap()]),
        ..UserLimits::default()
    };
    let expected = Settings {
        vhosts_dir: "/a/vhosts.d".into(),
        state_dir: "/a/state".into(),
        runtime_dir: "/a/run".into(),
        templates_dir: "/a/templates".into(),
        log_dir: "/a/log".into(),
        nginx: NginxSettings {
            binary: "/usr/sbin/nginx".into(),
            config: "/a/nginx.conf".into(),
            include: Some("/a/vhostd.conf".into()),
            pid_file: Some("/a/nginx.pid".into()),
            http_port: 8080,
            https_port: 8443,
            listen: Some(vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()]),
            default_server: DefaultServer::Off,
        },
        acme: AcmeSettings {
            directory: "https://localhost:14000/dir".into(),
            staging: Some("https://localhost:14001/dir".into()),
            email: Some("admin@example.com".into()),
            ca_file: Some("/a/pebble.pem".into()),
            external_account: None,
            fallbacks: Vec::new(),
            profile: Some("shortlived".into()),
            key_types: KeyType::Rsa2048.into(),
            reuse_key: true,
            challenge: Challenge::Http01,
            dns: Some("own".into()),
            proxy: ProxySettings::default(),
        },
        dns: DnsSettings {
            resolvers: ["192.0.2.53:53", "[2001:db8::53]:5353"]
                .map(|text| text.parse().unwrap())
                .to_vec(),
            providers: providers(),
        },
        internal_ca: InternalCaSettings {
            permit: Some(
                ["example.com", "10.0.0.0/8"]
                    .map(|text| Subtree::parse(text).unwrap())
                    .into_iter()
                    .collect(),
            ),
        },
        hooks: HookSettings::default(),
        tls: TlsMode::Internal,
        roots: vec!["/a/sites".into()],
        real_ip: Some(RealIp {
            from: vec!["192.0.2.7".into(), "2001:db8::/32".into()],
            header: "CF-Connecting-IP".into(),
        }),
        users: [("deploy".to_owned(), limits)].into(),
        admin_group: Some("web-admins".into()),
        sandbox: SandboxPolicy::Require,
    };
    assert_eq!(settings, expected);
}

#[test]
fn a_sandbox_is_required_or_not() {
    assert_eq!(parsed("sandbox: auto\n").sandbox, SandboxPolicy::Auto);
    let said = refused("sandbox: required\n");
    assert!(
        said.contains("1:10: expected auto or require, found `required`"),
        "{said}"
    );
    assert!(refused("sandbox: off\n").contains("1:10: "));
}

#[test]
fn a_proxy_in_front_is_an_address_or_a_network_and_its_header_is_one() {
    let said = |text: &str| refused(&format!("real_ip: {text}\n"));
    for (text, reason) in [
        (
            "{from: [0.0.0.0/0]}",
            "1:18: `0.0.0.0/0`: that is every address",
        ),
        (
            "{from: [proxy.example]}",
            "`proxy.example`: not an address or a network",
        ),
        ("{from: [10.0.0.0/33]}", "`10.0.0.0/33`: not a network"),
        ("{header: X-Real-IP}", "`real_ip` has no `from`"),
        (
            "{from: 10.0.0.1, header: 'X Y'}",
            "`X Y` is not the name of a request header",
        ),
        (
            "{from: 10.0.0.1, header: $x}",
            "is not the name of a request header",
        ),
        ("{form: 10.0.0.1}", "unknown key `form`"),
    ] {
        let said = said(text);
        assert!(said.contains(reason), "{text}: {said}");
    }
    let one = parsed("real_ip: {from: 10.0.0.1}\n").real_ip.unwrap();
    assert_eq!(
        (&*one.header, one.from),
        ("X-Forwarded-For", vec!["10.0.0.1".into()])
    );
}

#[test]
fn a_root_for_every_name_is_refused() {
    for (everything, reason) in [
        ("com", "`com`: names below it are sold to everybody"),
        ("0.0.0.0/0", "`0.0.0.0/0`: that is every address"),
        ("'*.com'", "`*.com`: a zone is all that is below it"),
        ("", "expected"),
    ] {
        let said = refused(&format!("internal_ca: {{permit: [{everything}]}}\n"));
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn every_error_is_reported_at_its_place() {
    assert_eq!(
        refused(
            "state_dri: /a\nlog_dir: logs\nnginx: {http_port: 0, listen: ['127.0.0.1:80']}\n\
             acme:\n  directory: http://ca.example/dir\n  email: mailto:a@example.com\n"
        ),
        "vhostd.yml:1:1: unknown key `state_dri`\n\
         vhostd.yml:2:10: `logs`: not an absolute path\n\
         vhostd.yml:3:20: not a port: a number from 1 to 65535\n\
         vhostd.yml:3:32: `127.0.0.1:80`: not an IP address\n\
         vhostd.yml:5:14: `http://ca.example/dir`: http:// only to a loopback address\n\
         vhostd.yml:6:10: `mailto:a@example.com`: not an e-mail address"
    );
}

#[test]
fn what_a_later_version_brings_is_refused_as_such() {
    assert!(
        refused(
            "acme: {renew: 30d}
"
        )
        .contains("not supported by this version")
    );
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for text in [
        "tls: {profile: shortlived}\n",
        "roots: [/srv/../etc]\n",
        "roots: [/]\n",
        "roots: []\n",
        "state_dir: /a$b\n",
        "state_dir: 1\n",
        "nginx: {binary: ./nginx}\n",
        "nginx: {binary: ''}\n",
        "nginx: {http_port: 443}\n",
        "nginx: {http_port: '80'}\n",
        "nginx: {https_port: 65536}\n",
        "nginx: {listen: []}\n",
        "nginx: {listen: [localhost]}\n",
        "nginx: {listen: ['[127.0.0.1]']}\n",
        "nginx: {listen: ['::', '[::]']}\n",
        "nginx: {default_server: maybe}\n",
        "acme: {directory: /dir}\n",
        "acme: {directory: 'https://'}\n",
        "acme: {directory: 'https://u:p@a.example/'}\n",
        "acme: {directory: 'ftp://127.0.0.1/'}\n",
        "acme: {email: nobody}\n",
        "acme: {profile: 'a b'}\n",
        "acme: {key_type: rsa}\n",
        "acme: {key_type: []}\n",
        "acme: {key_type: [rsa-2048, rsa-2048]}\n",
        "acme: {key_type: [ecdsa-p256, ecdsa-p384]}\n",
        "acme: {key_type: [ecdsa-p256, ecdsa-p384, rsa-2048]}\n",
        "- a\n",
    ] {
        assert!(parse(Path::new("vhostd.yml"), text).is_err(), "{text}");
    }
    assert!(
        parse(
            Path::new("v"),
            "acme: {directory: 'http://[::1]:14000/dir'}\n"
        )
        .is_ok()
    );
}

#[test]
fn several_directories_are_tried_in_order_and_share_what_they_do_not_say_themselves() {
    let acme = parsed("acme:\n  email: admin@example.com\n  profile: tlsserver\n  directory:\n    - https://a.example/dir\n    \
        - directory: https://b.example/dir\n      email: b@example.com\n      ca_file: /b.pem\n      profile: classic\n      \
        external_account: {key_id: kid-1, hmac_key_file: /etc/vhostd/b.hmac}\n    - https://c.example/dir\n")
    .acme;
    let cas = acme.cas();
    let of = |nth: usize| {
        let ca = &cas[nth];
        (
            ca.directory.as_str(),
            ca.email.as_deref(),
            ca.profile.as_deref(),
        )
    };
    let admin = Some("admin@example.com");
    assert_eq!(of(0), ("https://a.example/dir", admin, Some("tlsserver")));
    assert_eq!(
        of(1),
        (
            "https://b.example/dir",
            Some("b@example.com"),
            Some("classic")
        )
    );
    // another CA's profile is not this one's
    assert_eq!(of(2), ("https://c.example/dir", admin, None));
    let account = cas[1].external_account.as_ref().unwrap();
    assert_eq!(account.key_id, "kid-1");
    assert_eq!(account.hmac_key_file, Path::new("/etc/vhostd/b.hmac"));
    assert_eq!(cas[1].ca_file.as_deref(), Some(Path::new("/b.pem")));
}

#[test]
fn what_cannot_be_meant_of_several_directories_is_refused_at_its_place() {
    assert_eq!(
        refused(
            "acme:\n  external_account: {key_id: a, hmac_key_file: b}\n  directory:\n    - https://a.example/d\n    \
             - https://a.example/d\n    - {directori: https://b.example/d}\n    - 7\n    - {email: a@b.example}\n    \
             - {directory: https://c.example/d, staging: https://s.example/d, external_account: {key_id: a}}\n"
        ),
        "vhostd.yml:2:21: `external_account` beside several CAs: it belongs to one of them\n\
         vhostd.yml:2:48: `b`: not an absolute path\n\
         vhostd.yml:5:7: `https://a.example/d` is listed twice\n\
         vhostd.yml:6:8: unknown key `directori`\n\
         vhostd.yml:7:7: expected a URL, or a mapping with `directory`, found a number\n\
         vhostd.yml:8:7: a CA without `directory`\n\
         vhostd.yml:9:7: `staging` of a CA that is not the first: only the first is rehearsed\n\
         vhostd.yml:9:89: an external account without `hmac_key_file`"
    );
}

#[test]
fn no_error_draws_the_line_of_a_secret() {
    for text in [
        "hooks: {on_failure: [{slack: \"https://hooks.slack.com/hunter2\"}]}",
        "hooks: {on_failure: \"https://hooks.slack.com/hunter2\"}",
        "hooks: {on_failure: [{slack: {url: \"https://x/hunter2\", colour: red}}]}",
        "hooks: {on_failure: [{ntfy: {url: \"https://ntfy.sh/t\", token: hunter2}}]}",
        "hooks: {on_failure: [{webhook: {url: \"https://x/t\", secret: hunter2, more: 1}}]}",
        "dns: {providers: {own: {rfc2136: {server: 192.0.2.1, secret: hunter2}}}}",
        "dns: {providers: {own: {exec: /a, environment: {A B: hunter2}}}}",
        "dns: {providers: {own: {exec: /a, environment: {VHOSTD_X: hunter2}}}}",
        "dns: {providers: {own: {exec: /a, environment: {TOKEN: 4711}}}}",
        "acme: {external_account: {key_id: a, hmac_key: hunter2}}",
    ] {
        let errors = parse(Path::new("vhostd.yml"), text).unwrap_err();
        // where there is no place, the cli has no line to draw
        let hidden = errors.iter().all(|error| error.at.is_none());
        assert!(hidden, "{text}: {errors:?}");
        let said = format!("{errors:?}");
        assert!(
            !said.contains("hunter2") && !said.contains("4711"),
            "{said}"
        );
        assert!(
            errors.iter().all(|it| it.reason.contains("line 1: ")),
            "{said}"
        );
    }
}

#[test]
fn a_key_at_the_top_that_belongs_below_says_where() {
    for (text, hint) in [
        ("email: a@b.example", "below `acme`, as in acme: {email: …}"),
        ("proxy: \"http://proxy:3128\"", "below `acme`"),
        ("on_failure: []", "below `hooks`"),
        ("listen: [\"0.0.0.0\"]", "below `nginx`"),
        ("resolvers: [192.0.2.53]", "below `dns`"),
    ] {
        let errors = parse(Path::new("vhostd.yml"), text).unwrap_err();
        let said = errors[0].hint.as_deref().unwrap_or_default();
        assert!(said.contains(hint), "{text}: {said}");
    }
}

#[test]
fn a_proxy_is_an_http_url_or_off_and_what_is_refused_is_not_quoted() {
    let choice = |text: &str| {
        parsed(&format!("acme:\n  proxy: {text}\n"))
            .acme
            .proxy
            .choice
    };
    let url = "http://user:hunter2@proxy.internal:3128";
    let through = ProxyChoice::Through(ProxyUrl::parse(url).unwrap());
    assert_eq!(choice(url), through);
    assert!(!format!("{through:?}").contains("hunter2"));
    assert_eq!(parsed("acme: {}\n").acme.proxy.choice, ProxyChoice::Unset);
    for off in ["off", "\"off\"", "false", "\"\"", "", "~"] {
        assert_eq!(choice(off), ProxyChoice::Off, "{off}");
    }
    for (text, reason) in [
        ("https://user:hunter2@proxy:3128", "no http:// URL"),
        ("socks5://user:hunter2@proxy:1080", "no http:// URL"),
        ("user:hunter2@proxy:3128", "no http:// URL"),
        ("proxy:3128", "no http:// URL"),
        ("http://user:hunter2@:3128", "not a URL with a host"),
        ("http://user:hunter2@proxy:3128/x", "a proxy has no path"),
    ] {
        let text = format!("acme:\n  proxy: {text}\n");
        let [error] = &parse(Path::new("vhostd.yml"), &text).unwrap_err()[..] else {
            panic!("{text}");
        };
        let expected = format!("line 2: `proxy`: {reason}");
        assert!(error.reason.starts_with(&expected), "{text}: {error:?}");
        let hint = error.hint.as_deref().unwrap();
        assert!(
            hint.starts_with("as in http://proxy.internal:3128"),
            "{hint}"
        );
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
    assert!(refused("acme:\n  proxy: [a]\n").contains("expected the URL of a proxy, or off"));
    assert!(refused("acme:\n  proxy: on\n").contains("expected the URL of a proxy, or off"));
}
