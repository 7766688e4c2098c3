//! Runs a command under ptrace(2), and shows the test each system call by which it changes
//! something, of all its threads and of its children until they become another program, in one
//! numbering. The test decides what becomes of each call.
//!
//! strace counts per name and per thread, kills only before a call, and says nothing where it
//! injected nothing; here what was not met is known.

mod call; // which system calls there are, and what they are about

use std::io::{Read, Write};
use std::process::{ChildStderr, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

pub use call::{Call, Effect};

/// What becomes of a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    Pass,
    /// SIGKILL for the command; the call does not happen.
    KillBefore,
    /// The call happens, and nothing after it.
    KillAfter,
    /// The call does not happen, and returns this.
    Fail(Errno),
}

/// A command that has ended.
#[derive(Debug)]
pub struct Traced {
    /// `None`: killed.
    pub exit: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    /// All that was shown, in order.
    pub calls: Vec<Call>,
    /// How many calls were not let pass.
    pub fired: usize,
    /// Calls that change something and began before another such call had ended: none, where the
    /// state before a call is the state after the one before it.
    pub overlaps: Vec<Call>,
}

/// Runs `command` to its end.
pub fn trace(command: &Command, judge: impl FnMut(&Call) -> Fate + Send) -> Traced {
    // of its own: it waits for whatever child this thread has
    thread::scope(|scope| {
        let tracer = scope.spawn(|| follow(command, judge, |_| ()));
        tracer.join().unwrap()
    })
}

/// A command that runs on; killed when dropped.
pub struct Running {
    pub pid: u32,
    thread: Option<JoinHandle<Traced>>,
}

/// Starts `command`.
pub fn start(command: Command, judge: impl FnMut(&Call) -> Fate + Send + 'static) -> Running {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::spawn(move || {
        follow(&command, judge, |pid| {
            let _ = sender.send(pid);
        })
    });
    let pid = receiver.recv().unwrap();
    Running {
        pid: pid.as_raw().unsigned_abs(),
        thread: Some(thread),
    }
}

impl Running {
    /// Sends `signal`, and waits for the end.
    pub fn end(mut self, signal: Signal) -> Traced {
        kill(Pid::from_raw(self.pid.cast_signed()), signal).unwrap();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // a child that its tracer has not waited for
            if !thread.is_finished() {
                let _ = kill(Pid::from_raw(self.pid.cast_signed()), Signal::SIGKILL);
            }
            let _ = thread.join();
        }
    }
}

/// What was decided at the entry of a call that its thread has not yet left.
enum Inside {
    Pass,
    Kill,
    Fail(Errno, Box<Registers>),
}

type Registers = libc::user_regs_struct;

fn follow(
    command: &Command,
    mut judge: impl FnMut(&Call) -> Fate,
    started: impl FnOnce(Pid),
) -> Traced {
    let (main, mut stdin, output) = spawn(command);
    ptrace::seize(main, options()).unwrap();
    started(main);
    stdin.write_all(b"\n").unwrap();
    drop(stdin);
    let output = thread::spawn(move || read_both(output));
    let mut traced = Traced {
        exit: None,
        stdout: String::new(),
        stderr: String::new(),
        calls: Vec::new(),
        fired: 0,
        overlaps: Vec::new(),
    };
    let mut inside: Vec<(Pid, Inside)> = Vec::new();
    loop {
        let any = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        let status = match waitpid(None, Some(any)) {
            Ok(status) => status,
            Err(Errno::EINTR) => continue,
            Err(Errno::ECHILD) => break,
            Err(error) => panic!("{error}"),
        };
        match status {
            WaitStatus::Exited(pid, exit) if pid == main => traced.exit = Some(exit),
            // another program from here on: none of ours
            WaitStatus::PtraceEvent(pid, _, libc::PTRACE_EVENT_EXEC) if pid != main => {
                let _ = ptrace::detach(pid, None);
            }
            WaitStatus::PtraceSyscall(pid) => {
                match ptrace::syscall_info(pid).map(|info| info.op) {
                    Ok(libc::PTRACE_SYSCALL_INFO_ENTRY) => {
                        enter(main, pid, &mut traced, &mut inside, &mut judge);
                    }
                    Ok(libc::PTRACE_SYSCALL_INFO_EXIT) => leave(main, pid, &mut inside),
                    _ => {}
                }
                go_on(pid, None);
            }
            WaitStatus::PtraceEvent(pid, ..) => go_on(pid, None),
            WaitStatus::Stopped(pid, signal) => go_on(pid, Some(signal)),
            _ => {}
        }
    }
    (traced.stdout, traced.stderr) = output.join().unwrap();
    traced
}

fn enter(
    main: Pid,
    pid: Pid,
    traced: &mut Traced,
    inside: &mut Vec<(Pid, Inside)>,
    judge: &mut impl FnMut(&Call) -> Fate,
) {
    // it may have been killed meanwhile
    let Ok(registers) = ptrace::getregs(pid) else {
        return;
    };
    let Some(call) = call::read(pid, &registers) else {
        return;
    };
    let fate = judge(&call);
    let changes = call.effect.changes() || call.effect == Effect::Durability;
    if changes && !inside.is_empty() {
        traced.overlaps.push(call.clone());
    }
    traced.calls.push(call);
    traced.fired += usize::from(fate != Fate::Pass);
    match fate {
        Fate::Pass if changes => inside.push((pid, Inside::Pass)),
        Fate::Pass => {}
        Fate::KillBefore => {
            let _ = kill(main, Signal::SIGKILL);
        }
        Fate::KillAfter => inside.push((pid, Inside::Kill)),
        Fate::Fail(errno) => {
            let no_call = Registers {
                orig_rax: u64::MAX,
                ..registers
            };
            let _ = ptrace::setregs(pid, no_call);
            inside.push((pid, Inside::Fail(errno, Box::new(registers))));
        }
    }
}

fn leave(main: Pid, pid: Pid, inside: &mut Vec<(Pid, Inside)>) {
    let Some(index) = inside.iter().position(|(thread, _)| *thread == pid) else {
        return;
    };
    match inside.swap_remove(index).1 {
        Inside::Pass => {}
        Inside::Kill => {
            let _ = kill(main, Signal::SIGKILL);
        }
        Inside::Fail(errno, registers) => {
            let failed = Registers {
                rax: i64::from(-(errno as i32)).cast_unsigned(),
                ..*registers
            };
            let _ = ptrace::setregs(pid, failed);
        }
    }
}

fn go_on(pid: Pid, signal: Option<Signal>) {
    // ESRCH: it was killed, and its end is reported next
    let _ = ptrace::syscall(pid, signal);
}

/// A shell that waits for a line, then becomes `command`.
#[expect(
    clippy::zombie_processes,
    reason = "the tracer waits for whatever child its thread has"
)]
fn spawn(command: &Command) -> (Pid, impl Write + use<>, (ChildStdout, ChildStderr)) {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "read _; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(key, value),
            None => shell.env_remove(key),
        };
    }
    let mut child = shell.spawn().unwrap();
    let output = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let main = Pid::from_raw(child.id().cast_signed());
    (main, child.stdin.take().unwrap(), output)
}

fn options() -> Options {
    Options::PTRACE_O_EXITKILL
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEVFORK
}

fn read_both((mut stdout, mut stderr): (ChildStdout, ChildStderr)) -> (String, String) {
    let other = thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stderr.read_to_end(&mut bytes);
        bytes
    });
    let mut bytes = Vec::new();
    let _ = stdout.read_to_end(&mut bytes);
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(bytes), text(other.join().unwrap()))
}

/// Whether this host lets a process be traced; some containers do not.
pub fn is_possible() -> bool {
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let traced = ptrace::seize(Pid::from_raw(child.id().cast_signed()), Options::empty());
    let _ = child.kill();
    let _ = child.wait();
    if let Err(error) = &traced {
        eprintln!("SKIPPED: no process can be traced here: {error}");
    }
    traced.is_ok()
}
