//! A port that lets nobody through until it is opened, or not at once.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// Forwards connections to an address; while it is shut, they wait.
pub struct Gate {
    pub port: u16,
    open: Arc<AtomicBool>,
    waiting: Arc<AtomicUsize>,
}

impl Gate {
    pub fn shut(to: SocketAddr) -> Self {
        Self::new(to, Duration::ZERO, false)
    }

    /// Open, and whoever comes waits so long.
    pub fn slow(to: SocketAddr, delay: Duration) -> Self {
        Self::new(to, delay, true)
    }

    fn new(to: SocketAddr, delay: Duration, is_open: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let open = Arc::new(AtomicBool::new(is_open));
        let waiting = Arc::new(AtomicUsize::new(0));
        let gate = Self {
            port,
            open: open.clone(),
            waiting: waiting.clone(),
        };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (open, waiting) = (open.clone(), waiting.clone());
                thread::spawn(move || {
                    waiting.fetch_add(1, Ordering::SeqCst);
                    thread::sleep(delay);
                    while !open.load(Ordering::SeqCst) {
                        thread::sleep(Duration::from_millis(2));
                    }
                    // a broken connection is its two ends' affair
                    let _ = forward(stream, to);
                });
            }
        });
        gate
    }

    pub fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }

    /// How many connections came so far.
    pub fn visitors(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }
}

fn forward(mut near: TcpStream, to: SocketAddr) -> io::Result<()> {
    let mut far = TcpStream::connect(to)?;
    let (mut near_out, mut far_in) = (near.try_clone()?, far.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut far_in, &mut near_out);
        let _ = near_out.shutdown(std::net::Shutdown::Write);
    });
    io::copy(&mut near, &mut far)?;
    far.shutdown(std::net::Shutdown::Write)
}
