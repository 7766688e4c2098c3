//! What goes wrong on a host, on purpose, and what must hold afterwards whatever it was.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::app::App;
use super::client::{self, Trust};
use super::host::Host;

/// A child of the test's own; killed when dropped.
pub struct Innocent(Child);

impl Innocent {
    /// A `sleep` that has done nothing wrong.
    pub fn sleep() -> Self {
        Self(Command::new("sleep").arg("300").spawn().unwrap())
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Innocent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A stopped process; continued when dropped.
pub struct Stopped(u32);

impl Stopped {
    pub fn new(pid: u32) -> Self {
        signal(pid, "STOP");
        Self(pid)
    }

    /// Whether a SIGHUP waits for it to continue (proc(5): signal 1 is the lowest bit).
    pub fn has_pending_hang_up(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap_or_default();
        let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
        pending.is_some_and(|set| u64::from_str_radix(set.trim(), 16).is_ok_and(|set| set & 1 == 1))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // it may have been killed meanwhile
        let _ = Command::new("kill")
            .args(["-CONT", &self.0.to_string()])
            .stderr(Stdio::null())
            .status();
    }
}

pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill")
        .args([format!("-{name}"), pid.to_string()])
        .stderr(Stdio::null())
        .status();
    assert!(status.unwrap().success(), "kill -{name} {pid}");
}

/// Holds the port on every IPv4 address.
pub fn take_port(port: u16) -> TcpListener {
    TcpListener::bind(("0.0.0.0", port)).unwrap()
}

/// The processes whose command line names `directory`.
pub fn processes_of(directory: &Path) -> Vec<(u32, String)> {
    let wanted = directory.to_str().unwrap();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(wanted) {
            found.push((pid, line));
        }
    }
    found
}

/// The children of a process, by id.
pub fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let list = list.unwrap_or_default();
    list.split_whitespace()
        .map(|id| id.parse().unwrap())
        .collect()
}

/// SIGKILL for the master and its workers, until they are gone.
pub fn kill_nginx(host: &Host) {
    let master = host.nginx.pid().unwrap();
    let workers = children(master);
    for pid in std::iter::once(master).chain(workers) {
        let _ = Command::new("kill")
            .args(["-KILL", &pid.to_string()])
            .status();
        super::wait_for("the kill", || is_gone(pid).then_some(()));
    }
}

fn is_gone(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // a zombie that nobody waits for is gone as well
    stat.rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.starts_with('Z'))
}

/// Temporaries that an interrupted write left anywhere below the host's directory.
pub fn temporaries(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(".vhostd-tmp-")
        {
            found.push(path.display().to_string());
        } else if entry.file_type().unwrap().is_dir() {
            found.extend(temporaries(&path));
        }
    }
    found
}

impl Host {
    /// What a plain request for `name` gets: status and body.
    pub fn plain(&self, name: &str) -> Option<(u16, String)> {
        let answer = client::get(self.http(), name, "/").ok()?;
        Some((
            answer.status,
            String::from_utf8_lossy(&answer.body).into_owned(),
        ))
    }

    /// A shipped template with one more line for a certain name.
    pub fn override_template(&self, name: &str, line: &str) {
        let shipped = include_str!("../../../templates/vhost.conf");
        let marker = "    server_tokens off;\n";
        assert!(shipped.contains(marker));
        let condition = format!(
            "{marker}{{% for name in server.names %}}{{% if name == \"{name}\" %}}    {line}\n{{% endif %}}{{% endfor %}}"
        );
        fs::create_dir_all(self.path("templates")).unwrap();
        fs::write(
            self.path("templates/vhost.conf"),
            shipped.replacen(marker, &condition, 1),
        )
        .unwrap();
    }

    /// Whether `app` itself answers for `name` over plain HTTP.
    pub fn is_answered_by(&self, name: &str, app: &App) -> bool {
        let answer = client::get(self.http(), name, "/");
        answer.is_ok_and(|answer| {
            answer.status == 200 && answer.header("X-App") == Some(&app.address.to_string())
        })
    }

    /// Whether `https://name/` answers 200 under the internal CA's root.
    pub fn serves(&self, name: &str) -> bool {
        self.serves_to(name, &self.internal_root())
    }

    pub fn serves_to(&self, name: &str, trust: &Trust) -> bool {
        client::get_tls(self.https(), name, "/", trust).is_ok_and(|answer| answer.status == 200)
    }

    /// What must hold after every fault: `current` leads to generation `number`, nginx accepts what
    /// is on disk, and status says the same as both.
    pub fn assert_sound(&self, number: u64) -> Value {
        assert_eq!(self.active(), number, "{}", self.nginx.error_log());
        let test = self.nginx.test();
        let words = String::from_utf8_lossy(&test.stderr).into_owned();
        assert!(test.status.success(), "{words}");
        let (_, status) = self.json(&["status"]);
        assert_eq!(status["generation"]["active"], number, "{status}");
        if status["nginx"]["running"] == true {
            assert_eq!(status["generation"]["serving"], number, "{status}");
        }
        status
    }

    /// The state of a vhost in `status --json`.
    pub fn state(&self, name: &str) -> String {
        let (_, status) = self.json(&["status"]);
        state_in(&status, name)
    }

    /// The newest entry of `history --json`.
    pub fn newest_history(&self) -> Value {
        let (_, history) = self.json(&["history"]);
        history["generations"][0].clone()
    }
}

pub fn state_in(status: &Value, name: &str) -> String {
    let vhosts = status["vhosts"].as_array().unwrap();
    let vhost = vhosts.iter().find(|vhost| vhost["name"] == name);
    vhost.map_or("absent".to_owned(), |vhost| {
        vhost["state"].as_str().unwrap().to_owned()
    })
}

/// As [`super::wait_for`], for what takes longer on a busy machine.
pub fn wait_long<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
