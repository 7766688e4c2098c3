//! An app behind nginx: HTTP/1.1 on the standard library, one thread per connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// Answers until the process ends:
/// `/ws` upgrades and echoes bytes · `/events/chunked` and `/events/close` send one event and hold
/// the stream open · `/slow` waits a second · `/upload` counts the body · all else echoes the
/// request line and headers. Every text has an `X-App` header with the app's own address.
pub struct App {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl App {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counter.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || serve(stream));
            }
        });
        Self {
            address,
            connections,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

struct Head {
    line: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn path(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// RFC 6455 §4.1: both headers, whatever their case.
    fn asks_for_a_websocket(&self) -> bool {
        let says = |name, word| {
            self.header(name)
                .is_some_and(|value| value.eq_ignore_ascii_case(word))
        };
        says("Upgrade", "websocket") && says("Connection", "upgrade")
    }
}

/// Until the peer closes, or an answer that ends the connection.
fn serve(stream: TcpStream) {
    // an answer is written in pieces: each would wait for the peer's delayed acknowledgement
    let _ = stream.set_nodelay(true);
    let Ok(copy) = stream.try_clone() else { return };
    let mut reader = BufReader::new(copy);
    let mut writer = stream;
    while let Ok(Some(head)) = head(&mut reader) {
        if !matches!(answer(&head, &mut reader, &mut writer), Ok(true)) {
            return;
        }
    }
}

fn head(reader: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let headers = lines
        .iter()
        .skip(1)
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    Ok(lines.first().map(|line| Head {
        line: line.clone(),
        headers,
    }))
}

/// `false`: the connection ends.
fn answer(head: &Head, reader: &mut impl Read, writer: &mut TcpStream) -> io::Result<bool> {
    let length = head
        .header("Content-Length")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let read = io::copy(&mut reader.take(length), &mut io::sink())?;
    match head.path() {
        "/ws" if head.asks_for_a_websocket() => {
            writer.write_all(SWITCHING.as_bytes())?;
            let mut buffer = [0; 1024];
            loop {
                match reader.read(&mut buffer)? {
                    0 => return Ok(false),
                    count => writer.write_all(&buffer[..count])?,
                }
            }
        }
        "/events/chunked" => {
            write!(
                writer,
                "{EVENTS}Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n"
            )?;
            hold(reader)
        }
        "/events/close" => {
            write!(writer, "{EVENTS}Connection: close\r\n\r\ndata: 1\n\n")?;
            hold(reader)
        }
        "/slow" => {
            thread::sleep(Duration::from_secs(1));
            text(writer, "slow\n")
        }
        "/upload" => text(writer, &format!("{read} bytes\n")),
        _ => {
            let headers: String = head
                .headers
                .iter()
                .map(|(name, value)| format!("{name}: {value}\n"))
                .collect();
            text(writer, &format!("{}\n{headers}", head.line))
        }
    }
}

fn text(writer: &mut TcpStream, body: &str) -> io::Result<bool> {
    let (length, address) = (body.len(), writer.local_addr()?);
    write!(
        writer,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-App: {address}\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )?;
    Ok(true)
}

/// Keeps a stream open without another byte.
fn hold(reader: &mut impl Read) -> io::Result<bool> {
    let _ = reader.read(&mut [0])?;
    Ok(false)
}

const SWITCHING: &str =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
const EVENTS: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n";
