//! Hand-written sites keep working beside vhostd, and setup can be taken back.

mod certbot; // its nginx plugin goes on renewing hand-written sites
mod default_server; // the first hand-written site of a socket keeps the unknown names
mod http2; // it is not switched on for hand-written sites
mod live; // hand-written files change while vhostd runs
mod patterns; // names that hand-written patterns match are protected

use std::fs;
use std::path::PathBuf;

use super::support::app::App;
use super::support::client;
use super::support::host::Host;
use super::support::nginx::NginxHost;
use super::support::traffic::Traffic;
use super::support::wait_for;

const OWN: &str = "own.example.com";
const HELLO: &str = "hello.example.com";

/// A hand-written site on vhostd's ports; `parameters` of its `listen`.
fn site(nginx: &NginxHost, parameters: &str) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec![OWN.to_owned()]).unwrap();
    let certificate = certificate.self_signed(&key).unwrap().pem();
    fs::write(nginx.path("own.pem"), certificate).unwrap();
    fs::write(nginx.path("own.key"), key.serialize_pem()).unwrap();
    format!(
        "server {{\n  listen {}{parameters};\n  listen {} ssl{parameters};\n  server_name {OWN};\n\
         \x20 ssl_certificate {};\n  ssl_certificate_key {};\n  return 200 own;\n}}\n",
        nginx.http_port,
        nginx.https_port,
        nginx.path("own.pem").display(),
        nginx.path("own.key").display()
    )
}

fn host_with_site(parameters: &str) -> Host {
    let nginx = NginxHost::new();
    nginx.site("own", &site(&nginx, parameters));
    Host::on(nginx, "tls: internal\n")
}

fn own_answers(host: &Host, name: &str) -> bool {
    let answer = client::get(host.http(), name, "/");
    answer.is_ok_and(|answer| answer.text() == "own")
}

/// All files that nginx reads, and their bytes.
fn configuration(host: &Host) -> Vec<u8> {
    host.nginx.dump()
}

#[test]
fn a_site_on_the_same_ports_answers_untouched_through_many_reloads() {
    let host = host_with_site("");
    assert!(own_answers(&host, OWN));
    let address = host.http();
    let own = Traffic::start(move || match client::get(address, OWN, "/") {
        Ok(answer) if answer.body == b"own" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let trust = client::Trust::pem(&fs::read_to_string(host.path("own.pem")).unwrap());
    let secure = Traffic::https(&host, OWN, trust);
    let apps = [App::start(), App::start()];
    for round in 0..6 {
        host.drop_app("hello", HELLO, &apps[round % 2]);
        let reload = host.vhostd(&["reload"]);
        assert_eq!(reload.status, 0, "{reload:?}");
    }
    assert_eq!(host.active(), 6);
    own.assert_unbroken();
    secure.assert_unbroken();
    let hello = client::get_tls(host.https(), HELLO, "/", &host.internal_root());
    assert_eq!(hello.unwrap().status, 200);
}

#[test]
fn unknown_names_get_the_hand_written_default_server_where_there_is_one() {
    let host = host_with_site(" default_server");
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    let reload = host.vhostd(&["reload"]);
    assert_eq!(reload.status, 0, "{reload:?}");
    assert!(own_answers(&host, "unknown.example.com"));
    assert!(own_answers(&host, OWN));
    let hello = client::get_tls(host.https(), HELLO, "/", &host.internal_root());
    assert_eq!(hello.unwrap().status, 200);
}

#[test]
fn unknown_names_get_444_where_there_is_none() {
    let host = host_with_site("");
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    let reload = host.vhostd(&["reload"]);
    assert_eq!(reload.status, 0, "{reload:?}");
    assert!(client::get(host.http(), "unknown.example.com", "/").is_err());
    assert!(own_answers(&host, OWN));
}

#[test]
fn a_default_server_that_comes_later_is_noticed_by_the_next_reload() {
    let host = host_with_site("");
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    host.nginx
        .site("own", &site(&host.nginx, " default_server"));
    let reload = host.vhostd(&["reload"]);
    assert_eq!(reload.status, 0, "{reload:?}");
    assert!(own_answers(&host, "unknown.example.com"));
}

#[test]
fn a_name_that_a_hand_written_site_serves_is_refused_with_its_place() {
    let host = host_with_site("");
    let app = App::start();
    host.drop_app("hello", OWN, &app);
    let (status, report) = host.json(&["reload"]);
    assert_eq!(status, 3, "{report}");
    let reason = report["rejected"][0]["reason"].as_str().unwrap();
    let place = format!("{}:1", host.path("sites/own").display());
    assert!(reason.contains(&place), "{reason}");
    assert_eq!(report["rejected"][0]["line"], 1);
    assert!(own_answers(&host, OWN));
    assert_eq!(host.vhost("hello").unwrap()["state"], "rejected");
}

#[test]
fn an_error_in_a_hand_written_site_is_named_and_what_serves_keeps_serving() {
    let host = host_with_site("");
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    host.nginx.site("broken", "server {\n  lisen 80;\n}\n");
    host.drop_app("shop", "shop.example.com", &app);
    let reload = host.vhostd(&["reload"]);
    assert_eq!(reload.status, 1, "{reload:?}");
    let place = format!("{}:2", host.path("sites/broken").display());
    assert!(reload.stderr.contains(&place), "{reload:?}");
    let hello = client::get_tls(host.https(), HELLO, "/", &host.internal_root());
    assert_eq!(hello.unwrap().status, 200);
    assert_eq!(host.active(), 1);
    assert_eq!(host.vhost("hello").unwrap()["state"], "serving");
    let shop = host.vhost("shop").unwrap();
    assert_eq!(shop["state"], "pending", "{shop}");
    fs::remove_file(host.path("sites/broken")).unwrap();
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    assert_eq!(host.vhost("shop").unwrap()["state"], "serving");
}

#[test]
fn setup_undone_leaves_nginx_as_it_was_and_setup_again_works() {
    let nginx = NginxHost::new();
    nginx.site("own", &site(&nginx, ""));
    let before = nginx.dump();
    let host = Host::on(nginx, "tls: internal\n");
    assert_ne!(configuration(&host), before);
    let app = App::start();
    host.drop_app("hello", HELLO, &app);
    assert_eq!(host.vhostd(&["reload"]).status, 0);
    let workers = host.nginx.workers();
    let undo = host.vhostd(&["setup", "--undo"]);
    assert_eq!(undo.status, 0, "{undo:?}");
    assert_eq!(configuration(&host), before);
    // the first server is the default again
    wait_for("nginx without vhostd", || {
        own_answers(&host, HELLO).then_some(())
    });
    wait_for("the old workers to go", || {
        let now = host.nginx.workers();
        now.iter()
            .all(|worker| !workers.contains(worker))
            .then_some(())
    });
    let again = host.vhostd(&["setup", "--undo"]);
    assert_eq!(again.status, 0, "{again:?}");
    assert_eq!(host.vhostd(&["setup"]).status, 0);
    assert_eq!(host.vhostd(&["setup"]).status, 0);
    let reload = host.vhostd(&["reload"]);
    assert_eq!(reload.status, 0, "{reload:?}");
    let hello = client::get_tls(host.https(), HELLO, "/", &host.internal_root());
    assert_eq!(hello.unwrap().status, 200);
    assert!(own_answers(&host, OWN));
}

fn include(host: &Host) -> PathBuf {
    host.path("conf.d/vhostd.conf")
}

#[test]
fn with_json_setup_says_what_it_did_and_what_failed() {
    let host = Host::new();
    let (exit, undone) = host.json(&["setup", "--undo"]);
    assert_eq!(exit, 0, "{undone}");
    assert!(undone["done"].is_array() && undone["error"].is_null());
    let (exit, prepared) = host.json(&["setup"]);
    assert_eq!(exit, 0, "{prepared}");
    let line = include(&host).display().to_string();
    let done = prepared["done"].as_array().unwrap();
    assert!(
        done.iter()
            .any(|what| what.as_str().unwrap().contains(&line)),
        "{prepared}"
    );
    assert_eq!(host.json(&["setup", "--undo"]).0, 0);
    fs::write(include(&host), "# by hand\n").unwrap();
    let (exit, refused) = host.json(&["setup"]);
    assert_eq!(exit, 1, "{refused}");
    assert!(
        refused["error"].as_str().unwrap().contains(&line),
        "{refused}"
    );
}

#[test]
fn setup_refuses_a_foreign_include_file() {
    let host = Host::new();
    for foreign in ["# mine\nserver_tokens off;\n", "include /etc/other.conf;\n"] {
        fs::write(include(&host), foreign).unwrap();
        for arguments in [&["setup"][..], &["setup", "--undo"]] {
            let setup = host.vhostd(arguments);
            assert_eq!(setup.status, 1, "{setup:?}");
            assert!(
                setup.stderr.contains("it holds something else"),
                "{setup:?}"
            );
            assert_eq!(fs::read_to_string(include(&host)).unwrap(), foreign);
        }
    }
}

#[test]
fn setup_names_the_directory_that_the_include_line_lacks() {
    let host = Host::new();
    // a line that is there stays where it is
    assert_eq!(host.vhostd(&["setup", "--undo"]).status, 0);
    let settings = fs::read_to_string(host.path("vhostd.yml")).unwrap();
    let elsewhere = settings.replace("conf.d/vhostd.conf", "nowhere.d/vhostd.conf");
    fs::write(host.path("vhostd.yml"), elsewhere).unwrap();
    let setup = host.vhostd(&["setup"]);
    assert_eq!(setup.status, 1, "{setup:?}");
    let directory = host.path("nowhere.d").display().to_string();
    assert!(
        setup
            .stderr
            .contains(&format!("make the directory {directory}")),
        "{setup:?}"
    );
    assert!(!setup.stderr.contains("as root"), "{setup:?}");
}

#[test]
fn without_nginx_every_command_that_needs_it_says_how_to_get_it() {
    let host = Host::new();
    let settings = fs::read_to_string(host.path("vhostd.yml")).unwrap();
    let other = settings.replace("binary: nginx,", "binary: no-such-nginx,");
    fs::write(host.path("vhostd.yml"), other).unwrap();
    for command in ["setup", "reload", "renew", "status", "rollback", "run"] {
        let ended = host.vhostd(&[command]);
        assert_eq!(ended.status, 1, "{command}: {ended:?}");
        assert!(
            ended.stderr.contains("apt install nginx"),
            "{command}: {ended:?}"
        );
    }
}

#[test]
fn setup_takes_its_line_back_when_nginx_refuses() {
    let host = Host::new();
    assert_eq!(host.vhostd(&["setup", "--undo"]).status, 0);
    assert!(!include(&host).exists());
    host.nginx.site("broken", "lisen 80;\n");
    let setup = host.vhostd(&["setup"]);
    assert_eq!(setup.status, 1, "{setup:?}");
    let place = format!("{}:1", host.path("sites/broken").display());
    assert!(setup.stderr.contains(&place), "{setup:?}");
    assert!(!include(&host).exists());
    fs::remove_file(host.path("sites/broken")).unwrap();
    // an nginx that does not read conf.d
    let main = fs::read_to_string(host.nginx.config()).unwrap();
    fs::write(
        host.nginx.config(),
        main.replace("include conf.d/*.conf;", ""),
    )
    .unwrap();
    let setup = host.vhostd(&["setup"]);
    assert_eq!(setup.status, 1, "{setup:?}");
    assert!(setup.stderr.contains("does not include"), "{setup:?}");
    assert!(!include(&host).exists());
}

#[test]
fn a_hand_written_zone_with_a_leading_dot_has_its_names_and_only_the_app_that_wants_one_is_rejected()
 {
    let nginx = NginxHost::new();
    let port = nginx.http_port;
    nginx.site(
        "zone",
        &format!("server {{ listen {port}; server_name .example.org; return 200 zone; }}\n"),
    );
    let host = Host::on(nginx, "tls: off\n");
    let app = App::start();
    host.drop_app("taken", "example.org", &app);
    host.drop_app("hello", HELLO, &app);
    let report = host.reload_ends(3, "activated");
    assert_eq!(report["rejected"][0]["name"], "taken", "{report}");
    assert_eq!(client::get(host.http(), HELLO, "/").unwrap().status, 200);
}
