//! Names that hand-written patterns match are not an app's to take.

use super::*;

fn host_with_names(names: &str) -> (Host, App) {
    let nginx = NginxHost::new();
    let text = format!(
        "server {{\n  listen {};\n  server_name {names};\n  return 200 own;\n}}\n",
        nginx.http_port
    );
    nginx.site("own", &text);
    (Host::on(nginx, "tls: off\n"), App::start())
}

#[test]
fn a_name_that_a_hand_written_pattern_matches_is_refused_with_its_place_and_another_is_served() {
    let (host, app) = host_with_names("www.brand.* \"~^(?<tenant>.+)\\.corp\\.example$\"");
    for (file, name) in [
        ("tail", "www.brand.com"),
        ("regex", "shop.corp.example"),
        ("wildcard", "'*.corp.example'"),
        ("covering", "'*.brand.com'"),
    ] {
        host.drop_app(file, name, &app);
    }
    host.drop_app("hello", HELLO, &app);
    host.drop_app("near", "www.brandnew.com", &app);
    let report = host.reload_ends(3, "activated");
    let rejected = report["rejected"].as_array().unwrap();
    let place = format!("{}:1", host.path("sites/own").display());
    let mut names: Vec<&str> = rejected
        .iter()
        .map(|it| {
            assert!(it["reason"].as_str().unwrap().contains(&place), "{it}");
            it["name"].as_str().unwrap()
        })
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["covering", "regex", "tail", "wildcard"]);
    for name in ["www.brand.com", "shop.corp.example"] {
        assert!(own_answers(&host, name), "{name}");
    }
    for name in [HELLO, "www.brandnew.com"] {
        assert_eq!(client::get(host.http(), name, "/").unwrap().status, 200);
    }
    // by `check`, too, without nginx
    let check = host.vhostd(&["check"]);
    assert_eq!(check.status, 3, "{check:?}");
    assert!(
        check.stdout.contains(&place) || check.stderr.contains(&place),
        "{check:?}"
    );
}

#[test]
fn an_app_keeps_a_name_that_it_had_before_the_pattern() {
    let (host, app) = host_with_names("other.example");
    host.drop_app("shop", "shop.corp.example", &app);
    host.reload_ends(0, "activated");
    let text = fs::read_to_string(host.path("sites/own")).unwrap();
    let text = text.replace("other.example", "~^.+\\.corp\\.example$");
    host.nginx.site("own", &text);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    let shop = client::get(host.http(), "shop.corp.example", "/").unwrap();
    assert_ne!(shop.text(), "own");
}

#[test]
fn an_expression_that_any_name_matches_protects_none_and_one_that_is_not_understood_is_told() {
    let (host, app) = host_with_names("~^(.+)$ \"~^(?!www)[a-z]+\\.odd\\.example$\"");
    host.drop_app("hello", HELLO, &app);
    host.reload_ends(0, "activated");
    let warnings = host.status()["warnings"].to_string();
    assert!(warnings.contains("does not understand"), "{warnings}");
    assert!(warnings.contains("odd"), "{warnings}");
}
