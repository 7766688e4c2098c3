//! A private nginx with an ordinary main file, in a temporary directory.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU16, Ordering};

use tempfile::TempDir;
use vhostd::desired::Features;

use super::wait_for;

/// A host with nginx. Nothing runs until [`NginxHost::start`]; dropping it kills what runs.
pub struct NginxHost {
    directory: TempDir,
    binary: PathBuf,
    /// Free when the host was made; nothing listens there yet.
    pub http_port: u16,
    pub https_port: u16,
}

impl NginxHost {
    pub fn new() -> Self {
        Self::in_directory(tempfile::tempdir().unwrap())
    }

    /// In a directory of its own below `parent`, which stays as long as that does.
    pub fn below(parent: &Path) -> Self {
        let mut directory = tempfile::tempdir_in(parent).unwrap();
        directory.disable_cleanup(true);
        Self::in_directory(directory)
    }

    fn in_directory(directory: TempDir) -> Self {
        // nginx's workers are nobody where the tests run as root
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["conf.d", "sites", "logs", "temp"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let host = Self {
            directory,
            binary: "nginx".into(),
            http_port: free_port(),
            https_port: free_port(),
        };
        fs::write(host.path("mime.types"), MIME_TYPES).unwrap();
        fs::write(host.config(), host.main_file()).unwrap();
        host
    }

    /// The same with another nginx.
    pub fn with_binary(mut self, binary: &Path) -> Self {
        self.binary = binary.to_path_buf();
        self
    }

    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// `name` below the host's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.path("nginx.conf")
    }

    /// The one-line file that `setup` would write.
    pub fn include(&self, entry: &Path) {
        let line = format!("include {};\n", entry.display());
        fs::write(self.path("conf.d/vhostd.conf"), line).unwrap();
    }

    /// A hand-written site.
    pub fn site(&self, name: &str, text: &str) {
        fs::write(self.path("sites").join(name), text).unwrap();
    }

    /// `nginx -t`
    pub fn test(&self) -> Output {
        self.command().arg("-t").output().unwrap()
    }

    /// What `nginx -T` prints.
    pub fn dump(&self) -> Vec<u8> {
        let output = self.command().arg("-T").output().unwrap();
        assert!(output.status.success(), "{}", self.error_log());
        output.stdout
    }

    pub fn start(&self) {
        let output = self.command().output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{message}{}", self.error_log());
        // the parent exits before the pid file is written; a signal between that and the first
        // worker is remembered by the master, but heeded only with the next one
        wait_for("nginx's pid file", || self.pid());
        wait_for("nginx's first worker", || {
            (!self.workers().is_empty()).then_some(())
        });
    }

    /// SIGHUP; what it did has to be waited for.
    pub fn reload(&self) {
        assert!(self.signal("HUP"), "nginx does not run");
    }

    /// SIGTERM, until the master is gone.
    pub fn stop(&self) {
        if let Some(pid) = self.pid() {
            self.signal("TERM");
            let process = PathBuf::from(format!("/proc/{pid}"));
            wait_for("nginx to stop", || (!process.exists()).then_some(()));
        }
    }

    /// The master, if it runs and is ours.
    pub fn pid(&self) -> Option<u32> {
        let pid = fs::read_to_string(self.path("nginx.pid")).ok()?;
        let pid = pid.trim().parse().ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let config = self.config();
        String::from_utf8_lossy(&command)
            .contains(config.to_str().unwrap())
            .then_some(pid)
    }

    /// The master's children now: other ones after every reload.
    pub fn workers(&self) -> Vec<u32> {
        let pid = self.pid().expect("nginx runs");
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let children = children.split_whitespace();
        children.map(|child| child.parse().unwrap()).collect()
    }

    pub fn error_log(&self) -> String {
        fs::read_to_string(self.path("logs/error.log")).unwrap_or_default()
    }

    /// To the master of the pid file; `false` where there is none.
    pub fn signal(&self, name: &str) -> bool {
        self.pid().is_some_and(|pid| {
            let status = Command::new("kill")
                .args([format!("-{name}"), pid.to_string()])
                .status();
            status.is_ok_and(|status| status.success())
        })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .arg("-p")
            .arg(self.directory.path())
            .arg("-e")
            .arg(self.path("logs/error.log"))
            .arg("-c")
            .arg(self.config());
        command
    }

    fn main_file(&self) -> String {
        let directory = self.directory.path().display();
        format!(
            "daemon on;\n\
             worker_processes 1;\n\
             pid {directory}/nginx.pid;\n\
             error_log {directory}/logs/error.log;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n\
             \x20   include mime.types;\n\
             \x20   default_type application/octet-stream;\n\
             \x20   access_log off;\n\
             \x20   client_body_temp_path {directory}/temp/body;\n\
             \x20   proxy_temp_path {directory}/temp/proxy;\n\
             \x20   fastcgi_temp_path {directory}/temp/fastcgi;\n\
             \x20   uwsgi_temp_path {directory}/temp/uwsgi;\n\
             \x20   scgi_temp_path {directory}/temp/scgi;\n\
             \x20   include conf.d/*.conf;\n\
             \x20   include sites/*;\n\
             }}\n"
        )
    }
}

impl Drop for NginxHost {
    fn drop(&mut self) {
        self.signal("TERM");
    }
}

/// What the installed nginx can do, as far as the tests depend on it.
pub fn features() -> Features {
    let output = Command::new("nginx").arg("-V").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let version: Vec<u32> = text
        .split_once("nginx/")
        .map(|(_, rest)| rest.split([' ', '\n']).next().unwrap_or_default())
        .unwrap_or_default()
        .split('.')
        .map(|part| part.parse().unwrap_or(0))
        .collect();
    Features {
        http2_directive: version >= vec![1, 25, 1],
        ssl_reject_handshake: version >= vec![1, 19, 4],
        gzip_static: text.contains("--with-http_gzip_static_module"),
        ..Features::default()
    }
}

/// A port that was free a moment ago, and that no other test of this process was given. Not one of
/// those from which the kernel takes the clients' (from 32768): thousands of connections of other
/// tests would take it before nginx does.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + u16::try_from(std::process::id() % 200).unwrap() * 100;
    loop {
        let step = NEXT.fetch_add(1, Ordering::SeqCst);
        let port = 10_000 + (first - 10_000 + step) % 22_000;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}

const MIME_TYPES: &str = "types {
    text/html html;
    text/css css;
    application/javascript js;
    image/jpeg jpg;
}
";
