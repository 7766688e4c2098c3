//! A real name server: Knot on a free loopback port, with the zones that a test writes.

use std::fmt::Write;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::nginx::free_port;
use super::wait_for;

/// Kills its server when dropped. It is the resolver of the test, and the authority of each zone: a
/// name in none of them does not exist, because it serves the root, too.
pub struct NameServer {
    directory: tempfile::TempDir,
    zones: Vec<Zone>,
    at: Place,
    port: u16,
    /// Of the zones' last texts: Knot takes a greater one for newer.
    serial: u32,
    child: Child,
}

/// Where it listens, and where the zones say that their authority is.
#[derive(Clone, Copy)]
struct Place {
    listen: Ipv4Addr,
    authority: Ipv4Addr,
}

const HERE: Place = Place {
    listen: Ipv4Addr::LOCALHOST,
    authority: Ipv4Addr::LOCALHOST,
};

struct Zone {
    name: String,
    /// `None`: it cannot be loaded, so each question about it ends in SERVFAIL.
    records: Option<String>,
}

/// The key that may update each zone (RFC 2136, RFC 8945), HMAC-SHA256.
pub const KEY_NAME: &str = "vhostd-test";
pub const KEY_SECRET: &str = "q3b6IxCyKcVPmMWQAa0wfKq6jvfZhQm3aHV9oUMLqVY=";

impl NameServer {
    /// Each zone's name, and its records as in a zone file, relative to it, without SOA and NS.
    pub fn start(zones: &[(&str, &str)]) -> Self {
        Self::with(zones_of(zones), HERE)
    }

    /// At another loopback address, so that it can be somebody's authority.
    pub fn start_at(listen: impl Into<Ipv4Addr>, zones: &[(&str, &str)]) -> Self {
        let listen = listen.into();
        let authority = listen;
        Self::with(zones_of(zones), Place { listen, authority })
    }

    /// A resolver that remembers what the zones were: what they are, `authority` knows.
    pub fn remembering(zones: &[(&str, &str)], authority: &Self) -> Self {
        let authority = authority.at.listen;
        Self::with(zones_of(zones), Place { authority, ..HERE })
    }

    /// As [`NameServer::start`], and it fails at every question about `broken`.
    pub fn start_with_broken(zones: &[(&str, &str)], broken: &str) -> Self {
        let mut zones = zones_of(zones);
        zones.push(Zone {
            name: broken.to_owned(),
            records: None,
        });
        Self::with(zones, HERE)
    }

    fn with(zones: Vec<Zone>, at: Place) -> Self {
        let root = Zone {
            name: ".".to_owned(),
            records: Some(String::new()),
        };
        let zones: Vec<_> = zones.into_iter().chain([root]).collect();
        // a port that was free a moment ago may be taken: then it is started again
        for _ in 0..5 {
            let directory = tempfile::tempdir().unwrap();
            let port = free_port();
            if let Some(child) = try_start(&directory, (at.listen, port).into(), at, &zones) {
                return Self {
                    directory,
                    zones,
                    at,
                    port,
                    serial: 1,
                    child,
                };
            }
        }
        panic!("knotd does not start");
    }

    pub fn address(&self) -> SocketAddr {
        (self.at.listen, self.port).into()
    }

    /// Lines for the settings file.
    pub fn settings(&self) -> String {
        format!("dns: {{resolvers: [\"{}\"]}}\n", self.address())
    }

    /// The program of docs/dns-01.md, for this server. It logs what it was told.
    pub fn hook(&self, log: &Path) -> PathBuf {
        let path = self.directory.path().join("hook");
        let control = format!(
            "{} -c {}",
            program("knotc").display(),
            self.directory.path().join("knot.conf").display()
        );
        let page = include_str!("../../../docs/dns-01.md");
        let (_, script) = page.split_once("```sh\n#!/bin/sh\n").unwrap();
        let (script, _) = script.split_once("```").unwrap();
        let script = script.replace("${KNOTC:-knotc}", &format!("'{control}'"));
        let log = log.display();
        let script = format!("#!/bin/sh\necho \"$1 $2 $3\" >> {log}\n{script}");
        super::executable(&path, &script);
        path
    }

    /// Other records from now on.
    pub fn rewrite(&mut self, zone: &str, records: &str) {
        let at = self.zones.iter().position(|it| it.name == zone).unwrap();
        self.zones[at].records = Some(records.to_owned());
        self.serial += 1;
        let text = zone_text(&self.zones[at], self.serial, self.at);
        fs::write(zone_file(&self.directory, at), text).unwrap();
        let status = Command::new(program("knotc"))
            .arg("-c")
            .arg(self.directory.path().join("knot.conf"))
            .args(["-b", "zone-reload", zone])
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
    }

    /// Accepts questions and answers none, until [`NameServer::resume`].
    pub fn pause(&self) {
        self.signal("STOP");
        // each of its threads stops in its own time
        wait_for("the name server to stop", || {
            let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
            let stopped = |thread: fs::DirEntry| {
                let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
                stat.contains(") T ")
            };
            let mut threads = threads.map(Result::unwrap);
            threads.all(stopped).then_some(())
        });
    }

    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill")
            .args([&format!("-{name}"), &pid])
            .status();
        assert!(status.unwrap().success());
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn zones_of(zones: &[(&str, &str)]) -> Vec<Zone> {
    let zones = zones.iter().map(|(name, records)| Zone {
        name: (*name).to_owned(),
        records: Some((*records).to_owned()),
    });
    zones.collect()
}

fn try_start(
    directory: &tempfile::TempDir,
    address: SocketAddr,
    at: Place,
    zones: &[Zone],
) -> Option<Child> {
    let path = |name: &str| directory.path().join(name);
    let mut config = format!(
        "server:\n  listen: {ip}@{port}\n  rundir: {root}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
         log:\n  - target: stderr\n    any: warning\n\
         database:\n  storage: {root}\n\
         key:\n  - id: {KEY_NAME}\n    algorithm: hmac-sha256\n    secret: {KEY_SECRET}\n\
         acl:\n  - id: updates\n    action: update\n    update-type: TXT\n    key: {KEY_NAME}\n\
         zone:\n",
        ip = address.ip(),
        port = address.port(),
        root = directory.path().display(),
    );
    for (nth, zone) in zones.iter().enumerate() {
        let file = zone_file(directory, nth);
        let (name, shown) = (&zone.name, file.display());
        writeln!(
            config,
            "  - domain: {name}\n    file: {shown}\n    acl: updates\n    zonefile-sync: -1\n    journal-content: none"
        )
        .unwrap();
        if zone.records.is_some() {
            fs::write(file, zone_text(zone, 1, at)).unwrap();
        }
    }
    fs::write(path("knot.conf"), config).unwrap();
    let log = fs::File::create(path("log")).unwrap();
    let mut child = Command::new(program("knotd"))
        .arg("-c")
        .arg(path("knot.conf"))
        .stdin(Stdio::null())
        .stdout(Stdio::from(log.try_clone().unwrap()))
        .stderr(Stdio::from(log))
        .spawn()
        .expect("knotd is installed");
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if answers(address, &zones[0].name, zones[0].records.is_some()) {
            return Some(child);
        }
        if child.try_wait().unwrap().is_some() || Instant::now() > deadline {
            eprintln!("{}", fs::read_to_string(path("log")).unwrap_or_default());
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a question about the zone's SOA has a reply, and that is no SERVFAIL (RFC 1035 §4.1).
fn answers(address: SocketAddr, zone: &str, loads: bool) -> bool {
    let mut question = b"\x12\x34\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    for label in zone.split('.').filter(|label| !label.is_empty()) {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(b"\x00\x00\x06\x00\x01");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let mut reply = [0; 512];
    socket.connect(address).is_ok()
        && socket.send(&question).is_ok()
        && socket.recv(&mut reply).is_ok()
        && (!loads || reply[3] & 15 == 0)
}

/// Its name server is `ns.nameserver.test`, which is in the root, as `ns2` is, which a zone may name,
/// too.
fn zone_text(zone: &Zone, serial: u32, at: Place) -> String {
    let origin = zone.name.trim_end_matches('.');
    let records = zone.records.as_deref().unwrap_or_default();
    let glue = match zone.name.as_str() {
        "." => format!(
            "ns.nameserver.test. A {}\nns2.nameserver.test. A 127.0.0.2\n",
            at.authority
        ),
        _ => String::new(),
    };
    format!(
        "$ORIGIN {origin}.\n$TTL 1\n\
         @ SOA ns.nameserver.test. admin.nameserver.test. {serial} 60 60 600 1\n\
         @ NS ns.nameserver.test.\n{glue}{records}\n"
    )
}

fn zone_file(directory: &tempfile::TempDir, at: usize) -> PathBuf {
    directory.path().join(format!("{at}.zone"))
}

/// Debian has it where only root looks.
fn program(name: &str) -> PathBuf {
    let found = ["/usr/sbin", "/usr/local/sbin", "/usr/bin"]
        .iter()
        .map(|directory| PathBuf::from(directory).join(name))
        .find(|path| path.exists());
    found.unwrap_or_else(|| name.into())
}
