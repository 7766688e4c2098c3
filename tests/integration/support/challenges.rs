//! What stands in for nginx on port 80 where only the challenge matters.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Answers `/.well-known/acme-challenge/TOKEN` with `TOKEN.THUMBPRINT`, as nginx does.
pub struct ChallengeServer {
    pub port: u16,
    thumbprint: Arc<Mutex<Option<String>>>,
}

impl ChallengeServer {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let thumbprint: Arc<Mutex<Option<String>>> = Arc::default();
        let shared = thumbprint.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let thumbprint = shared.lock().unwrap().clone();
                // a broken connection is Pebble's affair
                let _ = answer(stream.unwrap(), thumbprint.as_deref());
            }
        });
        Self { port, thumbprint }
    }

    /// `None`: every page is somebody else's.
    pub fn set(&self, thumbprint: Option<&str>) {
        *self.thumbprint.lock().unwrap() = thumbprint.map(str::to_owned);
    }
}

fn answer(mut stream: TcpStream, thumbprint: Option<&str>) -> std::io::Result<()> {
    let mut line = String::new();
    let mut reader = BufReader::new(stream.try_clone()?);
    reader.read_line(&mut line)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let path = line.split(' ').nth(1).unwrap_or_default();
    let token = path
        .strip_prefix("/.well-known/acme-challenge/")
        .unwrap_or_default();
    let body = thumbprint.map_or("somebody else's page".to_owned(), |thumbprint| {
        format!("{token}.{thumbprint}")
    });
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}
