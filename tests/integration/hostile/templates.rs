//! A template that says something else than the blocks is refused, and what serves serves on.

use std::fs;

use crate::support::app::App;
use crate::support::host::Host;

const SHIPPED: &str = include_str!("../../../templates/vhost.conf");

fn override_vhost(host: &Host, text: &str) {
    fs::create_dir_all(host.path("templates")).unwrap();
    fs::write(host.path("templates/vhost.conf"), text).unwrap();
}

/// The shipped template with one change.
fn changed(from: &str, to: &str) -> String {
    assert!(SHIPPED.contains(from), "{from}");
    SHIPPED.replacen(from, to, 1)
}

fn serving_hello() -> (Host, App) {
    let app = App::start();
    let host = Host::with_settings("tls: off\n");
    host.drop_app("hello", "hello.example.com", &app);
    host.reload_ends(0, "activated");
    (host, app)
}

#[test]
fn a_template_that_does_not_say_what_the_blocks_mean_is_refused_and_what_serves_serves_on() {
    let (host, _app) = serving_hello();
    let before = host.rendered("hello").unwrap();
    let active = host.active();
    for (from, to, said) in [
        // a value pasted beside the quoter
        ("{{ name }}{%", "x.example.com{%", "server_name"),
        // lost, doubled, moved, another value
        (
            "    access_log {{ server.access_log }};\n",
            "",
            "access_log",
        ),
        (
            "proxy_pass {{ server.site.proxy.pass }};",
            "proxy_pass {{ server.site.proxy.pass }}; proxy_pass http://127.0.0.1:1;",
            "proxy_pass",
        ),
        (
            "proxy_pass {{ server.site.proxy.pass }};",
            "proxy_pass http://169.254.169.254;",
            "proxy_pass",
        ),
        ("server_tokens off;", "include /etc/passwd;", "include"),
        (
            "server_tokens off;",
            "location /x { root /etc; }",
            "location /x",
        ),
        // a name in a comment
        (
            "\nserver {\n",
            "\n# {{ server.names[0] }}\nserver {\n",
            "comment",
        ),
    ] {
        override_vhost(&host, &changed(from, to));
        let ended = host.vhostd(&["reload"]);
        // the file that serves is kept as it is
        assert_eq!(ended.status, 3, "{to}: {ended:?}");
        assert!(ended.stderr.contains(said), "{to}: {ended:?}");
        assert!(
            ended.stderr.contains("vhosts/hello.conf"),
            "{to}: {ended:?}"
        );
        assert_eq!(host.active(), active);
        assert_eq!(host.rendered("hello").unwrap(), before);
        assert_eq!(host.plain("hello.example.com").unwrap().0, 200);
    }
    // tuning is what an override is for
    override_vhost(
        &host,
        &changed(
            "client_max_body_size 100m;",
            "client_max_body_size 1g;\n    gzip on;",
        ),
    );
    host.reload_ends(0, "activated");
    assert!(host.rendered("hello").unwrap().contains("gzip on;"));
    assert_eq!(host.plain("hello.example.com").unwrap().0, 200);
}

#[test]
fn an_app_that_a_template_cannot_render_is_left_out_alone() {
    let (host, app) = serving_hello();
    let broken_for = "{% if server.names[0] == \"bad.example.com\" %}    alias /etc/;\n{% endif %}";
    override_vhost(
        &host,
        &changed(
            "    server_tokens off;\n",
            &format!("    server_tokens off;\n{broken_for}"),
        ),
    );
    host.drop_app("bad", "bad.example.com", &app);
    host.drop_app("third", "third.example.com", &app);
    let report = host.reload_ends(3, "activated");
    assert_eq!(report["rejected"][0]["name"], "bad", "{report}");
    let reason = report["rejected"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("alias"), "{report}");
    for name in ["hello.example.com", "third.example.com"] {
        assert_eq!(host.plain(name).unwrap().0, 200, "{name}");
    }
}

#[test]
fn a_template_of_the_file_of_all_that_loses_the_default_server_is_refused() {
    let (host, _app) = serving_hello();
    let shipped = include_str!("../../../templates/base.conf");
    let active = host.active();
    for (from, to) in [
        (" default_server;", ";"),
        ("        return 444;\n", ""),
        ("default \"@app\";", "default \"@stream\";"),
        ("map $http_upgrade", "map $http_x"),
    ] {
        assert!(shipped.contains(from), "{from}");
        fs::create_dir_all(host.path("templates")).unwrap();
        fs::write(
            host.path("templates/base.conf"),
            shipped.replacen(from, to, 1),
        )
        .unwrap();
        let ended = host.vhostd(&["reload"]);
        assert_eq!(ended.status, 1, "{to}: {ended:?}");
        assert!(ended.stderr.contains("base.conf"), "{to}: {ended:?}");
        assert_eq!(host.active(), active);
        assert_eq!(host.plain("hello.example.com").unwrap().0, 200);
    }
}
