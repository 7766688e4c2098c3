//! A mount namespace in which `/etc` and `/usr/local` are this machine's, and what is changed in
//! them is in memory: the machine's own trust store stays as it is.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use crate::support::host::Ended;

/// Where Debian's admin puts roots.
pub const DIRECTORY: &str = "/usr/local/share/ca-certificates";

/// Gone when dropped.
pub struct System {
    holder: Child,
    _directory: tempfile::TempDir,
}

impl System {
    /// `None`: only root can have one.
    pub fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: it needs root");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let mut holder = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-euc",
                HOLDER,
                "sh",
            ])
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        let stdout = holder.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        Some(Self {
            holder,
            _directory: directory,
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()))
            .arg("--")
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    pub fn vhostd(&self, config: &Path, arguments: &[&str]) -> Ended {
        ended(self.vhostd_command(config, arguments).output())
    }

    pub fn vhostd_command(&self, config: &Path, arguments: &[&str]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_vhostd"));
        command.args(arguments).env("VHOSTD_CONFIG", config);
        command
    }

    /// Whether OpenSSL with this system's store believes what `name` answers at `port`: by the
    /// directory, and by the one file that other programs read.
    pub fn trusts(&self, port: u16, name: &str) -> [bool; 2] {
        let address = format!("127.0.0.1:{port}");
        let with = |store: [&str; 3]| {
            let mut command = self.command("openssl");
            command.args(["s_client", "-verify_return_error", "-connect", &address]);
            command.args(["-servername", name, "-verify_hostname", name]);
            command.args(store).output().unwrap().status.success()
        };
        [
            with(["-CApath", "/etc/ssl/certs", "-no-CAfile"]),
            with([
                "-CAfile",
                "/etc/ssl/certs/ca-certificates.crt",
                "-no-CApath",
            ]),
        ]
    }

    /// Every name in the trust store.
    pub fn store(&self) -> BTreeSet<String> {
        let mut command = self.command("find");
        let found = command
            .args([DIRECTORY, "/etc/ssl/certs"])
            .output()
            .unwrap();
        let text = String::from_utf8(found.stdout).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // our own child, not yet waited for
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn ended(output: std::io::Result<Output>) -> Ended {
    let output = output.unwrap();
    Ended {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// An overlay's upper directory must not be on an overlay, as `/tmp` of a container may be.
const HOLDER: &str = r#"
mount -t tmpfs tmpfs "$1"
for it in etc usr/local; do
    mkdir -p "$1/$it/upper" "$1/$it/work"
    mount -t overlay overlay -o "lowerdir=/$it,upperdir=$1/$it/upper,workdir=$1/$it/work" "/$it"
done
update-ca-certificates >/dev/null 2>&1
echo ready
exec cat
"#;
