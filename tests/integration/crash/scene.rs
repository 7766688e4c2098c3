//! What is disturbed: a command on a host, what must hold at once, and what after the next run.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::app::App;
use crate::support::client::{self, Trust};
use crate::support::faults::temporaries;
use crate::support::host::{Host, acme};
use crate::support::nginx::NginxHost;
use crate::support::pebble::Pebble;
use crate::support::tracer::{Call, Effect};
use crate::support::wait_for;

/// A command, again and again.
pub trait Scene: Sync {
    fn host(&self) -> &Host;
    /// Of the command.
    fn arguments(&self) -> &[&'static str];
    /// Gives the next run something to do.
    fn prepare(&mut self);
    /// What holds at once, whatever happened to the run.
    fn assert_safe(&self, at: &str);
    /// What holds when the command says that it is done.
    fn assert_done(&self, at: &str);
    /// The next run, without any help, and what holds then.
    fn converge(&mut self, at: &str);

    /// Whether to disturb this call.
    fn counts(&self, call: &Call) -> bool {
        call.effect.changes()
    }

    fn assert_clean(&self, at: &str) {
        assert_left_clean(self.host(), at);
    }
}

/// No temporary file and no mount is left, and no half of a pair.
pub fn assert_left_clean(host: &Host, at: &str) {
    assert_eq!(temporaries(&host.path("")), [""; 0], "{at}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let state = host.path("state/generations");
    assert!(!mounts.contains(state.to_str().unwrap()), "{at}");
    for store in ["certificates", "placeholders"] {
        assert_whole_versions(&host.path("state").join(store), at);
    }
}

/// Each certificate has its key, and each key its certificate.
fn assert_whole_versions(store: &Path, at: &str) {
    let entries = |directory: &Path| {
        let entries = fs::read_dir(directory).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path())
    };
    for home in entries(store) {
        for version in entries(&home).filter(|version| !version.ends_with("current")) {
            for name in ["fullchain.pem", "privkey.pem", "meta.json"] {
                assert!(version.join(name).is_file(), "{at}: {version:?} {name}");
            }
        }
    }
}

/// What nginx has on disk is valid.
fn assert_nginx_starts(host: &Host, at: &str) {
    let test = host.nginx.test();
    let words = String::from_utf8_lossy(&test.stderr).into_owned();
    assert!(test.status.success(), "{at}: {words}");
}

/// The generation that `current` names is whole, and each that is kept did serve.
fn assert_generations(host: &Host, at: &str) {
    let text = fs::read_to_string(host.path("state/current/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(manifest["number"], host.active(), "{at}");
    let text = fs::read_to_string(host.path("state/history.json")).unwrap();
    let history: serde_json::Value = serde_json::from_str(&text).unwrap();
    let entries = history["entries"].as_array().unwrap();
    for entry in fs::read_dir(host.path("state/generations")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        let number: u64 = name.parse().unwrap();
        let served = entries
            .iter()
            .any(|entry| entry["generation"] == number && entry["result"] == "proven");
        assert!(
            number == 0 || served,
            "{at}: generation {number} never served"
        );
    }
}

/// A changed vhost, and a new name in the place of another, with certificates of our own CA.
pub struct Reload {
    pub host: Host,
    apps: [App; 2],
    run: usize,
}

impl Reload {
    pub fn new() -> Self {
        Self::on(Host::new())
    }

    pub fn on(host: Host) -> Self {
        let mut scene = Self {
            host,
            apps: [App::start(), App::start()],
            run: 0,
        };
        let stays = "stays.example.com";
        scene.host.drop_app("stays", stays, &scene.apps[0]);
        scene.prepare();
        scene.converge("at first");
        scene
    }

    fn name(run: usize) -> String {
        format!("next{run}.example.com")
    }

    fn app(&self) -> &App {
        &self.apps[self.run % 2]
    }
}

impl Scene for Reload {
    fn host(&self) -> &Host {
        &self.host
    }

    fn arguments(&self) -> &[&'static str] {
        &["reload"]
    }

    fn prepare(&mut self) {
        self.run += 1;
        let app = self.app();
        self.host.drop_app("hello", "hello.example.com", app);
        self.host.drop_app("next", &Self::name(self.run), app);
    }

    fn assert_safe(&self, at: &str) {
        assert_nginx_starts(&self.host, at);
        for name in ["stays.example.com", "hello.example.com"] {
            assert!(self.host.serves(name), "{at}: {name}");
        }
        // a new name may have a placeholder
        let names = [Self::name(self.run - 1), Self::name(self.run)];
        wait_for(&format!("{names:?}, {at}"), || {
            let serves = |name: &String| self.host.serves_to(name, &Trust::Anyone);
            names.iter().any(serves).then_some(())
        });
    }

    fn converge(&mut self, at: &str) {
        let reload = self.host.vhostd(&["reload"]);
        assert_eq!(reload.status, 0, "{at}: {reload:?}");
        self.assert_done(at);
        assert_generations(&self.host, at);
    }

    fn assert_done(&self, at: &str) {
        let name = Self::name(self.run);
        let (address, trust) = (self.host.https(), self.host.internal_root());
        for name in ["hello.example.com", &name] {
            let answer = client::get_tls(address, name, "/", &trust).unwrap();
            let app = self.app().address.to_string();
            assert_eq!(answer.header("X-App"), Some(&*app), "{at}: {name}");
        }
    }
}

/// A certificate that is replaced before it is due.
pub struct Renewal {
    pub host: Host,
    pebble: Option<Pebble>,
    _app: App,
}

impl Renewal {
    pub fn internal() -> Self {
        Self::on(Host::new(), None)
    }

    pub fn acme() -> Self {
        let nginx = NginxHost::new();
        let pebble = Pebble::builder(nginx.http_port).refused_nonces(0).start();
        let host = Host::on(nginx, &acme(&pebble));
        Self::on(host, Some(pebble))
    }

    pub fn on(host: Host, pebble: Option<Pebble>) -> Self {
        let app = App::start();
        host.drop_app("hello", "hello.example.com", &app);
        let reload = host.vhostd(&["reload", "--wait"]);
        assert_eq!(reload.status, 0, "{reload:?}");
        Self {
            host,
            pebble,
            _app: app,
        }
    }

    fn pending_order(&self) -> PathBuf {
        self.host.path("state/orders/hello.example.com.order.json")
    }

    fn trust(&self) -> Trust {
        match &self.pebble {
            Some(pebble) => Trust::Root(pebble.issuing_root()),
            None => self.host.internal_root(),
        }
    }
}

impl Scene for Renewal {
    fn host(&self) -> &Host {
        &self.host
    }

    fn arguments(&self) -> &[&'static str] {
        &["renew", "--force", "hello"]
    }

    fn prepare(&mut self) {}

    /// With a CA: what it is told, and what is kept of that. How the result is activated is the
    /// same as with our own.
    fn counts(&self, call: &Call) -> bool {
        let Some(pebble) = &self.pebble else {
            return call.effect.changes();
        };
        let is_the_ca = |port: u16| pebble.directory_url().contains(&format!(":{port}/"));
        let told = call.effect == Effect::Network && call.peer_port().is_some_and(is_the_ca);
        let kept = ["orders", "accounts", "certificates"]
            .iter()
            .any(|name| call.path.contains(&format!("/state/{name}/")));
        // unlinkat: what no generation names any more
        told || (kept && call.effect.changes() && call.name != "unlinkat")
    }

    fn assert_safe(&self, at: &str) {
        assert_nginx_starts(&self.host, at);
        let trust = self.trust();
        assert!(self.host.serves_to("hello.example.com", &trust), "{at}");
    }

    fn converge(&mut self, at: &str) {
        let renew = self.host.vhostd(&["renew"]);
        assert_eq!(renew.status, 0, "{at}: {renew:?}");
        self.assert_done(at);
        // it is not due: an order that is under way waits for whoever asks for it again
        if self.pending_order().exists() {
            let again = self.host.vhostd(self.arguments());
            assert_eq!(again.status, 0, "{at}: {again:?}");
            assert!(!self.pending_order().exists(), "{at}");
        }
        assert_generations(&self.host, at);
    }

    fn assert_done(&self, at: &str) {
        // what is stored is what serves
        let home = self.host.path("state/certificates/hello.example.com");
        let newest = fs::read_link(home.join("current")).unwrap();
        let rendered = self.host.rendered("hello").unwrap();
        assert!(rendered.contains(newest.to_str().unwrap()), "{at}");
        let trust = self.trust();
        assert!(self.host.serves_to("hello.example.com", &trust), "{at}");
    }
}

/// Back to the other app, whose vhost serves no more.
pub struct Rollback {
    pub host: Host,
    apps: [App; 2],
    run: usize,
    target: u64,
}

impl Rollback {
    pub fn new() -> Self {
        Self::on(Host::new())
    }

    pub fn on(host: Host) -> Self {
        let mut scene = Self {
            host,
            apps: [App::start(), App::start()],
            run: 0,
            target: 0,
        };
        scene.prepare();
        scene
    }

    /// The app that serves before the rollback, and the one after.
    fn apps(&self) -> (&App, &App) {
        (&self.apps[self.run % 2], &self.apps[(self.run + 1) % 2])
    }

    fn reload_with(&self, app: &App) {
        self.host.drop_app("hello", "hello.example.com", app);
        let reload = self.host.vhostd(&["reload"]);
        assert_eq!(reload.status, 0, "{reload:?}");
    }

    fn is_of(&self, generation: u64, app: &App) -> bool {
        let file = format!("state/generations/{generation}/vhosts/hello.conf");
        let text = fs::read_to_string(self.host.path(&file)).unwrap_or_default();
        text.contains(&app.address.to_string())
    }

    fn newest_proven_before(&self, active: u64) -> u64 {
        let (_, history) = self.host.json(&["history"]);
        let mut entries = history["generations"].as_array().unwrap().iter();
        let before = entries.find(|entry| {
            entry["result"] == "proven" && entry["generation"].as_u64() < Some(active)
        });
        before.map_or(0, |entry| entry["generation"].as_u64().unwrap())
    }

    fn served(&self) -> Option<String> {
        let trust = self.host.internal_root();
        let answer = client::get_tls(self.host.https(), "hello.example.com", "/", &trust).ok()?;
        answer.header("X-App").map(str::to_owned)
    }
}

impl Scene for Rollback {
    fn host(&self) -> &Host {
        &self.host
    }

    fn arguments(&self) -> &[&'static str] {
        &["rollback"]
    }

    fn prepare(&mut self) {
        self.run += 1;
        let (before, after) = self.apps();
        self.reload_with(before);
        // what an unreadable certificate led to differs in its certificate alone
        if !self.is_of(self.newest_proven_before(self.host.active()), after) {
            self.reload_with(after);
            self.reload_with(before);
        }
        assert!(!self.host.path("state/pin.json").exists());
        self.target = self.newest_proven_before(self.host.active());
    }

    fn assert_safe(&self, at: &str) {
        assert_nginx_starts(&self.host, at);
        let (before, after) = self.apps();
        let known = [before, after].map(|app| app.address.to_string());
        let served = self.served().expect(at);
        assert!(known.contains(&served), "{at}: {served}");
    }

    fn converge(&mut self, at: &str) {
        let again = self.host.vhostd(&["rollback", &self.target.to_string()]);
        assert_eq!(again.status, 0, "{at}: {again:?}");
        self.assert_done(at);
        assert_generations(&self.host, at);
    }

    fn assert_done(&self, at: &str) {
        let wanted = self.apps().1.address.to_string();
        assert_eq!(self.served(), Some(wanted), "{at}");
        assert!(self.host.path("state/pin.json").exists(), "{at}");
    }
}

/// The first of all, beside a hand-written site.
pub struct Setup {
    host: Host,
}

impl Setup {
    pub fn new() -> Self {
        Self::on(NginxHost::new())
    }

    pub fn below(directory: &Path) -> Self {
        Self::on(NginxHost::below(directory))
    }

    fn on(nginx: NginxHost) -> Self {
        let host = Host::on(with_a_site(nginx), "tls: internal\n");
        Self { host }
    }
}

fn with_a_site(nginx: NginxHost) -> NginxHost {
    let (directory, port) = (nginx.path("hand"), nginx.http_port);
    fs::create_dir(&directory).unwrap();
    let text =
        format!("server {{ listen {port}; server_name hand.example.com; return 200 hand; }}\n");
    nginx.site("hand", &text);
    nginx
}

fn assert_hand_written_site(host: &Host, at: &str) {
    let answer = host.plain("hand.example.com");
    assert_eq!(answer, Some((200, "hand".into())), "{at}");
}

impl Scene for Setup {
    fn host(&self) -> &Host {
        &self.host
    }

    fn arguments(&self) -> &[&'static str] {
        &["setup"]
    }

    fn prepare(&mut self) {
        for name in ["state", "run", "vhosts.d"] {
            fs::remove_dir_all(self.host.path(name)).unwrap();
        }
        fs::remove_file(self.host.path("conf.d/vhostd.conf")).unwrap();
    }

    fn assert_safe(&self, at: &str) {
        assert_nginx_starts(&self.host, at);
        assert_hand_written_site(&self.host, at);
    }

    fn converge(&mut self, at: &str) {
        let setup = self.host.vhostd(&["setup"]);
        assert_eq!(setup.status, 0, "{at}: {setup:?}");
        self.assert_done(at);
    }

    fn assert_done(&self, at: &str) {
        assert_nginx_starts(&self.host, at);
        let line = fs::read_to_string(self.host.path("conf.d/vhostd.conf")).unwrap();
        let entry = self.host.path("state/current/http.conf");
        assert_eq!(line, format!("include {};\n", entry.display()), "{at}");
        assert!(entry.is_file(), "{at}");
        for name in ["vhosts.d", "run"] {
            assert!(self.host.path(name).is_dir(), "{at}");
        }
    }
}

/// What `setup` did, taken back.
pub struct Undo {
    host: Host,
    app: App,
}

impl Undo {
    pub fn new() -> Self {
        Self {
            host: Host::on(with_a_site(NginxHost::new()), "tls: internal\n"),
            app: App::start(),
        }
    }
}

impl Scene for Undo {
    fn host(&self) -> &Host {
        &self.host
    }

    fn arguments(&self) -> &[&'static str] {
        &["setup", "--undo"]
    }

    fn prepare(&mut self) {
        self.host.drop_app("hello", "hello.example.com", &self.app);
        for command in ["setup", "reload"] {
            let ended = self.host.vhostd(&[command]);
            assert_eq!(ended.status, 0, "{ended:?}");
        }
        assert!(self.host.serves("hello.example.com"));
    }

    fn assert_safe(&self, at: &str) {
        assert_nginx_starts(&self.host, at);
        assert_hand_written_site(&self.host, at);
    }

    fn converge(&mut self, at: &str) {
        let undo = self.host.vhostd(&["setup", "--undo"]);
        assert_eq!(undo.status, 0, "{at}: {undo:?}");
        self.assert_done(at);
    }

    fn assert_done(&self, at: &str) {
        assert!(!self.host.path("conf.d/vhostd.conf").exists(), "{at}");
        wait_for(&format!("the end of our vhosts, {at}"), || {
            (!self.host.serves("hello.example.com")).then_some(())
        });
        assert_hand_written_site(&self.host, at);
    }
}
