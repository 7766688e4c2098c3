use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::*;
use crate::control::client::{self, ControlError};

const RELOAD: Request = Request::Reload {
    wait: false,
    names: Vec::new(),
};

#[tokio::test(flavor = "current_thread")]
async fn of_daemons_that_start_at_once_on_what_an_earlier_one_left_one_listens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vhostd.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let bind = || ControlSocket::bind(&path);
    let (a, b, c) = tokio::join!(bind(), bind(), bind());
    let bound = [&a, &b, &c].iter().filter(|it| it.is_ok()).count();
    assert_eq!(bound, 1, "{a:?} {b:?} {c:?}");
    assert!(UnixStream::connect(&path).await.is_ok());
    drop((a, b, c));
    assert!(bind().await.is_ok());
}

fn failure(message: String) -> Line {
    Line::Error(Failure {
        message,
        hint: None,
        exit: 1,
    })
}

/// The tests' own user is the daemon's.
fn known() -> Known {
    Known {
        facts: Facts {
            daemon_uid: nix::unistd::geteuid().as_raw(),
            ..Facts::default()
        },
        ..Known::default()
    }
}

/// A peer whose answer is too long for the socket, so that it is never seen to end.
async fn unread() -> (UnixStream, tokio::task::JoinHandle<()>, Call) {
    let (mut client, server) = UnixStream::pair().unwrap();
    let (sender, mut calls) = mpsc::unbounded_channel();
    let conversation = tokio::spawn(converse(server, sender, |_| Ok(String::new())));
    let body = serde_json::to_string(&RELOAD).unwrap();
    let length = body.len();
    let head = format!("POST /v1/reload HTTP/1.1\r\nhost: v\r\ncontent-length: {length}");
    let asked = format!("{head}\r\n\r\n{body}");
    client.write_all(asked.as_bytes()).await.unwrap();
    let call = calls.recv().await.unwrap();
    call.answer.send(failure("x".repeat(8 << 20)));
    (client, conversation, call)
}

#[tokio::test(flavor = "current_thread")]
async fn who_does_not_read_a_complete_answer_is_cut_off_and_work_takes_its_time() {
    let (_worked_for, long, _call) = unread().await;
    let (mut client, conversation, call) = unread().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    drop(call);
    let begin = Instant::now();
    let ended = timeout(Duration::from_secs(30), conversation).await;
    ended.expect("it is cut off").unwrap();
    assert!(begin.elapsed() > Duration::from_secs(9));
    assert!(!long.is_finished());
    let mut read = Vec::new();
    let _ = client.read_to_end(&mut read).await;
    assert!(read.starts_with(b"HTTP/1.1 200 OK") && read.len() < 8 << 20);
}

#[tokio::test(flavor = "current_thread")]
async fn who_finds_all_places_taken_waits_for_one_and_is_told_after_a_while() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (sender, mut calls) = mpsc::unbounded_channel();
    let desk = Arc::new(Desk::new(sender, |_| Ok(String::new()), known));
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            arrived.send(()).unwrap();
            let peer = Peer::of(&stream);
            tokio::spawn(serve(stream, peer, Arc::clone(&desk)));
        }
    });
    let ask = || {
        let path = path.clone();
        tokio::spawn(async move {
            let stream = client::connect(&path).await?.unwrap();
            let mut last = None;
            client::ask(stream, &path, &RELOAD, |line| last = Some(line)).await?;
            Ok::<_, ControlError>(last.unwrap())
        })
    };
    let mut held = Vec::new();
    for _ in 0..128 {
        drop(ask());
        held.push(calls.recv().await.unwrap());
        arrivals.recv().await.unwrap();
    }
    let late = ask();
    for _ in 0..3 {
        let again = timeout(Duration::from_secs(30), arrivals.recv()).await;
        again.expect("it comes again").unwrap();
    }
    held.pop().unwrap().answer.send(failure("be first".into()));
    let call = timeout(Duration::from_secs(60), calls.recv()).await;
    let call = call.expect("it has got the place").unwrap();
    call.answer.send(failure("be late".into()));
    drop(call);
    assert_eq!(late.await.unwrap().unwrap(), failure("be late".into()));
    held.push({
        drop(ask());
        calls.recv().await.unwrap()
    });
    let told = timeout(Duration::from_secs(60), ask()).await;
    let told = format!("{:?}", told.expect("an answer").unwrap().unwrap());
    assert!(told.contains("too many others"), "{told}");
}

/// What a peer gets for a request at `path`.
async fn answered(peer: Peer, known: Known, path: &str, body: &str) -> String {
    let (mut client, server) = UnixStream::pair().unwrap();
    let (sender, mut calls) = mpsc::unbounded_channel::<Call>();
    let known = std::sync::Mutex::new(Some(known));
    let known = move || known.lock().unwrap().clone().unwrap_or_default();
    let desk = Arc::new(Desk::new(sender, |_| Ok("{}".into()), known));
    tokio::spawn(serve(server, peer, desk));
    tokio::spawn(async move {
        while let Some(call) = calls.recv().await {
            let by = format!("be asked by {:?}", call.by);
            call.answer.fail(by, None, 1);
        }
    });
    let length = body.len();
    let request = match body {
        "" => format!("GET {path} HTTP/1.1\r\nhost: v\r\n\r\n"),
        _ => format!("POST {path} HTTP/1.1\r\nhost: v\r\ncontent-length: {length}\r\n\r\n{body}"),
    };
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "current_thread")]
async fn who_may_not_gets_403_with_the_reason_and_who_may_is_known_to_the_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let me = nix::unistd::geteuid().as_raw();
    let known = || Known {
        facts: Facts {
            daemon_uid: u32::MAX,
            socket_group: Some(100),
            ..Facts::default()
        },
        vhosts_dir: directory.path().to_path_buf(),
    };
    let text = b"server_name: a.example\n";
    atomic_file::write(&directory.path().join("a.yml"), text, 0o644).unwrap();
    let member = |uid| Peer {
        uid: Some(uid),
        groups: [100].into(),
    };
    let rollback = r#"{"rollback_apps": {"apps": ["a"], "generation": null}}"#;
    for (peer, path, body, status, words) in [
        (
            member(7),
            "/v1/rollback-apps",
            rollback,
            403,
            "sudo vhostd rollback a",
        ),
        (
            member(7),
            "/v1/rollback",
            r#"{"rollback": {"generation": 1}}"#,
            403,
            "only root may",
        ),
        (member(7), "/v1/status", "", 200, "{}"),
        (member(7), "/v1/reload", r#"{"reload": {}}"#, 200, "User(7)"),
        (
            Peer::default(),
            "/v1/status",
            "",
            403,
            "for root and the group vhostd",
        ),
        (
            Peer::default(),
            "/v1/nothing",
            "",
            403,
            "for root and the group vhostd",
        ),
        (member(0), "/v1/rollback-apps", rollback, 200, "Admin"),
    ] {
        let answer = answered(peer.clone(), known(), path, body).await;
        let head = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&head), "{peer:?} {path}: {answer}");
        assert!(answer.contains(words), "{peer:?} {path}: {answer}");
    }
    // the owner of the file
    if me != 0 {
        let answer = answered(member(me), known(), "/v1/rollback-apps", rollback).await;
        assert!(answer.contains(&format!("User({me})")), "{answer}");
    }
}
