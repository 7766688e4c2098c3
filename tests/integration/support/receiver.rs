//! Whoever is told: an HTTP server on loopback that keeps what it got.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

use super::client::head;
use super::wait_for;

pub struct Receiver {
    pub address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    answer: Answer,
    requests: Vec<Request>,
}

#[derive(Clone, Debug)]
enum Answer {
    /// Whole, up to the end of the connection.
    Text(String),
    /// None, while the client waits.
    Silence,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

impl Receiver {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Mutex::new(Shared {
            answer: Answer::Text(OK.to_owned()),
            requests: Vec::new(),
        }));
        let theirs = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = theirs.clone();
                thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { address, shared }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// From now on; `{path}` stands for what was asked for.
    pub fn answer(&self, status: &str, body: &str) {
        let text = format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n{body}");
        self.shared.lock().unwrap().answer = Answer::Text(text);
    }

    pub fn take_messages_again(&self) {
        self.shared.lock().unwrap().answer = Answer::Text(OK.to_owned());
    }

    pub fn fall_silent(&self) {
        self.shared.lock().unwrap().answer = Answer::Silence;
    }

    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().unwrap().requests.clone()
    }

    /// The events of what it got as a webhook, in order.
    pub fn events(&self) -> Vec<String> {
        let requests = self.requests();
        let events = requests
            .iter()
            .map(|request| request.json()["event"].clone());
        events
            .map(|event| event.as_str().unwrap().to_owned())
            .collect()
    }

    pub fn wait_for_events(&self, expected: &[&str]) {
        wait_for(&format!("{expected:?}"), || {
            let events = self.events();
            assert!(events.len() <= expected.len(), "{events:?}");
            (events == expected).then_some(())
        });
    }
}

fn serve(stream: TcpStream, shared: &Mutex<Shared>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    // what follows has the form of an answer's head
    let rest = "HTTP/1.1 200\r\n".as_bytes().chain(&mut reader);
    let Ok((_, headers)) = head(&mut BufReader::with_capacity(1, rest)) else {
        return;
    };
    let mut request = Request {
        path,
        headers,
        body: String::new(),
    };
    let length = request.header("Content-Length");
    let length = length.and_then(|text| text.parse().ok()).unwrap_or(0);
    let _ = reader
        .by_ref()
        .take(length)
        .read_to_string(&mut request.body);
    let answer = {
        let mut shared = shared.lock().unwrap();
        shared.requests.push(request.clone());
        shared.answer.clone()
    };
    match answer {
        Answer::Text(text) => {
            let _ = (&stream).write_all(text.replace("{path}", &request.path).as_bytes());
        }
        // until the client goes away
        Answer::Silence => {
            let _ = reader.read(&mut [0]);
        }
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
