//! certbot's directory: made by the real one, or as the real one makes it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use time::{Duration, OffsetDateTime};

use super::client::Trust;
use super::host::Ended;
use super::pebble::Pebble;

/// A configuration directory of its own.
pub struct Certbot {
    directory: tempfile::TempDir,
    signer: Signer,
}

struct Signer {
    root: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a lineage that nobody had to ask a CA for is like.
pub struct Lineage<'a> {
    pub name: &'a str,
    pub identifiers: &'a [&'a str],
    pub server: &'a str,
    /// From now.
    pub ends: Duration,
    pub self_signed: bool,
    /// PEM; `None`: P-256, in PKCS#8.
    pub key: Option<&'a str>,
}

impl Default for Lineage<'_> {
    fn default() -> Self {
        Self {
            name: "hello.example.com",
            identifiers: &["hello.example.com"],
            server: "https://acme-v02.api.letsencrypt.org/directory",
            ends: Duration::days(80),
            self_signed: false,
            key: None,
        }
    }
}

impl Certbot {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["renewal", "live", "archive"] {
            fs::create_dir_all(directory.path().join("etc").join(name)).unwrap();
        }
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        ca.distinguished_name.push(DnType::CommonName, "a CA");
        let root = ca.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(ca, key);
        Self {
            directory,
            signer: Signer { root, issuer },
        }
    }

    /// For `--config-dir`.
    pub fn config_dir(&self) -> PathBuf {
        // as it is without links
        fs::canonicalize(self.directory.path().join("etc")).unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.config_dir().join(name)
    }

    pub fn conf(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("renewal/{name}.conf"))).unwrap()
    }

    /// Trust in what was not obtained from anybody.
    pub fn root(&self) -> Trust {
        Trust::pem(&self.signer.root)
    }

    /// Runs the real one against `pebble`, which believes whatever it is told.
    pub fn run(&self, pebble: &Pebble, arguments: &[&str]) -> Ended {
        let at = |name: &str| self.directory.path().join(name);
        let output = Command::new("certbot")
            .args(arguments)
            // else a renewal waits for up to eight minutes
            .args((arguments[0] == "renew").then_some("--no-random-sleep-on-renew"))
            .args(["--non-interactive", "--server", &pebble.directory_url()])
            .arg("--config-dir")
            .arg(at("etc"))
            .arg("--work-dir")
            .arg(at("work"))
            .arg("--logs-dir")
            .arg(at("log"))
            .env("REQUESTS_CA_BUNDLE", pebble.ca_file())
            .output()
            .expect("certbot is installed");
        Ended {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// As certbot 2.1 writes one. A second of the same name is its renewal.
    pub fn lineage(&self, lineage: &Lineage<'_>) {
        let key = match lineage.key {
            None => KeyPair::generate(),
            Some(pem) => KeyPair::from_pem(pem),
        };
        let key = key.unwrap();
        let key_pem = lineage
            .key
            .map_or_else(|| key.serialize_pem(), str::to_owned);
        let names = lineage.identifiers.iter().map(ToString::to_string);
        let mut parameters = CertificateParams::new(names.collect::<Vec<_>>()).unwrap();
        let now = OffsetDateTime::now_utc();
        parameters.not_after = now + lineage.ends;
        parameters.not_before = parameters.not_after - Duration::days(90);
        let leaf = match lineage.self_signed {
            true => parameters.self_signed(&key),
            false => parameters.signed_by(&key, &self.signer.issuer),
        };
        let leaf = leaf.unwrap().pem();
        let chain = match lineage.self_signed {
            true => String::new(),
            false => self.signer.root.clone(),
        };
        let archive = self.path("archive").join(lineage.name);
        let live = self.path("live").join(lineage.name);
        for directory in [&archive, &live] {
            fs::create_dir_all(directory).unwrap();
        }
        let number = fs::read_dir(&archive).unwrap().count() / 4 + 1;
        for (what, text) in [
            ("cert", leaf.clone()),
            ("chain", chain.clone()),
            ("fullchain", leaf + &chain),
            ("privkey", key_pem),
        ] {
            let file = format!("{what}{number}.pem");
            fs::write(archive.join(&file), text).unwrap();
            let target = format!("../../archive/{}/{file}", lineage.name);
            link(Path::new(&target), &live.join(format!("{what}.pem")));
        }
        let text = format!(
            "# renew_before_expiry = 30 days\nversion = 2.1.0\narchive_dir = {}\n\
             cert = {live}/cert.pem\nprivkey = {live}/privkey.pem\nchain = {live}/chain.pem\n\
             fullchain = {live}/fullchain.pem\n\n# Options used in the renewal process\n\
             [renewalparams]\naccount = 6b52e1eaa6d500e304a3eb8b4fc4fbbf\nserver = {}\n\
             authenticator = webroot\nrenew_hook = systemctl reload nginx\n[[webroot_map]]\n",
            archive.display(),
            lineage.server,
            live = live.display(),
        );
        let conf = self.path(&format!("renewal/{}.conf", lineage.name));
        fs::write(conf, text).unwrap();
    }
}

/// In place of what is there.
pub fn link(target: &Path, path: &Path) {
    let _ = fs::remove_file(path);
    std::os::unix::fs::symlink(target, path).unwrap();
}
