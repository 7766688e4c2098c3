//! A changed `proxy_pass_url` → served, beside nginx's own `-t` and SIGHUP on the same bytes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::env::temp_dir;

use super::Figure;
use super::drop::until_active;
use super::support::client::{self, Trust};
use super::support::host::Host;
use super::support::nginx::NginxHost;

const RUNS: usize = 15;

pub fn run(vhosts: usize) -> Figure {
    let apps = [named("one"), named("two")];
    let host = Host::below(&temp_dir());
    for index in 1..vhosts {
        host.drop_file(
            &format!("v{index}.yml"),
            &file(&format!("v{index}.example.com"), apps[0]),
        );
    }
    host.drop_file("hello.yml", &file("hello.example.com", apps[0]));
    let daemon = host.daemon();
    let trust = host.internal_root();
    host.wait_for_https("hello.example.com", "/", &trust);
    let floor_host = copy_of(&host);
    rest();
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        let (old, new) = (apps[run % 2], apps[(run + 1) % 2]);
        let word = ["two", "one"][run % 2];
        settle();
        let before = host.active();
        let begin = Instant::now();
        host.drop_file("hello.yml", &file("hello.example.com", new));
        until_active(&host, before);
        ours.push(until_served(begin, host.https(), word, &trust));
        settle();
        floor.push(floor_host.change(old, new, word, &trust));
    }
    assert_eq!(daemon.stop(), 0);
    Figure {
        what: format!("changed proxy_pass_url → served, {vhosts} vhosts"),
        ours,
        floor,
        factor: 1.2,
        slack: Duration::from_millis(10),
    }
}

/// nginx alone, with the very bytes that vhostd rendered.
struct Floor {
    nginx: NginxHost,
    hello: PathBuf,
}

fn copy_of(host: &Host) -> Floor {
    let nginx = NginxHost::below(&temp_dir());
    let tree = copy_tree(host, &nginx, &|text| text);
    nginx.start();
    let hello = tree.join("vhosts/hello.conf");
    Floor { nginx, hello }
}

/// Makes `nginx` read a copy of what `host` serves, on its own ports; `adapt` is the last to touch
/// each file's text. Returns the directory of the copy.
pub fn copy_tree(host: &Host, nginx: &NginxHost, adapt: &dyn Fn(String) -> String) -> PathBuf {
    let tree = nginx.path("tree");
    fs::create_dir_all(tree.join("vhosts")).unwrap();
    let source = fs::canonicalize(host.path("state/current")).unwrap();
    let words = |path: PathBuf| path.display().to_string();
    let pairs = [
        (words(source.clone()), words(tree.clone())),
        (
            host.nginx.http_port.to_string(),
            nginx.http_port.to_string(),
        ),
        (
            host.nginx.https_port.to_string(),
            nginx.https_port.to_string(),
        ),
        (words(host.path("logs")), words(nginx.path("logs"))),
    ];
    let adapt = |text: String| {
        let text = pairs
            .iter()
            .fold(text, |text, (from, to)| text.replace(from, to));
        adapt(text)
    };
    for name in ["http.conf", "base.conf"] {
        fs::write(
            tree.join(name),
            adapt(fs::read_to_string(source.join(name)).unwrap()),
        )
        .unwrap();
    }
    for entry in fs::read_dir(source.join("vhosts")).unwrap() {
        let path = entry.unwrap().path();
        let text = adapt(fs::read_to_string(&path).unwrap());
        fs::write(tree.join("vhosts").join(path.file_name().unwrap()), text).unwrap();
    }
    nginx.include(&tree.join("http.conf"));
    tree
}

impl Floor {
    fn change(&self, old: SocketAddr, new: SocketAddr, word: &str, trust: &Trust) -> Duration {
        let text = fs::read_to_string(&self.hello).unwrap();
        let text = text.replace(&old.to_string(), &new.to_string());
        let begin = Instant::now();
        fs::write(&self.hello, text).unwrap();
        assert!(self.nginx.test().status.success());
        self.nginx.reload();
        let address = SocketAddr::from(([127, 0, 0, 1], self.nginx.https_port));
        until_served(begin, address, word, trust)
    }
}

fn until_served(begin: Instant, address: SocketAddr, word: &str, trust: &Trust) -> Duration {
    loop {
        let answer = client::get_tls(address, "hello.example.com", "/", trust);
        if answer.is_ok_and(|answer| answer.body == word.as_bytes()) {
            return begin.elapsed();
        }
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "never served {word}"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

/// Old workers end, the proof ends, and nginx has had its rest: each run begins on a quiet machine.
pub fn settle() {
    thread::sleep(Duration::from_millis(800));
}

/// What comes within a second of a reload waits, or within twice as long as that took: that is a
/// flood's, and not measured.
pub fn rest() {
    thread::sleep(Duration::from_secs(4));
}

pub fn file(name: &str, app: SocketAddr) -> String {
    format!("server_name: {name}\nproxy_pass_url: http://{app}\n")
}

/// An app that answers its name.
pub fn named(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
                    if line == "\r\n" {
                        let length = name.len();
                        let answer =
                            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}");
                        if stream.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                    line.clear();
                }
            });
        }
    });
    address
}
