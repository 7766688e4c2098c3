//! Any bytes on the control socket are answered or cut off, and become a request only where they
//! are one.
#![no_main]

use std::cell::LazyCell;

use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use vhostd::control::{self, Call};

fuzz_target!(|bytes: &[u8]| {
    RUNTIME.with(|runtime| runtime.block_on(conversation(bytes)));
});

thread_local! {
    static RUNTIME: LazyCell<Runtime> = LazyCell::new(|| {
        Builder::new_current_thread().enable_all().build().expect("a runtime")
    });
}

async fn conversation(bytes: &[u8]) {
    let (client, server) = UnixStream::pair().expect("two sockets");
    let (sender, mut calls) = mpsc::unbounded_channel::<Call>();
    let (mut answers, mut requests) = client.into_split();
    let daemon = async {
        // nothing is done about a request: it is answered that it cannot be
        while let Some(call) = calls.recv().await {
            let json = serde_json(&call);
            assert!(json.starts_with('{'), "{json}");
            assert!(contains(bytes, b"POST"), "{json}");
            call.answer.fail("do it", None, 1);
        }
    };
    let peer = async {
        // it may be cut off before it has said everything
        let _ = requests.write_all(bytes).await;
        drop(requests);
        let mut answer = Vec::new();
        let _ = answers.read_to_end(&mut answer).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."));
        assert!(answer.len() <= 64 * 1024 + 1024 * bytes.len());
    };
    tokio::join!(control::converse(server, sender, |_| Ok("{}".into())), daemon, peer);
}

fn serde_json(call: &Call) -> String {
    format!("{{{:?}}}", call.request)
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}
