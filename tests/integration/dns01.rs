//! dns-01: a real name server is changed, a real CA looks, and nothing is left behind.

mod left; // what could not be taken out
mod refused; // providers and zones that are not there
mod stopped; // who is stopped while a hook runs

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use vhostd::dns::{Dns, Published};

use super::dns::{asking, run};
use super::support::host::{Ended, Host, acme};
use super::support::nameserver::{KEY_NAME, KEY_SECRET, NameServer};
use super::support::nginx::NginxHost;
use super::support::pebble::Pebble;
use super::support::{executable, recursor, wait_for, wait_within};

const ZONES: [(&str, &str); 2] = [
    (
        "shop.test",
        "_acme-challenge TXT \"somebody else's\"\n\
         _acme-challenge.away CNAME shop-away.acme.other.test.\n",
    ),
    ("acme.other.test", ""),
];

/// A host whose CA looks at a name server of its own, and never at port 80.
struct Scene {
    host: Host,
    knot: NameServer,
    pebble: Pebble,
}

impl Scene {
    fn new(provider: &str) -> Self {
        Self::on(NameServer::start(&ZONES), &[], provider)
    }

    /// `further`: name servers beside it. PROVIDER may have `{knot}`, `{key}` and `{dir}`.
    fn on(knot: NameServer, further: &[SocketAddr], provider: &str) -> Self {
        let nginx = NginxHost::new();
        let resolver = recursor::start(knot.address());
        let pebble = Pebble::builder(1).resolver(resolver).start();
        fs::write(nginx.path("tsig.key"), format!("{KEY_SECRET}\n")).unwrap();
        let host = Host::on(nginx, &acme(&pebble));
        let scene = Self { host, knot, pebble };
        scene.configure(further, provider);
        scene
    }

    fn configure(&self, further: &[SocketAddr], provider: &str) {
        self.configure_all(further, "p", provider);
    }

    fn configure_named(&self, name: &str, provider: &str) {
        self.configure_all(&[], name, provider);
    }

    fn configure_all(&self, further: &[SocketAddr], named: &str, provider: &str) {
        let all = [self.knot.address()];
        let all: Vec<_> = all.iter().chain(further).map(ToString::to_string).collect();
        let own = OWN
            .replace("{knot}", &self.knot.address().to_string())
            .replace("{name}", KEY_NAME);
        let provider = provider
            .replace("{own}", &own)
            .replace("{dir}", &self.host.path("").display().to_string());
        let provider = provider.replace("{key}", &self.host.path("tsig.key").display().to_string());
        self.host.configure(&format!(
            "{}dns: {{resolvers: [{}], providers: {{{named}: {{{provider}}}}}}}\n",
            acme(&self.pebble),
            all.join(", "),
        ));
    }

    /// A rehearsal is at the same CA.
    fn use_staging(&self) {
        let path = self.host.path("vhostd.yml");
        let settings = fs::read_to_string(&path).unwrap();
        let staging = format!("acme: {{staging: '{}', ", self.pebble.directory_url());
        fs::write(path, settings.replace("acme: {", &staging)).unwrap();
    }

    fn drop_vhost(&self, names: &str) {
        let text = format!(
            "server_name: {names}\nroot: {}\ntls: {{dns: p}}\n",
            self.root()
        );
        self.host.drop_file("shop.yml", &text);
    }

    fn root(&self) -> String {
        self.host.path("srv/shop").display().to_string()
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.host.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    fn published(&self, name: &str) -> Published {
        run(asking(&[self.knot.address()]).txt(name)).unwrap()
    }

    fn texts(&self, name: &str) -> Vec<String> {
        self.published(name).servers[0]
            .values
            .clone()
            .unwrap_or_default()
    }

    fn error(&self, certificate: &str) -> String {
        let certificate = self.host.certificate(certificate).unwrap();
        certificate["last_error"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// What is still to be taken out of DNS.
    fn noted(&self) -> Vec<String> {
        let names = fs::read_dir(self.host.path("state/orders")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".dns.json")).collect()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.host.path("hook.log")).unwrap_or_default()
    }

    fn hook(&self, script: &str) -> PathBuf {
        let path = self.host.path("hook");
        let log = self.host.path("hook.log").display().to_string();
        executable(
            &path,
            &format!("#!/bin/sh\necho \"$1\" >> {log}\n{script}\n"),
        );
        path
    }
}

const OWN: &str = "rfc2136: {server: '{knot}', key_name: {name}, secret_file: {key}}";

fn end(child: Child) -> Ended {
    let output = child.wait_with_output().unwrap();
    Ended {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn a_name_and_its_wildcard_are_proven_side_by_side_by_signed_updates() {
    let scene = Scene::new("{own}");
    scene.drop_vhost("[shop.test, '*.shop.test']");
    let reload = scene.host.vhostd(&["reload", "--wait"]);
    assert_eq!(reload.status, 0, "{reload:?} {}", scene.error("shop.test"));
    let chain = scene
        .host
        .path("state/certificates/shop.test/current/fullchain.pem");
    scene.pebble.verify(&chain, "shop.test");
    scene.pebble.verify(&chain, "any.shop.test");
    assert_eq!(
        scene.texts("_acme-challenge.shop.test"),
        ["somebody else's"]
    );
    assert!(scene.noted().is_empty());
}

#[test]
fn a_wildcard_alone_needs_no_key_where_there_is_one_provider_and_a_rehearsal_leaves_nothing() {
    let scene = Scene::new("{own}");
    let root = scene.root();
    let text = format!("server_name: '*.shop.test'\nroot: {root}\n");
    scene.host.drop_file("shop.yml", &text);
    let reload = scene.host.vhostd(&["reload", "--wait"]);
    assert_eq!(reload.status, 0, "{reload:?}");
    scene.use_staging();
    let rehearsal = scene.host.vhostd(&["renew", "--dry-run"]);
    assert_eq!(rehearsal.status, 0, "{rehearsal:?}");
    assert_eq!(scene.pebble.finalized(), 2);
    assert_eq!(
        scene.texts("_acme-challenge.shop.test"),
        ["somebody else's"]
    );
    assert!(scene.noted().is_empty());
}

#[test]
fn a_hook_is_told_where_a_cname_leads_and_the_text_is_put_there() {
    let scene = Scene::new("{own}");
    let hook = scene.knot.hook(&scene.host.path("hook.log"));
    scene.configure(&[], &format!("exec: {}", hook.display()));
    scene.drop_vhost("[away.shop.test, shop.test]");
    let reload = scene.host.vhostd(&["reload", "--wait"]);
    assert_eq!(
        reload.status,
        0,
        "{reload:?} {}",
        scene.error("away.shop.test")
    );
    let log = scene.log();
    let told: Vec<Vec<&str>> = log.lines().map(|line| line.split(' ').collect()).collect();
    let actions: Vec<_> = told.iter().map(|words| (words[0], words[1])).collect();
    let places = ["shop-away.acme.other.test.", "_acme-challenge.shop.test."];
    for action in ["present", "cleanup"] {
        for place in places {
            let times = actions.iter().filter(|it| **it == (action, place)).count();
            assert_eq!(times, 1, "{action} {place}: {log}");
        }
    }
    assert!(told.iter().all(|words| words[2].len() == 43), "{log}");
    assert!(scene.texts("_acme-challenge.away.shop.test").is_empty());
    assert_eq!(
        scene.texts("_acme-challenge.shop.test"),
        ["somebody else's"]
    );
}

const TWO: &str = "@ NS ns2.nameserver.test.\n";

/// A zone with a second name server, which has nothing yet.
fn lagging(provider: &str) -> (Scene, NameServer) {
    let zones = [("lag.test", TWO)];
    let second = NameServer::start_at([127, 0, 0, 2], &zones);
    let scene = Scene::on(NameServer::start(&zones), &[second.address()], provider);
    scene.drop_vhost("lag.test");
    (scene, second)
}

#[test]
fn a_second_name_server_that_lags_is_waited_for_before_the_ca_is_told() {
    let (scene, mut second) = lagging("{own}");
    let reload = scene.start(&["reload", "--wait"]);
    let value = wait_for("the text at the first server", || {
        scene.texts("_acme-challenge.lag.test").pop()
    });
    wait_for("the daemonless reload to look at the second", || {
        (scene.noted().len() == 1).then_some(())
    });
    // long enough for an order that does not wait: one takes a fraction of that
    let told = wait_for_some_time(|| scene.pebble.log().contains("POST /chalZ/"));
    assert!(!told, "{}", scene.pebble.log());
    second.rewrite("lag.test", &format!("{TWO}_acme-challenge TXT {value}\n"));
    let reload = end(reload);
    assert_eq!(reload.status, 0, "{reload:?} {}", scene.error("lag.test"));
    assert!(scene.texts("_acme-challenge.lag.test").is_empty());
}

#[test]
fn a_name_server_that_never_follows_is_named_with_what_it_lacks() {
    let (scene, _second) = lagging("{own}, propagation: 1s");
    let reload = scene.host.vhostd(&["reload", "--wait"]);
    assert_eq!(reload.status, 4, "{reload:?}");
    let error = scene.error("lag.test");
    let begin = "publish the texts for dns-01 within 1 s: ns2.nameserver.test (127.0.0.2:";
    assert!(error.starts_with(begin), "{error}");
    assert!(error.ends_with(" at _acme-challenge.lag.test"), "{error}");
    assert!(scene.texts("_acme-challenge.lag.test").is_empty());
    assert!(scene.noted().is_empty());
}

#[test]
fn after_a_kill_before_the_ca_was_told_the_next_run_takes_the_text_out() {
    let order = ["reload", "--wait"];
    let rehearsal = ["renew", "--dry-run"];
    for (command, noted, daemon_comes_back) in [
        (order, "lag.test.dns.json", true),
        (order, "lag.test.dns.json", false),
        (rehearsal, "lag.test_dry-run.dns.json", true),
    ] {
        let (scene, _second) = lagging("{own}");
        if command == rehearsal {
            scene.use_staging();
            assert_eq!(scene.host.vhostd(&["reload"]).status, 0);
        }
        let mut running = scene.start(&command);
        wait_for("the text at the first server", || {
            scene.texts("_acme-challenge.lag.test").pop()
        });
        running.kill().unwrap();
        running.wait().unwrap();
        assert_eq!(scene.texts("_acme-challenge.lag.test").len(), 1);
        assert_eq!(scene.noted(), [noted]);
        // nobody orders it again
        let text = format!("server_name: lag.test\nroot: {}\ntls: off\n", scene.root());
        scene.host.drop_file("shop.yml", &text);
        let daemon = daemon_comes_back.then(|| scene.host.daemon());
        if daemon.is_none() {
            assert_eq!(scene.host.vhostd(&["reload", "--wait"]).status, 0);
        }
        wait_for("the text to be gone", || {
            let gone = scene.texts("_acme-challenge.lag.test").is_empty();
            (gone && scene.noted().is_empty()).then_some(())
        });
    }
}

#[test]
fn a_key_that_the_server_does_not_take_is_said_as_what_it_is() {
    let scene = Scene::new("{own}");
    scene.drop_vhost("shop.test");
    let wrong = "c29tZXRoaW5nIGVsc2UgYWx0b2dldGhlciBvZiAzMiBi\n";
    fs::write(scene.host.path("tsig.key"), wrong).unwrap();
    let reload = scene.host.vhostd(&["reload", "--wait"]);
    assert_eq!(reload.status, 4, "{reload:?}");
    let knot = scene.knot.address();
    let key = scene.host.path("tsig.key");
    assert_eq!(
        scene.error("shop.test"),
        format!(
            "publish a text for dns-01 through p: sign for {knot}: its secret for the key vhostd-test is another one than that of {}",
            key.display()
        )
    );
    assert!(!scene.error("shop.test").contains(wrong.trim()));
    let renewed = |error: &str| {
        let renew = scene.host.vhostd(&["renew", "shop"]);
        assert_eq!(renew.status, 4, "{renew:?}");
        let said = scene.error("shop.test");
        assert!(said.contains(error), "{said}");
    };
    let stranger =
        format!("key \"stranger\" {{ algorithm hmac-sha256; secret \"{KEY_SECRET}\"; }};\n");
    fs::write(&key, stranger).unwrap();
    scene.configure(
        &[],
        &format!("rfc2136: {{server: '{knot}', secret_file: {{key}}}}"),
    );
    renewed("it does not know the key stranger");
    fs::write(&key, format!("{KEY_SECRET}\n")).unwrap();
    renewed("it does not say the key's name: set `key_name`");
    scene.configure(&[], "{own}, propagation: 20s");
    fs::remove_file(&key).unwrap();
    renewed("tsig.key: no such file or directory");
    fs::write(&key, format!("{KEY_SECRET}\n")).unwrap();
    let renew = scene.host.vhostd(&["renew", "shop"]);
    assert_eq!(renew.status, 0, "{renew:?}");
}

#[test]
fn a_zone_that_the_server_does_not_have_is_said_as_what_it_is() {
    let elsewhere = NameServer::start_at([127, 0, 0, 2], &[("else.test", "")]);
    let scene = Scene::new("{own}");
    let server = elsewhere.address();
    scene.configure(
        &[],
        &format!("rfc2136: {{server: '{server}', key_name: {KEY_NAME}, secret_file: {{key}}}}"),
    );
    scene.drop_vhost("shop.test");
    assert_eq!(scene.host.vhostd(&["reload", "--wait"]).status, 4);
    let said = scene.error("shop.test");
    let expected = format!(
        "change _acme-challenge.shop.test in shop.test at {server}, which does not have that zone"
    );
    assert!(said.ends_with(&expected), "{said}");
}

#[test]
fn a_hook_that_fails_is_shown_in_its_own_words_and_cleaned_up_after() {
    let scene = Scene::new("{own}");
    let hook = scene.hook("test $1 = cleanup || { echo \"denied: $TOKEN is wrong\" >&2; exit 3; }");
    let hook = hook.display();
    let provider = format!("exec: [{hook}], environment: {{TOKEN: very-secret}}");
    scene.configure(&[], &provider);
    scene.drop_vhost("shop.test");
    let reload = scene.host.vhostd(&["reload", "--wait"]);
    assert_eq!(reload.status, 4, "{reload:?}");
    assert_eq!(
        scene.error("shop.test"),
        format!(
            "publish a text for dns-01 through p: run {hook} present: it ended with exit status: 3: denied: … is wrong"
        )
    );
    assert_eq!(scene.log(), "present\ncleanup\n");
    assert!(scene.noted().is_empty());
    assert!(!format!("{reload:?}").contains("very-secret"));
}

#[test]
fn a_hook_that_hangs_is_killed_and_cleaned_up_after() {
    let scene = Scene::new("{own}");
    let hook = scene.hook("test $1 = cleanup || sleep 600");
    scene.configure(&[], &format!("exec: {}, timeout: 1s", hook.display()));
    scene.drop_vhost("shop.test");
    let reload = scene.start(&["reload", "--wait"]);
    let reload = wait_within_end(reload);
    assert_eq!(reload.status, 4, "{reload:?}");
    let said = scene.error("shop.test");
    assert!(
        said.ends_with("it did not end within 1 s and was killed"),
        "{said}"
    );
    assert_eq!(scene.log(), "present\ncleanup\n");
}

#[test]
fn what_a_hook_fails_to_take_out_is_taken_out_by_the_next_order() {
    let scene = Scene::new("{own}");
    let knots = scene.knot.hook(&scene.host.path("knot.log"));
    let (knots, flag) = (knots.display().to_string(), scene.host.path("broken"));
    let broken = flag.display().to_string();
    let hook = scene.hook(&format!(
        "test $1 = present || test ! -e {broken} || exit 1\nexec {knots} \"$@\""
    ));
    scene.configure(&[], &format!("exec: {}", hook.display()));
    scene.drop_vhost("shop.test");
    fs::write(&flag, "").unwrap();
    let reload = scene.host.vhostd(&["reload", "--wait"]);
    // it has its certificate all the same
    assert_eq!(reload.status, 0, "{reload:?} {}", scene.error("shop.test"));
    assert_eq!(scene.texts("_acme-challenge.shop.test").len(), 2);
    fs::remove_file(&flag).unwrap();
    assert_eq!(scene.host.vhostd(&["renew"]).status, 0);
    assert_eq!(
        scene.texts("_acme-challenge.shop.test"),
        ["somebody else's"]
    );
    assert!(scene.noted().is_empty());
}

/// Whether it happens within a second and a half.
fn wait_for_some_time(happens: impl Fn() -> bool) -> bool {
    let deadline = std::time::Instant::now() + Duration::from_millis(1500);
    while std::time::Instant::now() < deadline {
        if happens() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

fn wait_within_end(mut child: Child) -> Ended {
    wait_within(Duration::from_secs(60), "the end", || {
        child.try_wait().unwrap()
    });
    end(child)
}
