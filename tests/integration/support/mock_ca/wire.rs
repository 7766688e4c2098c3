//! HTTP/1.1 over TLS by hand, so that it can be done badly.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

pub struct Request {
    pub method: String,
    pub path: String,
    pub body: Vec<u8>,
}

pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    pub manner: Manner,
}

/// How a reply is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Manner {
    Plain,
    /// The body's first bytes for ever, until the client has enough.
    EndlessBody,
    /// One header after the other.
    EndlessHeaders,
    /// "100 Continue" after "100 Continue".
    EndlessPatience,
    /// A byte of the body, a pause, the next.
    Dripping(Duration),
    /// The connection stays open and says nothing.
    Silence,
    /// The connection is closed in the middle of the body.
    HangUp,
    /// The connection is reset (RST) instead of an answer.
    Reset,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            manner: Manner::Plain,
        }
    }

    pub fn with(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.set(name, value);
        self
    }

    /// In the place of what is there.
    pub fn set(&mut self, name: &str, value: impl Into<Vec<u8>>) {
        self.unset(name);
        self.headers.push((name.to_owned(), value.into()));
    }

    pub fn unset(&mut self, name: &str) {
        self.headers.retain(|(known, _)| known != name);
    }
}

/// Until the client goes, or a reply ends the connection.
pub fn serve(stream: TcpStream, tls: &Arc<ServerConfig>, answer: impl Fn(&Request) -> Reply) {
    let _ = stream.set_nodelay(true);
    // a test that failed leaves no thread behind for ever
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let _ = stream.set_write_timeout(Some(PATIENCE));
    let Ok(connection) = ServerConnection::new(tls.clone()) else {
        return;
    };
    let mut reader = BufReader::new(StreamOwned::new(connection, stream));
    while let Ok(Some(request)) = request(&mut reader) {
        let reply = answer(&request);
        if reply.manner == Manner::Reset {
            let at_once = nix::libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            let _ = setsockopt(&reader.get_ref().sock, sockopt::Linger, &at_once);
            return;
        }
        let head_only = request.method == "HEAD";
        if !matches!(write(reader.get_mut(), &reply, head_only), Ok(true)) {
            return;
        }
    }
}

fn request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next(), words.next());
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        match header.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(Request {
        method: method.unwrap_or_default(),
        path: path.unwrap_or_default(),
        body,
    }))
}

/// `false`: the connection ends.
fn write(stream: &mut impl Write, reply: &Reply, head_only: bool) -> io::Result<bool> {
    let mut head = format!("HTTP/1.1 {} Mock\r\n", reply.status).into_bytes();
    for (name, value) in &reply.headers {
        head.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    let sized = |length: usize| format!("Content-Length: {length}\r\n\r\n").into_bytes();
    match reply.manner {
        Manner::Plain if head_only => stream.write_all(&[head, sized(0)].concat())?,
        Manner::Plain => {
            stream.write_all(&[head, sized(reply.body.len()), reply.body.clone()].concat())?;
        }
        Manner::Silence => {
            stream.flush()?;
            thread::sleep(PATIENCE);
            return Ok(false);
        }
        Manner::HangUp => {
            stream.write_all(&[head, sized(reply.body.len() + 9), reply.body.clone()].concat())?;
            stream.flush()?;
            return Ok(false);
        }
        Manner::Dripping(pause) => {
            stream.write_all(&[head, sized(reply.body.len())].concat())?;
            for byte in &reply.body {
                stream.write_all(&[*byte])?;
                stream.flush()?;
                thread::sleep(pause);
            }
        }
        Manner::EndlessBody => {
            head.extend(b"Transfer-Encoding: chunked\r\n\r\n");
            stream.write_all(&head)?;
            let block = reply.body.repeat(1 + 65536 / reply.body.len().max(1));
            loop {
                write!(stream, "{:x}\r\n", block.len())?;
                stream.write_all(&block)?;
                stream.write_all(b"\r\n")?;
            }
        }
        Manner::EndlessHeaders => {
            stream.write_all(&head)?;
            loop {
                stream.write_all(&[b"X-More: ".as_slice(), &[b'x'; 4000], b"\r\n"].concat())?;
            }
        }
        Manner::Reset => return Ok(false),
        Manner::EndlessPatience => loop {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        },
    }
    stream.flush()?;
    Ok(true)
}

const PATIENCE: Duration = Duration::from_secs(20);
