//! A reload loses nobody: new connections, kept-alive ones where nginx can, websockets until
//! nginx's own limit for them.

use std::fs;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::support::app::App;
use super::support::client;
use super::support::host::Host;
use super::support::nginx::NginxHost;
use super::support::{later, wait_for};

const NAME: &str = "hello.example.com";
const OTHER: &str = "other.example.com";
const RELOADS: usize = 100;
const CONNECTIONS: usize = 10_000;
/// Between two connections of one thread: the test beside this one wants to run, too.
const PAUSE: Duration = Duration::from_millis(4);

fn with_main_directive(nginx: NginxHost, directive: &str) -> NginxHost {
    let main = fs::read_to_string(nginx.config()).unwrap();
    fs::write(nginx.config(), format!("{directive}\n{main}")).unwrap();
    nginx
}

/// `NAME` serves over HTTPS, and `other` without.
fn host(nginx: NginxHost, settings: &str) -> (Host, [App; 2]) {
    let host = Host::on(nginx, settings);
    let apps = [App::start(), App::start()];
    host.drop_app("hello", NAME, &apps[0]);
    drop_other(&host, &apps[1]);
    host.reload_ends(0, "activated");
    (host, apps)
}

fn drop_other(host: &Host, app: &App) {
    let text = format!(
        "server_name: {OTHER}\nproxy_pass_url: {}\ntls: off\n",
        app.url()
    );
    host.drop_file("other.yml", &text);
}

fn reload(host: &Host, apps: &[App; 2], round: usize) -> Value {
    host.drop_app("hello", NAME, &apps[round % 2]);
    drop_other(host, &apps[(round + 1) % 2]);
    let (exit, report) = host.json(&["reload"]);
    assert_eq!(
        (exit, &report["outcome"]),
        (0, &"activated".into()),
        "{report}"
    );
    report
}

/// What the threads of a load see.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    done: AtomicUsize,
    failed: std::sync::Mutex<Vec<String>>,
}

impl Load {
    /// Until it is stopped; `request` says what went wrong.
    fn run(&self, mut request: impl FnMut() -> Result<(), String>) {
        while !self.stop.load(Ordering::SeqCst) {
            if let Err(error) = request() {
                self.failed.lock().unwrap().push(error);
            }
            self.done.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn assert_nobody_was_lost(&self, at_least: usize) {
        let failed = self.failed.lock().unwrap();
        let done = self.done.load(Ordering::SeqCst);
        assert!(
            failed.is_empty(),
            "{} of {done}, first {:?}",
            failed.len(),
            failed.first()
        );
        assert!(done >= at_least, "only {done} requests");
    }
}

/// Stops loads when dropped: a failed assertion must not leave threads that run on.
struct Stopping<'a>(&'a [&'a Load]);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        for load in self.0 {
            load.stop.store(true, Ordering::SeqCst);
        }
    }
}

fn ok(answer: std::io::Result<client::Response>) -> Result<(), String> {
    match answer {
        Ok(answer) if answer.status == 200 => Ok(()),
        Ok(answer) => Err(format!("status {}", answer.status)),
        Err(error) => Err(error.to_string()),
    }
}

/// A client that keeps its connection until it is told to close it.
struct KeptAlive {
    address: SocketAddr,
    connection: Option<BufReader<TcpStream>>,
}

impl KeptAlive {
    fn request(&mut self) -> Result<(), String> {
        let words = |error: std::io::Error| error.to_string();
        let mut reader = match self.connection.take() {
            Some(reader) => reader,
            None => BufReader::new(client::connect(self.address).map_err(words)?),
        };
        client::send(reader.get_mut(), "GET", OTHER, "/", &[]).map_err(words)?;
        let answer = client::response(&mut reader, "GET").map_err(words)?;
        if answer.header("Connection") != Some("close") {
            self.connection = Some(reader);
        }
        // a client that thinks: the connection is idle when the reload comes
        thread::sleep(Duration::from_millis(20));
        ok(Ok(answer))
    }
}

#[test]
fn a_hundred_reloads_under_load_lose_no_connection() {
    reload_under_load(NginxHost::new(), false);
}

#[test]
fn a_hundred_reloads_under_load_lose_no_kept_alive_connection_where_nginx_can_keep_them() {
    if let Some(binary) = later("nginx") {
        reload_under_load(NginxHost::new().with_binary(&binary), true);
    }
}

/// `keeps_alive`: with clients that keep their connections, too.
fn reload_under_load(nginx: NginxHost, keeps_alive: bool) {
    let (host, apps) = host(nginx, "tls: internal\n");
    let features = fs::read_to_string(host.path("state/features.json")).unwrap();
    let features: Value = serde_json::from_str(&features).unwrap();
    assert!(!keeps_alive || features["features"]["keepalive_min_timeout"] == true);
    let (new, kept) = (Load::default(), Load::default());
    let (http, https, trust) = (host.http(), host.https(), host.internal_root());
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                new.run(|| {
                    thread::sleep(PAUSE);
                    ok(client::get(http, OTHER, "/"))
                });
            });
        }
        scope.spawn(|| {
            new.run(|| {
                thread::sleep(PAUSE);
                ok(client::get_tls(https, NAME, "/", &trust))
            });
        });
        for _ in 0..if keeps_alive { 8 } else { 0 } {
            scope.spawn(|| {
                let mut client = KeptAlive {
                    address: http,
                    connection: None,
                };
                kept.run(|| client.request());
            });
        }
        let loads = [&new, &kept];
        let stopping = Stopping(&loads);
        for round in 1..=RELOADS {
            reload(&host, &apps, round);
        }
        wait_for("connections enough", || {
            (new.done.load(Ordering::SeqCst) >= CONNECTIONS).then_some(())
        });
        drop(stopping);
    });
    new.assert_nobody_was_lost(CONNECTIONS);
    kept.assert_nobody_was_lost(if keeps_alive { 1000 } else { 0 });
    let count = |load: &Load| load.done.load(Ordering::SeqCst);
    eprintln!(
        "{} new connections, {} requests on kept ones",
        count(&new),
        count(&kept)
    );
    host.assert_sound(RELOADS as u64 + 1);
}

/// A websocket that echoes.
struct Websocket(BufReader<TcpStream>);

impl Websocket {
    fn open(host: &Host) -> Self {
        let mut stream = client::connect(host.http()).unwrap();
        let upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
        client::send(&mut stream, "GET", OTHER, "/ws", &upgrade).unwrap();
        let mut reader = BufReader::new(stream);
        assert_eq!(client::head(&mut reader).unwrap().0, 101);
        Self(reader)
    }

    fn echoes(&mut self) -> bool {
        let mut echoed = [0; 4];
        let sent = self.0.get_mut().write_all(b"ping");
        sent.is_ok() && self.0.read_exact(&mut echoed).is_ok() && echoed == *b"ping"
    }
}

#[test]
fn a_websocket_lives_through_reloads_until_nginxs_shutdown_timeout() {
    let limit = Duration::from_secs(5);
    let nginx = with_main_directive(NginxHost::new(), "worker_shutdown_timeout 5s;");
    let (host, apps) = host(nginx, "tls: internal\n");
    let mut socket = Websocket::open(&host);
    let begin = Instant::now();
    let mut reloads = 0;
    loop {
        reload(&host, &apps, reloads + 1);
        let told = begin.elapsed();
        let echoes = socket.echoes();
        if begin.elapsed() > limit {
            break;
        }
        assert!(
            echoes,
            "cut {told:?} after its worker was told to shut down"
        );
        reloads += 1;
    }
    assert!(reloads > 0, "no reload within {limit:?}");
    // its worker has been told with the first reload
    wait_for("the cut", || (!socket.echoes()).then_some(()));
    wait_for("no old worker", || {
        (host.nginx.workers().len() == 1).then_some(())
    });
    // every other one begins anew
    assert!(Websocket::open(&host).echoes());
}

#[test]
fn many_old_workers_are_a_warning_that_says_what_bounds_them() {
    let (host, apps) = host(NginxHost::new(), "tls: internal\n");
    let setup = host.json(&["setup"]).1;
    assert!(
        setup["warnings"]
            .to_string()
            .contains("worker_shutdown_timeout 10m"),
        "{setup}"
    );
    let mut sockets = Vec::new();
    let mut report = Value::Null;
    for round in 1..=9 {
        sockets.push(Websocket::open(&host));
        report = reload(&host, &apps, round);
    }
    let warnings = report["warnings"].to_string();
    assert!(
        warnings.contains("8 or more earlier configurations"),
        "{report}"
    );
    assert!(warnings.contains("worker_shutdown_timeout"), "{report}");
    assert_eq!(host.status()["warnings"], report["warnings"]);
    assert!(sockets.iter_mut().all(Websocket::echoes));
    drop(sockets);
    wait_for("no old worker", || {
        (host.nginx.workers().len() == 1).then_some(())
    });
    let report = reload(&host, &apps, 10);
    assert_eq!(report["warnings"], Value::Array(Vec::new()));
    let main = fs::read_to_string(host.nginx.config()).unwrap();
    fs::write(
        host.nginx.config(),
        format!("worker_shutdown_timeout 10m;\n{main}"),
    )
    .unwrap();
    let setup = host.json(&["setup"]).1;
    assert_eq!(setup["warnings"], Value::Array(Vec::new()), "{setup}");
}
