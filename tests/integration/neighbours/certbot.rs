//! certbot's nginx plugin edits nginx's main file and the site while it proves control.

use super::super::support::certbot::Certbot;
use super::super::support::executable;
use super::super::support::host::{Ended, Host};
use super::super::support::pebble::Pebble;
use super::*;

/// 46 characters fit into nginx's default bucket, 60 do not.
const SHORT: &str = "a-name-of-exactly-46-characters-of.example.com";
const LONG: &str = "a-name-of-60-characters-which-does-not-fit-there.example.com";
/// Not in a rendered file's words for anything else.
const SIZE: &str = "server_names_hash_bucket_size";

fn base(host: &Host) -> String {
    fs::read_to_string(host.path("state/current/base.conf")).unwrap()
}

/// `certbot certonly --nginx` for the hand-written site.
fn certonly(certbot: &Certbot, host: &Host, pebble: &Pebble) -> Ended {
    let wrapper = host.path("nginx-of-this-host");
    let (prefix, log) = (host.path(""), host.path("logs/error.log"));
    let text = format!(
        "#!/bin/sh\nexec nginx -p {} -e {} \"$@\"\n",
        prefix.display(),
        log.display()
    );
    executable(&wrapper, &text);
    let (root, port) = (
        prefix.display().to_string(),
        host.nginx.http_port.to_string(),
    );
    let arguments = [
        "certonly",
        "--nginx",
        "--nginx-server-root",
        root.trim_end_matches('/'),
        "--nginx-ctl",
        wrapper.to_str().unwrap(),
        "--http-01-port",
        &port,
        "--agree-tos",
        "--register-unsafely-without-email",
        "-d",
        OWN,
    ];
    certbot.run(pebble, &arguments)
}

fn host_with_plain_site() -> (Host, Pebble) {
    let nginx = NginxHost::new();
    nginx.site(
        "own",
        &format!(
            "server {{\n  listen {};\n  server_name {OWN};\n  location / {{\n    return 200 own;\n  }}\n}}\n",
            nginx.http_port
        ),
    );
    Host::with_pebble_on(nginx)
}

fn warnings(host: &Host) -> String {
    host.status()["warnings"].to_string()
}

#[test]
fn certbot_with_its_nginx_plugin_gets_a_certificate_for_a_hand_written_site_beside_vhosts() {
    let (host, pebble) = host_with_plain_site();
    let app = App::start();
    host.drop_app("hello", SHORT, &app);
    let _daemon = host.daemon();
    host.wait_for_serving("hello");
    let certbot = Certbot::new();
    let ended = certonly(&certbot, &host, &pebble);
    assert_eq!(ended.status, 0, "{ended:?}");
    assert!(own_answers(&host, OWN));
    assert_eq!(client::get(host.http(), SHORT, "/").unwrap().status, 301);
    assert!(!warnings(&host).contains(SIZE), "{}", warnings(&host));
}

#[test]
fn a_name_that_needs_larger_buckets_is_served_and_the_admin_is_asked_to_set_them_in_the_main_file()
{
    let (host, pebble) = host_with_plain_site();
    let app = App::start();
    host.drop_app("long", LONG, &app);
    let wanted = format!("put `{SIZE} 128;` into `http {{ }}`");
    let setup = host.vhostd(&["setup"]);
    assert!(setup.stderr.contains(&wanted), "{setup:?}");
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    assert_eq!(client::get(host.http(), LONG, "/").unwrap().status, 200);
    assert!(base(&host).contains(SIZE));
    assert!(warnings(&host).contains(&wanted), "{}", warnings(&host));
    let main = fs::read_to_string(host.nginx.config()).unwrap();
    let main = main.replace("http {", &format!("http {{\n    {SIZE} 128;"));
    fs::write(host.nginx.config(), main).unwrap();
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    assert!(!base(&host).contains(SIZE));
    assert!(!warnings(&host).contains(SIZE), "{}", warnings(&host));
    assert_eq!(client::get(host.http(), LONG, "/").unwrap().status, 200);
    let certbot = Certbot::new();
    let ended = certonly(&certbot, &host, &pebble);
    assert_eq!(ended.status, 0, "{ended:?}");
}

#[test]
fn the_directive_goes_with_the_last_name_that_needs_it() {
    let host = host_with_site("");
    let app = App::start();
    host.drop_app("long", LONG, &app);
    host.drop_app("hello", HELLO, &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    assert!(base(&host).contains(SIZE));
    host.remove_file("long.yml");
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    assert!(!base(&host).contains(SIZE));
}

#[test]
fn a_hand_written_name_that_alone_needed_no_hash_works_beside_a_vhost() {
    let nginx = NginxHost::new();
    let text = format!(
        "server {{ listen {}; server_name {LONG}; return 200 own; }}\n",
        nginx.http_port
    );
    nginx.site("own", &text);
    let host = Host::on(nginx, "tls: off\n");
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    host.reload_ends(0, "activated");
    assert!(own_answers(&host, LONG));
}

#[test]
fn hundreds_of_names_need_no_directive_of_vhostds() {
    let host = Host::with_settings("tls: off\n");
    let names: Vec<String> = (0..700)
        .map(|number| format!("site-number-{number}.example.com"))
        .collect();
    let app = App::start();
    let text = format!(
        "server_name: [{}]\nproxy_pass_url: {}\n",
        names.join(", "),
        app.url()
    );
    host.drop_file("many.yml", &text);
    host.reload_ends(0, "activated");
    assert!(!base(&host).contains("server_names_hash"));
    assert_eq!(
        client::get(host.http(), &names[699], "/").unwrap().status,
        200
    );
}
