//! How answers pass from an app to its visitors: at once, and without keeping the app waiting.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use super::NAME;
use super::fixture::Served;
use crate::support::client::{self, TlsStream};
use crate::support::scripted::Scripted;
use crate::support::wait_within;

/// A vhost with an app alone.
fn proxied(app: &Scripted) -> Served {
    let keys = format!(
        "server_name: \"{NAME}\"\nproxy_pass_url: \"{}\"\n",
        app.url()
    );
    Served::new().serve(&[("hello", &keys)])
}

fn over_tls(served: &Served) -> TlsStream {
    client::connect_tls(served.https(), NAME, &served.trust(), &[]).unwrap()
}

/// Sends four pieces, the next one only when the test has seen the one before.
fn stepwise(media_type: &'static str) -> (Scripted, mpsc::Sender<()>) {
    let (go_on, wait) = mpsc::channel();
    let app = Scripted::start(move |_, stream| {
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
        )?;
        for piece in PIECES {
            write!(stream, "{:x}\r\n{piece}\r\n", piece.len())?;
            if wait.recv_timeout(Duration::from_secs(20)).is_err() {
                return Ok(false);
            }
        }
        stream.write_all(b"0\r\n\r\n")?;
        Ok(true)
    });
    (app, go_on)
}

const PIECES: [&str; 4] = ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n", "data: 4\n\n"];

/// curl's output as it comes.
fn curl(served: &Served, further: &[&str]) -> Receiver<u8> {
    let port = served.https().port();
    let mut child = Command::new("curl")
        .args(["-sSkN", "--max-time", "30", "--noproxy", "*"])
        .args(["--resolve", &format!("{NAME}:{port}:127.0.0.1")])
        .args(further)
        .arg(format!("https://{NAME}:{port}/stream"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (send, received) = mpsc::channel();
    let mut output = child.stdout.take().unwrap();
    thread::spawn(move || {
        let mut byte = [0];
        while output.read(&mut byte).is_ok_and(|count| count == 1) {
            let _ = send.send(byte[0]);
        }
        let _ = child.wait();
    });
    received
}

#[test]
fn a_stream_passes_at_once_whatever_the_client_accepts_and_speaks() {
    for protocol in ["--http1.1", "--http2"] {
        for (media_type, accept, method) in [
            ("text/event-stream", "text/event-stream", "GET"),
            ("text/event-stream", "*/*", "GET"),
            ("text/event-stream", "application/json", "POST"),
            ("application/x-ndjson", "application/json", "POST"),
            ("text/html", "text/html,*/*;q=0.8", "GET"),
        ] {
            let case = format!("{protocol} {media_type} for {accept} by {method}");
            let (app, go_on) = stepwise(media_type);
            let served = proxied(&app);
            let header = format!("Accept: {accept}");
            let mut further = vec![protocol, "-H", &header, "-X", method];
            if method == "POST" {
                further.extend(["-H", "Content-Type: application/json", "-d", "{}"]);
            }
            let output = curl(&served, &further);
            for piece in PIECES {
                for expected in piece.bytes() {
                    let byte = output.recv_timeout(Duration::from_secs(10));
                    assert_eq!(byte, Ok(expected), "{case}");
                }
                go_on.send(()).unwrap();
            }
        }
    }
}

/// A page of a megabyte, then whatever else is asked for at once.
fn page() -> Scripted {
    Scripted::start(|request, stream| {
        let length = if request.path == "/page" { 1 << 20 } else { 2 };
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n\r\n"
        )?;
        stream.write_all(&vec![b'x'; length])?;
        Ok(true)
    })
}

#[test]
fn a_visitor_who_reads_nothing_does_not_hold_the_only_worker_of_an_app() {
    for accept in ["text/html", "*/*"] {
        let app = page();
        let served = proxied(&app);
        let mut silent = over_tls(&served);
        let headers = [("Accept", accept)];
        client::send(&mut silent, "GET", NAME, "/page", &headers).unwrap();
        wait_within(Duration::from_secs(5), "the page to be asked for", || {
            (app.requests() == 1).then_some(())
        });
        let started = Instant::now();
        assert_eq!(served.get("/other").text(), "xx", "{accept}");
        assert!(started.elapsed() < Duration::from_secs(2), "{accept}");
        drop(silent);
    }
}

#[test]
fn over_http2_a_visitor_who_reads_nothing_does_not_hold_the_only_worker_either() {
    let app = page();
    let served = proxied(&app);
    let port = served.https().port();
    // its output is a pipe that is not read
    let mut silent = Command::new("curl")
        .args(["-sSkN", "--http2", "--max-time", "30", "--noproxy", "*"])
        .args(["--resolve", &format!("{NAME}:{port}:127.0.0.1")])
        .arg(format!("https://{NAME}:{port}/page"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_within(Duration::from_secs(5), "the page to be asked for", || {
        (app.requests() == 1).then_some(())
    });
    let started = Instant::now();
    assert_eq!(served.get("/other").text(), "xx");
    assert!(started.elapsed() < Duration::from_secs(2));
    silent.kill().unwrap();
    silent.wait().unwrap();
}

/// Sends `length` bytes and tells how long the longest pause between two pieces was; gives up after
/// `patience` without progress.
fn download(length: usize, patience: Duration) -> (Scripted, Receiver<(usize, Duration)>) {
    let (told, pauses) = mpsc::channel();
    let app = Scripted::start(move |_, stream: &mut TcpStream| {
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/zip\r\nContent-Length: {length}\r\n\r\n"
        )?;
        stream.set_write_timeout(Some(patience))?;
        let piece = [b'x'; 16 << 10];
        let mut longest = Duration::ZERO;
        let mut sent = 0;
        while sent < length {
            let started = Instant::now();
            if stream.write_all(&piece).is_err() {
                longest = longest.max(started.elapsed());
                break;
            }
            longest = longest.max(started.elapsed());
            sent += piece.len();
        }
        let _ = told.send((sent, longest));
        Ok(false)
    });
    (app, pauses)
}

#[test]
fn a_download_by_a_client_of_a_megabyte_a_second_never_stops_its_app_for_five_seconds() {
    let length = 24 << 20;
    let (app, pauses) = download(length, Duration::from_secs(8));
    let served = proxied(&app);
    let mut stream = over_tls(&served);
    client::send(&mut stream, "GET", NAME, "/file", &[]).unwrap();
    let mut reader = BufReader::new(stream);
    assert_eq!(client::head(&mut reader).unwrap().0, 200);
    let started = Instant::now();
    let mut buffer = vec![0; 64 << 10];
    let mut read = 0;
    // until the app has sent all: what is left is in buffers
    let (sent, longest) = loop {
        if let Ok(told) = pauses.try_recv() {
            break told;
        }
        if let Ok(count) = reader.read(&mut buffer) {
            read += count;
        }
        let due = Duration::from_secs_f64(read as f64 / f64::from(1 << 20));
        thread::sleep(due.saturating_sub(started.elapsed()));
    };
    assert_eq!(sent, length);
    assert!(longest < Duration::from_secs(5), "{longest:?}");
}

#[test]
fn of_a_download_that_is_not_read_a_bounded_part_is_taken_ahead() {
    let (app, pauses) = download(256 << 20, Duration::from_secs(8));
    let served = proxied(&app);
    let mut stream = over_tls(&served);
    client::send(&mut stream, "GET", NAME, "/file", &[]).unwrap();
    let (sent, _) = pauses.recv_timeout(Duration::from_secs(30)).unwrap();
    // a megabyte, and what the sockets hold
    assert!((1 << 20..32 << 20).contains(&sent), "{sent}");
}

#[test]
fn a_visitor_may_pause_for_longer_than_fifteen_seconds_in_a_download_and_in_an_upload() {
    let (app, _pauses) = download(64 << 20, Duration::from_secs(60));
    let served = proxied(&app);
    let mut down = over_tls(&served);
    client::send(&mut down, "GET", NAME, "/file", &[]).unwrap();
    let mut down = BufReader::new(down);
    assert_eq!(client::head(&mut down).unwrap().0, 200);
    let other = Scripted::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
        Ok(true)
    });
    let uploads = proxied(&other);
    let mut up = over_tls(&uploads);
    let headers = [("Content-Length", "20")];
    client::send(&mut up, "POST", NAME, "/upload", &headers).unwrap();
    up.write_all(&[b'x'; 10]).unwrap();
    up.flush().unwrap();
    thread::sleep(Duration::from_secs(17));
    up.write_all(&[b'x'; 10]).unwrap();
    up.flush().unwrap();
    let answer = client::response(&mut BufReader::new(up), "POST").unwrap();
    assert_eq!(answer.status, 200);
    // more than any buffer holds
    let mut rest = Vec::new();
    let count = down.take(48 << 20).read_to_end(&mut rest).unwrap();
    assert_eq!(count, 48 << 20);
}
