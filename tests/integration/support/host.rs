//! A host with vhostd: a private nginx, a settings file, a vhosts directory, the real binary.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::app::App;
use super::client::{self, Response, Trust};
use super::nginx::NginxHost;
use super::pebble::Pebble;
use super::wait_for;

pub struct Host {
    pub nginx: NginxHost,
    /// Further lines of the settings file.
    settings: String,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ended {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A running `vhostd run`; killed when dropped.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Host {
    /// nginx runs, `vhostd setup` is done, certificates come from the internal CA.
    pub fn new() -> Self {
        Self::with_settings("tls: internal\n")
    }

    /// Certificates come from `pebble`, which must have been started with this host's HTTP port:
    /// see [`Host::with_pebble`].
    pub fn with_pebble() -> (Self, Pebble) {
        Self::with_pebble_on(NginxHost::new())
    }

    /// As [`Host::with_pebble`], on a prepared nginx.
    pub fn with_pebble_on(nginx: NginxHost) -> (Self, Pebble) {
        let pebble = Pebble::start(nginx.http_port);
        let host = Self::on(nginx, &acme(&pebble));
        (host, pebble)
    }

    /// As [`Host::new`], with all of it below `directory`.
    pub fn below(directory: &Path) -> Self {
        Self::on(NginxHost::below(directory), "tls: internal\n")
    }

    pub fn with_settings(settings: &str) -> Self {
        Self::on(NginxHost::new(), settings)
    }

    /// As the others, on a prepared nginx (sites written, Pebble chosen), which is started here.
    pub fn on(nginx: NginxHost, settings: &str) -> Self {
        let host = Self {
            nginx,
            settings: settings.to_owned(),
        };
        for name in ["vhosts.d", "srv"] {
            fs::create_dir(host.path(name)).unwrap();
            fs::set_permissions(host.path(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        host.configure(&host.settings);
        host.nginx.start();
        let setup = host.vhostd(&["setup"]);
        assert_eq!(setup.status, 0, "{setup:?}");
        host
    }

    /// Writes the settings file anew, with `further` lines.
    pub fn configure(&self, further: &str) {
        let at = |name: &str| self.path(name).display().to_string();
        let text = format!(
            "vhosts_dir: {}\nstate_dir: {}\nruntime_dir: {}\ntemplates_dir: {}\nlog_dir: {}\n\
             nginx: {{binary: {}, config: {}, include: {}, http_port: {}, https_port: {}}}\nroots: [{}]\n{further}",
            at("vhosts.d"),
            at("state"),
            at("run"),
            at("templates"),
            at("logs"),
            self.nginx.binary().display(),
            at("nginx.conf"),
            at("conf.d/vhostd.conf"),
            self.nginx.http_port,
            self.nginx.https_port,
            at("srv"),
        );
        fs::write(self.path("vhostd.yml"), text).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.nginx.path(name)
    }

    /// Writes a vhost file in one step, as a careful tool would.
    pub fn drop_file(&self, name: &str, text: &str) {
        let temporary = self.path("vhosts.d").join(format!(".{name}.new"));
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.path("vhosts.d").join(name)).unwrap();
    }

    /// As [`Self::drop_file`], by a user who owns the file.
    pub fn drop_file_of(&self, uid: u32, name: &str, text: &str) {
        let temporary = self.path("vhosts.d").join(format!(".{name}.new"));
        fs::write(&temporary, text).unwrap();
        chown(&temporary, Some(uid), Some(uid)).unwrap();
        fs::rename(temporary, self.path("vhosts.d").join(name)).unwrap();
    }

    /// Makes an app's text, as it is in its file and in every generation, one that this vhostd cannot read:
    /// as if another version had written it.
    pub fn outdate(&self, app: &str) {
        let outdated = |text: &str| text.replace("root:", "rot:");
        let file = self.path("vhosts.d").join(format!("{app}.yml"));
        fs::write(&file, outdated(&fs::read_to_string(&file).unwrap())).unwrap();
        for generation in fs::read_dir(self.path("state/generations")).unwrap() {
            let path = generation.unwrap().path().join("manifest.json");
            let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            if let Some(text) = manifest["apps"][app]["text"].as_str() {
                let text = outdated(text);
                assert!(text.contains("rot:"), "{text}");
                manifest["apps"][app]["text"] = text.into();
                fs::write(&path, manifest.to_string()).unwrap();
            }
        }
    }

    pub fn remove_file(&self, name: &str) {
        fs::remove_file(self.path("vhosts.d").join(name)).unwrap();
    }

    /// `vhostd reload` with this exit status and outcome; its report.
    pub fn reload_ends(&self, exit: i32, outcome: &str) -> Value {
        let (status, report) = self.json(&["reload"]);
        assert_eq!(
            (status, &report["outcome"]),
            (exit, &outcome.into()),
            "{report}"
        );
        report
    }

    /// `NAME.yml` for `server_name`, proxied to `app`.
    pub fn drop_app(&self, name: &str, server_name: &str, app: &App) {
        let text = format!(
            "server_name: {server_name}\nproxy_pass_url: {}\n",
            app.url()
        );
        self.drop_file(&format!("{name}.yml"), &text);
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhostd"));
        command
            .args(arguments)
            .env("VHOSTD_CONFIG", self.path("vhostd.yml"))
            .env_remove("NO_COLOR")
            .env_remove("HTTPS_PROXY")
            .env_remove("https_proxy")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub fn vhostd(&self, arguments: &[&str]) -> Ended {
        let output = self.command(arguments).output().unwrap();
        Ended {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command with `--json`; its exit status and what it printed.
    pub fn json(&self, arguments: &[&str]) -> (i32, Value) {
        let ended = self.vhostd(&[arguments, &["--json"]].concat());
        let value = serde_json::from_str(&ended.stdout);
        (
            ended.status,
            value.unwrap_or_else(|error| panic!("{error}: {ended:?}")),
        )
    }

    /// Starts the daemon, and waits until it answers on its socket and has reconciled once.
    pub fn daemon(&self) -> Daemon {
        self.daemon_of(self.command(&["run"]))
    }

    /// As [`Self::daemon`], of a command that ends in `vhostd run`.
    pub fn daemon_of(&self, mut command: Command) -> Daemon {
        let log = self.path("vhostd.log");
        let file = fs::File::create(&log).unwrap();
        let child = command
            .env("VHOSTD_LOG", "vhostd=debug")
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        let daemon = Daemon { child, log };
        wait_for("the daemon's first reconcile", || {
            daemon.log().contains("watching ").then_some(())
        });
        daemon
    }

    /// `status --json`.
    pub fn status(&self) -> Value {
        let (status, value) = self.json(&["status"]);
        assert_eq!(status, 0);
        value
    }

    /// Of the vhost `name` in `status --json`.
    pub fn vhost(&self, name: &str) -> Option<Value> {
        let status = self.status();
        let mut vhosts = status["vhosts"].as_array().unwrap().iter();
        vhosts.find(|vhost| vhost["name"] == name).cloned()
    }

    /// Until `vhostd status` says that `name` serves: from then on no old worker answers.
    pub fn wait_for_serving(&self, name: &str) {
        wait_for(&format!("{name} to be serving"), || {
            (self.vhost(name)?["state"] == "serving").then_some(())
        });
    }

    /// Of the certificate `name` in `status --json`.
    pub fn certificate(&self, name: &str) -> Option<Value> {
        let status = self.status();
        let mut certificates = status["certificates"].as_array().unwrap().iter();
        certificates
            .find(|certificate| certificate["name"] == name)
            .cloned()
    }

    /// A directory below `roots` whose index page is `text`.
    pub fn page(&self, name: &str, text: &str) -> PathBuf {
        let directory = self.path("srv").join(name);
        fs::create_dir_all(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(directory.join("index.html"), text).unwrap();
        directory
    }

    pub fn http(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.nginx.http_port))
    }

    pub fn https(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.nginx.https_port))
    }

    /// Trust in the internal CA's root.
    pub fn internal_root(&self) -> Trust {
        Trust::pem(&fs::read_to_string(self.path("state/internal-ca/root.pem")).unwrap())
    }

    /// What `https://NAME/PATH` answers, once it verifies and answers 200; waits for that.
    pub fn wait_for_https(&self, name: &str, path: &str, trust: &Trust) -> Response {
        wait_for(&format!("https://{name}{path}"), || {
            client::get_tls(self.https(), name, path, trust)
                .ok()
                .filter(|response| response.status == 200)
        })
    }

    /// The generation that `current` names.
    pub fn active(&self) -> u64 {
        let target = fs::read_link(self.path("state/current")).unwrap();
        target
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// The bytes of an app's rendered file in the active generation.
    pub fn rendered(&self, app: &str) -> Option<String> {
        let file = Path::new("state/current/vhosts").join(format!("{app}.conf"));
        fs::read_to_string(self.path(file.to_str().unwrap())).ok()
    }
}

/// A name of the binary that any user can reach, whatever directory the tests were built in.
pub fn reachable_vhostd(directory: &Path) -> PathBuf {
    let reachable = directory.join("vhostd");
    fs::copy(env!("CARGO_BIN_EXE_vhostd"), &reachable).unwrap();
    // a child that another test starts just now may still hold the copy open for writing
    wait_for("the copy to be free", || {
        let version = Command::new(&reachable).arg("--version").output();
        match version {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => None,
            version => Some(version.unwrap()),
        }
    });
    reachable
}

/// Settings lines for certificates from `pebble`.
pub fn acme(pebble: &Pebble) -> String {
    format!(
        "acme: {{directory: {}, ca_file: {}}}\n",
        pebble.directory_url(),
        pebble.ca_file().display()
    )
}

impl Daemon {
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM; returns its exit status.
    pub fn stop(mut self) -> i32 {
        self.signal("TERM");
        self.child.wait().unwrap().code().unwrap_or(-1)
    }

    /// SIGKILL, and gone.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        Command::new("kill")
            .args([&format!("-{name}"), &pid])
            .status()
            .unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // our own child, not yet waited for
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
