//! Any bytes on the control socket are answered or cut off, and become a request only where they
//! are one.
#![no_main]

use std::cell::LazyCell;

use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use vhostd::control::{self, Call, Request};

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
            assert!(was_asked(&call.request, bytes), "{:?}", call.request);
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
    tokio::join!(
        control::converse(server, sender, |_| Ok("{}".into())),
        daemon,
        peer
    );
}

/// Whether `bytes` have all that makes the request. Of a body in chunks or with escapes, whose words
/// may stand there otherwise, only the path is known.
fn was_asked(request: &Request, bytes: &[u8]) -> bool {
    let (kind, words) = match request {
        Request::Reload { wait, names } => {
            let wait = wait.then(|| "true".to_owned());
            ("reload", names.iter().cloned().chain(wait).collect())
        }
        Request::Renew { names, force } => {
            let force = force.then(|| "true".to_owned());
            ("renew", names.iter().cloned().chain(force).collect())
        }
        Request::Rollback { generation } => (
            "rollback",
            generation.iter().map(u64::to_string).collect::<Vec<_>>(),
        ),
        Request::RollbackApps { apps, generation } => {
            let apps = apps.iter().map(ToString::to_string);
            let generation = generation.iter().map(u64::to_string);
            ("rollback_apps", apps.chain(generation).collect())
        }
    };
    let path = kind.replace('_', "-");
    let lower = bytes.to_ascii_lowercase();
    let plain = !contains(&lower, b"chunked") && !contains(bytes, b"\\");
    let key = format!("\"{kind}\"");
    contains(bytes, b"POST")
        && contains(bytes, format!("/v1/{path}").as_bytes())
        && (!plain
            || words
                .iter()
                .chain([&key])
                .all(|word| contains(bytes, word.as_bytes())))
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    word.is_empty() || bytes.windows(word.len()).any(|window| window == word)
}
