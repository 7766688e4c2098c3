//! CAs and webhooks through an HTTP proxy: `acme.proxy`, `HTTPS_PROXY` and `NO_PROXY`.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::support::app::App;
use super::support::host::{Ended, Host};
use super::support::nginx::{NginxHost, free_port};
use super::support::pebble::{Pebble, UNRESOLVED};
use super::support::proxy::{Behaviour, Proxy};
use super::support::receiver::Receiver;

const NAME: &str = "hello.example.com";
const CA: &str = "CONNECT ca.invalid:14000";
const PASSWORD: &str = "hunter2";

/// A host whose CA has a name that only the proxy can reach.
struct Scene {
    host: Host,
    pebble: Pebble,
    proxy: Proxy,
    _app: App,
}

impl Scene {
    /// `further`: below `acme`, with the proxy's URL.
    fn new(further: impl Fn(&Proxy) -> String) -> Self {
        let nginx = NginxHost::new();
        let pebble = Pebble::start(nginx.http_port);
        let proxy = Proxy::start(Behaviour::Connects(pebble.address()));
        let host = Host::on(nginx, &settings(&pebble, &further(&proxy)));
        let app = App::start();
        host.drop_app("hello", NAME, &app);
        Self {
            host,
            pebble,
            proxy,
            _app: app,
        }
    }

    /// `renew` with these variables.
    fn renew(&self, environment: &[(&str, &str)]) -> Ended {
        let mut command = self.host.command(&["renew", NAME, "--force"]);
        let output = command.envs(environment.iter().copied()).output().unwrap();
        Ended {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn certificate(&self) -> Value {
        self.host.certificate(NAME).unwrap()
    }
}

fn settings(pebble: &Pebble, further: &str) -> String {
    let ca_file = pebble.ca_file();
    let ca_file = ca_file.display();
    format!(
        "acme: {{directory: \"https://{UNRESOLVED}:14000/dir\", ca_file: {ca_file}{further}}}\n"
    )
}

/// Nowhere below the directory.
fn is_written_nowhere(secret: &str, directory: &Path) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            is_written_nowhere(secret, &path);
        } else if entry.file_name() != "vhostd.yml" {
            let text = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            assert!(!text.contains(secret), "{}", path.display());
        }
    }
}

#[test]
fn an_order_reaches_a_ca_that_only_the_proxy_can_reach() {
    let scene = Scene::new(|proxy| {
        let address = proxy.address;
        format!(", proxy: \"http://user:{PASSWORD}@{address}\"")
    });
    let daemon = scene.host.daemon();
    let reload = scene.host.vhostd(&["reload", "--wait"]);
    assert_eq!(reload.status, 0, "{reload:?}");
    assert_eq!(scene.certificate()["state"], "valid");
    let asked = scene.proxy.asked();
    assert!(
        !asked.is_empty() && asked.iter().all(|it| it.line == CA),
        "{asked:?}"
    );
    // printf user:hunter2 | base64
    let login = asked[0].login.as_deref();
    assert_eq!(login, Some("Basic dXNlcjpodW50ZXIy"));
    assert_eq!(scene.pebble.finalized(), 1);
    // what goes wrong is told without the login, too
    scene
        .proxy
        .behave(Behaviour::Says("HTTP/1.1 407 No\r\n\r\n"));
    assert_eq!(scene.host.vhostd(&["reload"]).status, 0);
    let renewed = scene.renew(&[]);
    assert_eq!(renewed.status, 4, "{renewed:?}");
    let status = scene.host.vhostd(&["status"]);
    for told in [format!("{renewed:?}"), format!("{status:?}"), daemon.log()] {
        assert!(
            !told.contains(PASSWORD) && !told.contains("dXNlcj"),
            "{told}"
        );
    }
    let told = scene.certificate()["last_error"].clone();
    let expected = format!(
        "ca.invalid:14000 is out of reach through the proxy {}: it answers HTTP 407 Proxy Authentication Required; it refuses the login",
        scene.proxy.url()
    );
    assert!(told.as_str().unwrap().contains(&expected), "{told}");
    is_written_nowhere(PASSWORD, &scene.host.path("state"));
    is_written_nowhere("dXNlcj", &scene.host.path("state"));
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn the_environments_proxy_counts_unless_no_proxy_or_the_settings_say_otherwise() {
    let scene = Scene::new(|_| String::new());
    assert_eq!(scene.host.vhostd(&["reload"]).status, 0);
    let url = scene.proxy.url();
    let dead = format!("http://127.0.0.1:{}", free_port());
    for environment in [
        vec![("HTTPS_PROXY", url.as_str())],
        vec![
            ("HTTPS_PROXY", dead.as_str()),
            ("https_proxy", url.as_str()),
        ],
        vec![
            ("HTTPS_PROXY", url.as_str()),
            ("NO_PROXY", "example.com,127.0.0.1"),
        ],
    ] {
        let before = scene.proxy.asked().len();
        let renewed = scene.renew(&environment);
        assert_eq!(renewed.status, 0, "{environment:?}: {renewed:?}");
        assert!(scene.proxy.asked().len() > before, "{environment:?}");
    }
    let before = scene.proxy.asked().len();
    for environment in [
        vec![("HTTPS_PROXY", url.as_str()), ("NO_PROXY", "invalid")],
        vec![
            ("HTTPS_PROXY", url.as_str()),
            ("no_proxy", "ca.invalid:14000"),
        ],
        vec![("HTTP_PROXY", url.as_str()), ("http_proxy", url.as_str())],
    ] {
        let renewed = scene.renew(&environment);
        assert_eq!(renewed.status, 4, "{environment:?}: {renewed:?}");
        assert!(!renewed.stderr.contains("through the proxy"), "{renewed:?}");
    }
    scene
        .host
        .configure(&settings(&scene.pebble, ", proxy: off"));
    let renewed = scene.renew(&[("HTTPS_PROXY", &url)]);
    assert_eq!(renewed.status, 4, "{renewed:?}");
    assert_eq!(scene.proxy.asked().len(), before);
    // one that is meant for other programs stops no command
    scene.host.configure(&settings(&scene.pebble, ""));
    let socks = [("HTTPS_PROXY", "socks5://127.0.0.1:1080")];
    let renewed = scene.renew(&socks);
    assert_eq!(renewed.status, 4, "{renewed:?}");
    assert!(
        renewed
            .stderr
            .contains("through the proxy HTTPS_PROXY: no http:// URL"),
        "{renewed:?}"
    );
    let mut status = scene.host.command(&["status"]);
    assert!(status.envs(socks).output().unwrap().status.success());
}

#[test]
fn a_proxy_that_fails_is_told_with_what_to_do_and_tried_again() {
    let scene = Scene::new(|proxy| format!(", proxy: \"{}\"", proxy.url()));
    assert_eq!(scene.host.vhostd(&["reload"]).status, 0);
    let through = format!(
        "ca.invalid:14000 is out of reach through the proxy {}: ",
        scene.proxy.url()
    );
    let fails = |expected: &str| {
        let renewed = scene.renew(&[]);
        assert_eq!(renewed.status, 4, "{renewed:?}");
        let certificate = scene.certificate();
        let told = certificate["last_error"].as_str().unwrap();
        assert!(
            told.contains(&format!("{through}{expected}")),
            "{expected}: {told}"
        );
        assert_eq!(certificate["state"], "failing", "{certificate}");
        assert!(certificate["renew_at"].is_string(), "{certificate}");
    };
    for (says, expected) in [
        (
            "HTTP/1.1 407 Login\r\nProxy-Authenticate: Basic\r\n\r\n",
            "it answers HTTP 407 Proxy Authentication Required; it wants a login",
        ),
        (
            "HTTP/1.1 403 Forbidden\r\n\r\n",
            "it answers HTTP 403 Forbidden; let it permit CONNECT",
        ),
        (
            "HTTP/1.1 503 No\r\n\r\n",
            "it answers HTTP 503 Service Unavailable; it cannot get there itself",
        ),
        ("SSH-2.0-OpenSSH_9.2\r\n", "it does not speak HTTP"),
        ("", "it closes the connection instead of answering"),
    ] {
        scene.proxy.behave(Behaviour::Says(says));
        fails(expected);
    }
    scene.proxy.behave(Behaviour::Silent);
    fails("no answer within 10 s");
    // TLS that is not the CA's
    scene.proxy.behave(Behaviour::Says(
        "HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 400 Bad Request\r\n\r\n",
    ));
    let renewed = scene.renew(&[]);
    let expected = format!(
        "the CA is out of reach through the proxy {}: ",
        scene.proxy.url()
    );
    assert!(renewed.stderr.contains(&expected), "{renewed:?}");
    scene
        .proxy
        .behave(Behaviour::Connects(scene.pebble.address()));
    let renewed = scene.renew(&[]);
    assert_eq!(renewed.status, 0, "{renewed:?}");
    // nothing is there
    let port = free_port();
    let dead = format!(", proxy: \"http://127.0.0.1:{port}\"");
    scene.host.configure(&settings(&scene.pebble, &dead));
    let renewed = scene.renew(&[]);
    let expected = format!("out of reach through the proxy http://127.0.0.1:{port}: ");
    assert!(renewed.stderr.contains(&expected), "{renewed:?}");
    assert!(
        renewed
            .stderr
            .contains("Connection refused (os error 111); is it running"),
        "{renewed:?}"
    );
}

#[test]
fn webhooks_go_through_the_proxy_unless_they_are_plain_http_on_this_host() {
    let receiver = Receiver::start();
    let scene = Scene::new(|proxy| format!(", proxy: \"{}\"", proxy.url()));
    let ca_file = scene.pebble.ca_file().display().to_string();
    let (acme, plain) = (
        fs::read_to_string(scene.host.path("vhostd.yml")).unwrap(),
        receiver.url("/hook"),
    );
    let acme = acme.lines().find(|line| line.starts_with("acme:")).unwrap();
    scene.host.configure(&format!(
        "{acme}\nhooks: {{on_change: [{{webhook: {{url: \"https://{UNRESOLVED}:14000/dir\", ca_file: {ca_file}}}}}, \
         {{webhook: {{url: \"{plain}\"}}}}]}}\n"
    ));
    let tested = || {
        let (_, tested) = scene.host.json(&["hooks", "test"]);
        tested
    };
    let hooks = tested();
    // it speaks TLS, and takes no such message
    let error = hooks["hooks"][0]["error"].as_str().unwrap();
    assert!(error.contains("deliver it: HTTP 415"), "{error}");
    assert_eq!(hooks["hooks"][1]["delivered"], true, "{hooks}");
    let asked = scene.proxy.asked();
    let lines: Vec<_> = asked.iter().map(|it| it.line.as_str()).collect();
    assert_eq!(lines, [CA]);
    scene
        .proxy
        .behave(Behaviour::Says("HTTP/1.1 403 Forbidden\r\n\r\n"));
    let error = tested()["hooks"][0]["error"].as_str().unwrap().to_owned();
    let expected = format!(
        "failed to deliver it: ca.invalid:14000 is out of reach through the proxy {}: it answers HTTP 403",
        scene.proxy.url()
    );
    assert!(error.starts_with(&expected), "{error}");
}

#[test]
fn a_proxys_password_is_in_no_error_of_the_settings() {
    let host = Host::new();
    for proxy in [
        format!("{{proxy: \"https://user:{PASSWORD}@proxy:3128\"}}"),
        format!("{{proxy: \"http://user:{PASSWORD}@proxy:3128/path\"}}"),
        format!("{{proxy: \"user:{PASSWORD}@proxy:3128\"}}"),
        format!("{{proxy: \"http://user:{PASSWORD}@proxy:3128\", bogus: 1}}"),
        format!("{{proxy: \"http://user:{PASSWORD}@proxy:3128\", email: ]}}"),
    ] {
        host.configure(&format!("tls: internal\nacme: {proxy}\n"));
        let checked = host.vhostd(&["check"]);
        assert_eq!(checked.status, 2, "{proxy}: {checked:?}");
        assert!(!format!("{checked:?}").contains(PASSWORD), "{checked:?}");
    }
}
