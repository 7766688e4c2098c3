//! An HTTP proxy on loopback that does CONNECT alone, and knows hosts that no DNS knows.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use super::client::head;

pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    behaviour: Behaviour,
    asked: Vec<Connect>,
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// It is connected to that address, whatever its host is called.
    Connects(SocketAddr),
    /// These bytes, and the end.
    Says(&'static str),
    /// None, while the client waits.
    Silent,
}

#[derive(Clone, Debug)]
pub struct Connect {
    /// `CONNECT HOST:PORT`
    pub line: String,
    pub login: Option<String>,
}

impl Proxy {
    pub fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Mutex::new(Shared {
            behaviour,
            asked: Vec::new(),
        }));
        let theirs = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = theirs.clone();
                // a broken connection is its two ends' affair
                thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { address, shared }
    }

    pub fn behave(&self, behaviour: Behaviour) {
        self.shared.lock().unwrap().behaviour = behaviour;
    }

    /// `http://ADDRESS`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// So far.
    pub fn asked(&self) -> Vec<Connect> {
        self.shared.lock().unwrap().asked.clone()
    }
}

fn serve(stream: TcpStream, shared: &Mutex<Shared>) -> io::Result<()> {
    // one byte at a time: what follows the head is the tunnel's
    let mut reader = BufReader::with_capacity(1, stream.try_clone()?);
    let mut line = String::new();
    while !line.ends_with("\r\n") {
        let mut byte = [0];
        reader.read_exact(&mut byte)?;
        line.push(char::from(byte[0]));
    }
    // what follows has the form of an answer's head
    let rest = "HTTP/1.1 200\r\n".as_bytes().chain(&mut reader);
    let (_, headers) = head(&mut BufReader::with_capacity(1, rest))?;
    let mut headers = headers.into_iter();
    let login = headers.find(|(name, _)| name.eq_ignore_ascii_case("Proxy-Authorization"));
    let connect = Connect {
        line: line.trim_end_matches(" HTTP/1.1\r\n").to_owned(),
        login: login.map(|(_, value)| value),
    };
    let behaviour = {
        let mut shared = shared.lock().unwrap();
        shared.asked.push(connect);
        shared.behaviour.clone()
    };
    match behaviour {
        Behaviour::Connects(to) => tunnel(stream, to),
        Behaviour::Says(text) => (&stream).write_all(text.as_bytes()),
        Behaviour::Silent => reader.read(&mut [0]).map(|_| ()),
    }
}

fn tunnel(mut near: TcpStream, to: SocketAddr) -> io::Result<()> {
    let mut far = TcpStream::connect(to)?;
    near.write_all(b"HTTP/1.1 200 Connection established\r\nVia: a proxy\r\n\r\n")?;
    let (mut near_out, mut far_in) = (near.try_clone()?, far.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut far_in, &mut near_out);
        let _ = near_out.shutdown(Shutdown::Write);
    });
    io::copy(&mut near, &mut far)?;
    far.shutdown(Shutdown::Write)
}
