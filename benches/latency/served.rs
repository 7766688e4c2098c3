//! What nginx spends on requests, in one worker: by the rendered blocks, by hand-tuned blocks that
//! do the same, and by the plainest ones.
//!
//! The worker's CPU time is measured: the clients and the app share the machine with it.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

use tempfile::env::temp_dir;

use super::Figure;
use super::change::{file, named, settle};
use super::support::host::Host;
use super::support::nginx::free_port;
use super::support::wait_for;

const NAME: &str = "ours.example.com";
const RUNS: usize = 31;
const CONNECTIONS: usize = 8;
/// nginx closes a connection after a thousand.
const REQUESTS: usize = 500;

/// A file of 10 KB below `/assets/`.
pub fn static_file() -> (Figure, Vec<Duration>) {
    let host = Host::below(&temp_dir());
    let root = host.page("app", "front");
    fs::create_dir(root.join("assets")).unwrap();
    fs::set_permissions(root.join("assets"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(root.join("assets/app.js"), vec![b'x'; 10_240]).unwrap();
    let root = root.display();
    let keys = "cache_assets: true\ntls: off\n";
    host.drop_file(
        "app.yml",
        &format!("server_name: {NAME}\nroot: {root}\n{keys}"),
    );
    host.reload_ends(0, "activated");
    let links = directive(&host.rendered("app").unwrap(), "disable_symlinks");
    let tuned = format!(
        "root {root};\n{links};\nsendfile on;\ntcp_nopush on;\n\
         location / {{\n\
         gzip_static on;\ngzip_vary on;\n\
         add_header Cache-Control \"public, max-age=31536000, immutable\";\n\
         try_files $uri $uri.html =404;\n}}\n"
    );
    let plain = format!("root {root};\nsendfile on;\ntcp_nopush on;\n");
    measure("static file", "/assets/app.js", 1.02, &host, &tuned, &plain)
}

/// A short answer of an app.
pub fn proxied() -> (Figure, Vec<Duration>) {
    let host = Host::below(&temp_dir());
    let app = named("one");
    host.drop_file("app.yml", &format!("{}tls: off\n", file(NAME, app)));
    host.reload_ends(0, "activated");
    host.nginx.site(
        "upstream",
        &format!("upstream tuned {{ server {app}; keepalive 32; }}\n"),
    );
    let tuned = "location / {\n\
         proxy_pass http://tuned;\nproxy_http_version 1.1;\nproxy_set_header Connection \"\";\n\
         proxy_set_header Host $host;\nproxy_set_header X-Real-IP $remote_addr;\n\
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
         proxy_set_header X-Forwarded-Proto $scheme;\n}\n";
    let plain = format!("location / {{ proxy_pass http://{app}; }}\n");
    measure("proxied answer", "/", 1.1, &host, tuned, &plain)
}

fn measure(
    what: &str,
    path: &str,
    factor: f64,
    host: &Host,
    tuned: &str,
    plain: &str,
) -> (Figure, Vec<Duration>) {
    let mut ports = Vec::new();
    for (name, text) in [("tuned", tuned), ("plain", plain)] {
        let port = free_port();
        let log = host.path("logs").join(name);
        let server = format!(
            "server {{\nlisten 127.0.0.1:{port};\nserver_tokens off;\naccess_log {};\n{text}}}\n",
            log.display()
        );
        host.nginx.site(name, &server);
        ports.push(port);
    }
    host.nginx.reload();
    let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let [tuned, plain] = [at(ports[0]), at(ports[1])];
    wait_for("the new worker", || TcpStream::connect(plain).ok());
    settle();
    let [worker] = host.nginx.workers()[..] else {
        panic!("one worker")
    };
    let spent = |address| {
        let before = cpu(worker);
        load(address, path);
        cpu(worker) - before
    };
    let addresses = [host.http(), tuned, plain];
    for address in addresses {
        spent(address);
    }
    let mut runs = [const { Vec::new() }; 3];
    for run in 0..RUNS {
        // each follows each of the others as often
        for nth in 0..runs.len() {
            let nth = (run + nth) % runs.len();
            runs[nth].push(spent(addresses[nth]));
        }
    }
    let [ours, floor, plain] = runs;
    let requests = CONNECTIONS * REQUESTS;
    let figure = Figure {
        what: format!("nginx's CPU for {requests} requests, {what}"),
        ours,
        floor,
        factor,
        slack: Duration::ZERO,
    };
    (figure, plain)
}

/// The same request over and over, each connection in a thread of its own.
fn load(address: SocketAddr, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {NAME}\r\nAccept-Encoding: gzip\r\n\r\n");
    let request = request.as_bytes();
    thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                let mut answer = vec![0; first_answer(&mut stream, request)];
                for _ in 1..REQUESTS {
                    stream.write_all(request).unwrap();
                    stream.read_exact(&mut answer).unwrap();
                }
                assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
            });
        }
    });
}

/// Its length, which is that of all that follow.
fn first_answer(stream: &mut TcpStream, request: &[u8]) -> usize {
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    let mut part = [0; 16_384];
    loop {
        let length = stream.read(&mut part).unwrap();
        assert!(length > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend(&part[..length]);
        if let Some(expected) = expected_length(&answer)
            && answer.len() >= expected
        {
            return expected;
        }
    }
}

fn expected_length(answer: &[u8]) -> Option<usize> {
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&answer[..head]).unwrap();
    let (_, rest) = text.split_once("Content-Length: ").unwrap();
    Some(head + rest.lines().next().unwrap().parse::<usize>().unwrap())
}

/// The directive `name` of a rendered file, as it stands there.
fn directive(rendered: &str, name: &str) -> String {
    let mut lines = rendered.lines().map(str::trim);
    let line = lines.find(|line| line.starts_with(name)).unwrap();
    line.trim_end_matches(';').to_owned()
}

/// What a process of one thread has spent, in user mode and in the kernel (proc(5), schedstat).
fn cpu(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    let nanoseconds = text.split_whitespace().next().unwrap();
    Duration::from_nanos(nanoseconds.parse().unwrap())
}
