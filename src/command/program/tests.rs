use std::thread;

use super::*;

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(100);

/// As dns-01's are.
fn clean(script: &str) -> Program {
    Program {
        path: "/bin/sh".into(),
        arguments: vec!["-c".into(), script.into()],
        variables: BTreeMap::from([("ASKED".into(), "yes".into())]),
        input: Vec::new(),
        inherits: Inherits::Necessities,
        heard: Heard::EndOfAll,
        background: Background::Ends,
    }
}

/// As those are that are told of changes.
fn told(script: &str) -> Program {
    Program {
        input: b"words".into(),
        inherits: Inherits::Everything,
        heard: Heard::BeginningOfErrors,
        background: Background::GoesOn,
        ..clean(script)
    }
}

fn text(ended: &Ended) -> String {
    String::from_utf8(ended.output.clone()).unwrap()
}

fn is_alive(pid: &str) -> bool {
    // gone, or nobody has waited for it yet
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn it_is_told_on_its_input_and_in_its_environment() {
    let program = told("echo out; echo \"$ASKED $(cat)\" >&2; exit 3");
    let ended = program.run(LONG, None).unwrap();
    assert_eq!(ended.status.code(), Some(3));
    assert_eq!(text(&ended), "yes words\n");
}

#[test]
fn it_has_what_it_was_given_and_of_ours_what_it_should() {
    let ended = clean("env; cat; echo err >&2; exit 3")
        .run(LONG, None)
        .unwrap();
    assert_eq!(ended.status.code(), Some(3));
    let said = text(&ended);
    assert!(said.contains("ASKED=yes\n"), "{said}");
    assert!(said.ends_with("err\n"), "{said}");
    // cargo's own are not handed on
    assert!(!said.contains("CARGO"), "{said}");
    let inheriting = Program {
        heard: Heard::EndOfAll,
        ..told("env")
    };
    let said = text(&inheriting.run(LONG, None).unwrap());
    assert!(said.contains("CARGO"), "{said}");
}

#[test]
fn what_stays_in_the_background_keeps_nobody_waiting_and_ends_where_it_should() {
    let begin = Instant::now();
    let within_reason = || {
        assert!(begin.elapsed() < Duration::from_secs(20));
        thread::sleep(Duration::from_millis(2));
    };
    let pid = text(&clean("sleep 60 & echo $!").run(LONG, None).unwrap());
    while is_alive(&pid) {
        within_reason();
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (told_to, done) = (path("go"), path("done"));
    let script = format!(
        "(until test -e {}; do sleep 0.01; done; echo > {}) &",
        told_to.display(),
        done.display()
    );
    told(&script).run(LONG, None).unwrap();
    std::fs::write(told_to, "").unwrap();
    while !done.exists() {
        within_reason();
    }
}

#[test]
fn one_that_hangs_is_killed_with_its_children_whatever_it_may_leave() {
    for program in [clean("sleep 60; echo late"), told("sleep 60 & sleep 60")] {
        let begin = Instant::now();
        let error = program.run(SHORT, None).unwrap_err();
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn one_that_is_not_needed_any_more_may_leave_things_in_order_but_not_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (ready, tidy) = (path("ready"), path("tidy"));
    let interrupted = |script: String| {
        let _ = std::fs::remove_file(&ready);
        let interrupt = Interrupt::new().unwrap();
        let begin = Instant::now();
        let error = thread::scope(|scope| {
            let program = clean(&script);
            let interrupt = &interrupt;
            let running = scope.spawn(move || program.run(LONG, Some(interrupt)));
            while !ready.exists() {
                assert!(begin.elapsed() < Duration::from_secs(20));
                thread::sleep(Duration::from_millis(2));
            }
            interrupt.raise();
            running.join().unwrap().unwrap_err()
        });
        assert!(matches!(error, CommandError::Interrupted { .. }), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(20));
    };
    let (ready, tidy) = (ready.display(), tidy.display());
    interrupted(format!(
        "trap 'exit 1' TERM; trap 'echo >{tidy}' EXIT; sh -c 'echo >{ready}; exec sleep 60'; :"
    ));
    assert!(path("tidy").exists());
    interrupted(format!("trap '' TERM; echo >{ready}; sleep 60; sleep 60"));
}

#[test]
fn one_that_never_stops_talking_is_cut_short() {
    let ended = clean("yes | head -c 1000000; echo end")
        .run(LONG, None)
        .unwrap();
    assert_eq!(ended.output.len(), KEPT);
    assert!(ended.output.ends_with(b"\nend\n"));
    let ended = told("(echo begin; yes | head -c 1000000) >&2")
        .run(LONG, None)
        .unwrap();
    assert_eq!(ended.output.len(), KEPT);
    assert!(ended.output.starts_with(b"begin\n"));
    for script in ["exec yes >&2", "trap '' TERM; yes >&2; yes >&2"] {
        let error = told(script).run(SHORT, None).unwrap_err();
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
    }
}
