//! N: the example app: plain HTTP on loopback, a thread per connection, one page.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// Answers until the process ends.
#[derive(Debug)]
pub struct App {
    /// The first line of its page is `Hello from NAME`.
    pub name: &'static str,
    pub address: SocketAddr,
}

impl App {
    /// Listens on a free port of 127.0.0.1.
    pub fn start(name: &'static str) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // a client that goes away ends its own thread, nothing else
                thread::spawn(move || serve(&stream, name));
            }
        });
        Ok(Self { name, address })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Answers each request of a connection; nginx keeps it alive.
fn serve(stream: &TcpStream, name: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        let head = head(&mut reader)?;
        let Some(request) = head.first() else {
            return Ok(());
        };
        let body = page(name, request, &head[1..]);
        let mut writer = stream;
        writer.write_all(
            format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .as_bytes(),
        )?;
    }
}

/// The lines up to the empty one; none where the client has ended.
fn head(reader: &mut impl BufRead) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        let read = reader.read_line(&mut line)?;
        match line.trim_end() {
            "" if read > 0 || lines.is_empty() => return Ok(lines),
            "" => return Err(io::ErrorKind::UnexpectedEof.into()),
            line => lines.push(line.to_owned()),
        }
    }
}

/// What nginx told the app about whoever asks.
fn page(name: &str, request: &str, headers: &[String]) -> String {
    let told: String = headers
        .iter()
        .filter(|header| {
            let header = header.to_ascii_lowercase();
            header.starts_with("host:") || header.starts_with("x-")
        })
        .map(|header| format!("  {header}\n"))
        .collect();
    format!("Hello from {name}\n\n{request}\n{told}")
}

/// Longer than nginx keeps an idle connection to an upstream.
const IDLE: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_the_forwarding_headers_and_no_others() {
        let headers = [
            "Host: a.example",
            "Cookie: secret",
            "X-Forwarded-Proto: https",
        ];
        let shown = page("blue", "GET / HTTP/1.1", &headers.map(str::to_owned));
        assert_eq!(
            shown,
            "Hello from blue\n\nGET / HTTP/1.1\n  Host: a.example\n  X-Forwarded-Proto: https\n"
        );
    }

    #[test]
    fn two_requests_on_one_connection_are_answered() {
        let app = App::start("blue").unwrap();
        let stream = TcpStream::connect(app.address).unwrap();
        let mut reader = BufReader::new(&stream);
        for _ in 0..2 {
            (&stream)
                .write_all(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
                .unwrap();
            assert_eq!(head(&mut reader).unwrap()[0], "HTTP/1.1 200 OK");
            let mut body = vec![0; page("blue", "GET /x HTTP/1.1", &["Host: a".into()]).len()];
            io::Read::read_exact(&mut reader, &mut body).unwrap();
            assert!(body.starts_with(b"Hello from blue\n"));
        }
    }
}
