//! An app of one worker: it serves one connection at a time, and each request as a test says.

use std::io::{self, BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// A request as it arrived; names of headers in lower case.
pub struct Received {
    pub path: String,
    pub headers: Vec<(String, String)>,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// Answers until the process ends.
pub struct Scripted {
    pub address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl Scripted {
    /// `answer` writes the answer; after `Ok(false)` the connection ends.
    pub fn start(
        answer: impl Fn(&Received, &mut TcpStream) -> io::Result<bool> + Send + 'static,
    ) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), answer)
    }

    /// The same on a port that was free.
    pub fn at(
        address: SocketAddr,
        answer: impl Fn(&Received, &mut TcpStream) -> io::Result<bool> + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = serve(stream, &answer, &counter);
            }
        });
        Self { address, requests }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn serve(
    mut stream: TcpStream,
    answer: &impl Fn(&Received, &mut TcpStream) -> io::Result<bool>,
    counter: &AtomicUsize,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = request(&mut reader)? {
        counter.fetch_add(1, Ordering::SeqCst);
        if !answer(&request, &mut stream)? {
            break;
        }
    }
    Ok(())
}

/// With its body, which is thrown away.
fn request(reader: &mut impl BufRead) -> io::Result<Option<Received>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut words = first.split_whitespace().map(str::to_owned);
    let mut request = Received {
        path: words.nth(1).unwrap_or_default(),
        headers: Vec::new(),
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => {
                request
                    .headers
                    .push((name.to_lowercase(), value.to_owned()));
            }
            None => break,
        }
    }
    let length = request.header("content-length");
    let length = length.and_then(|text| text.parse().ok()).unwrap_or(0);
    io::copy(&mut reader.take(length), &mut io::sink())?;
    Ok(Some(request))
}
