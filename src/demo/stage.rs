//! W: the temporary directory in which a demo lives: a host in small, with every path that the
//! real one has. Removed on drop.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::DemoError;
use crate::atomic_file;
use crate::settings::Settings;

/// `.localhost` leads browsers and curl to this machine without a line in `/etc/hosts` (RFC 6761
/// §6.3).
pub const NAME: &str = "hello.localhost";
/// A name that fingerprinting build tools give.
pub const ASSET: &str = "app-5d41402abc4b2a76.css";

#[derive(Debug)]
pub struct Stage {
    /// Canonical.
    pub directory: PathBuf,
    pub http: SocketAddr,
    pub https: SocketAddr,
    /// What `vhostd.yml` in the directory says.
    pub settings: Settings,
}

impl Stage {
    /// Makes the directory with nginx's main file, the settings, and an app's public files.
    pub fn build(nginx_binary: &Path) -> Result<Self, DemoError> {
        let temporary = temporary_parent();
        let (http, https) = free_ports()?;
        // nginx's workers are another user where root runs the demo
        let directory = atomic_file::create_temporary_directory(&temporary, PREFIX, 0o755)?;
        // from here on, the drop of the stage removes what follows
        let mut stage = Self {
            directory,
            http,
            https,
            settings: Settings::default(),
        };
        for name in ["conf.d", "logs", "temp", "public", "vhosts.d"] {
            atomic_file::create_directory(&stage.path(name), 0o755)?;
        }
        stage.write("nginx.conf", &stage.main_file())?;
        stage.write(&format!("public/{ASSET}"), "body { color: teal }\n")?;
        stage.write("vhostd.yml", &stage.settings_file(nginx_binary))?;
        stage.settings = Settings::load(Some(&stage.config())).map_err(|errors| {
            let first = errors.first().map(ToString::to_string);
            DemoError::Settings(first.unwrap_or_default())
        })?;
        Ok(stage)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The settings file.
    pub fn config(&self) -> PathBuf {
        self.path("vhostd.yml")
    }

    /// The internal CA's root, PEM.
    pub fn root_certificate(&self) -> PathBuf {
        self.path("state/internal-ca/root.pem")
    }

    pub fn vhost_file(&self) -> PathBuf {
        self.path("vhosts.d/hello.yml")
    }

    /// Saves the vhost file, as a careful editor does.
    pub fn drop_vhost(&self, text: &str) -> Result<(), DemoError> {
        Ok(atomic_file::write(
            &self.vhost_file(),
            text.as_bytes(),
            0o644,
        )?)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), DemoError> {
        Ok(atomic_file::write(
            &self.path(name),
            text.as_bytes(),
            0o644,
        )?)
    }

    fn settings_file(&self, nginx_binary: &Path) -> String {
        let at = |name: &str| self.path(name).display().to_string();
        format!(
            "vhosts_dir: {}\nstate_dir: {}\nruntime_dir: {}\ntemplates_dir: {}\nlog_dir: {}\n\
             nginx:\n  binary: {}\n  config: {}\n  include: {}\n  http_port: {}\n  https_port: {}\n  \
             listen: 127.0.0.1\ntls: internal\nroots: [{}]\n",
            at("vhosts.d"),
            at("state"),
            at("run"),
            at("templates"),
            at("logs"),
            nginx_binary.display(),
            at("nginx.conf"),
            at("conf.d/vhostd.conf"),
            self.http.port(),
            self.https.port(),
            self.directory.display(),
        )
    }

    /// As a distribution's, with every path inside the directory. In the foreground: nginx stays
    /// our own child, which cannot be mistaken for another process.
    fn main_file(&self) -> String {
        let directory = self.directory.display();
        let user = match self.workers_need_root() {
            true => "user root;\n",
            false => "",
        };
        format!(
            "{user}daemon off;\nworker_processes 1;\npid {directory}/nginx.pid;\n\
             error_log {directory}/logs/error.log;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n    \
             types {{ text/html html; text/css css; text/plain txt; text/javascript js; }}\n    \
             default_type application/octet-stream;\n    \
             access_log off;\n    \
             client_body_temp_path {directory}/temp/body;\n    \
             proxy_temp_path {directory}/temp/proxy;\n    \
             fastcgi_temp_path {directory}/temp/fastcgi;\n    \
             uwsgi_temp_path {directory}/temp/uwsgi;\n    \
             scgi_temp_path {directory}/temp/scgi;\n    \
             include conf.d/*.conf;\n}}\n"
        )
    }

    /// Run by root below a directory that others may not enter (a TMPDIR of root's own), workers
    /// of nginx's built-in user could not read the app's files.
    fn workers_need_root(&self) -> bool {
        let closed = |directory: &Path| {
            fs::metadata(directory).is_ok_and(|found| found.permissions().mode() & 0o001 == 0)
        };
        nix::unistd::geteuid().is_root() && self.directory.ancestors().any(closed)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = atomic_file::remove(&self.directory) {
            tracing::error!("failed to {error}; remove it by hand");
        }
    }
}

/// `TMPDIR`, canonical; `/tmp` where its path would need quotes in nginx's language or in YAML.
fn temporary_parent() -> PathBuf {
    let plain = |path: &PathBuf| {
        let text = path.to_str().unwrap_or(" ");
        text.chars()
            .all(|char| char.is_ascii_alphanumeric() || "/._-".contains(char))
    };
    let chosen = std::env::temp_dir().canonicalize().ok().filter(plain);
    chosen.unwrap_or_else(|| PathBuf::from("/tmp"))
}

/// Two free ports of 127.0.0.1. nginx takes them a moment later, so they are below those that the
/// kernel gives to outgoing connections (32768 on Linux), and two demos begin at different ones.
fn free_ports() -> Result<(SocketAddr, SocketAddr), DemoError> {
    let first = FIRST_PORT + (std::process::id() % 1000) as u16 * 20;
    let mut free = (first..LAST_PORT)
        .chain(FIRST_PORT..first)
        .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .filter(|address| TcpListener::bind(address).is_ok());
    match (free.next(), free.next()) {
        (Some(http), Some(https)) => Ok((http, https)),
        _ => Err(DemoError::Port(io::ErrorKind::AddrInUse.into())),
    }
}

const PREFIX: &str = "vhostd-demo-";
const FIRST_PORT: u16 = 10_000;
const LAST_PORT: u16 = 32_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_listens_on_loopback_only_and_is_gone_when_dropped() {
        let stage = Stage::build(Path::new("nginx")).unwrap();
        let nginx = &stage.settings.nginx;
        assert_eq!(nginx.listen, Some(vec![Ipv4Addr::LOCALHOST.into()]));
        assert_ne!(nginx.http_port, nginx.https_port);
        let directory = stage.directory.clone();
        assert!(directory.join("public").join(ASSET).is_file());
        drop(stage);
        assert!(!directory.exists());
    }
}
