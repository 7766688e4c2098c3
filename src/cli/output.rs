//! W: lines for people on standard error or output; colour only where a terminal wants it.

use std::fmt;
use std::io::{IsTerminal, Write};

use anstyle::{AnsiColor, Style};

use super::Exit;
use super::diagnostic::render;
use crate::diagnostic::Diagnostic;
use crate::reconcile::report::{Rejected, Step};

const RED: Style = AnsiColor::Red.on_default().bold();
const GREEN: Style = AnsiColor::Green.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
const CYAN: Style = AnsiColor::Cyan.on_default().bold();
const FAINT: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();

/// As `println!`, but the stream takes the colours out where nobody wants them, and a reader that went away (`vhostd reload | head -1`) or a full disk must not
/// end a reload between two steps.
macro_rules! out {
    ($($argument:tt)*) => {{
        let _ = writeln!(anstream::stdout(), $($argument)*);
    }};
}

macro_rules! err {
    ($($argument:tt)*) => {{
        let _ = writeln!(anstream::stderr(), $($argument)*);
    }};
}

pub(super) fn success(text: &str) {
    out!("{GREEN}success:{GREEN:#} {text}");
}

pub(super) fn error(text: &str) {
    err!("{RED}error:{RED:#} {text}");
}

/// What failed, and the exit status of that.
pub(super) fn failed(error: &dyn fmt::Display) -> Exit {
    self::error(&format!("failed to {error}"));
    Exit::Failed
}

pub(super) fn warning(text: &str) {
    err!("{YELLOW}warning:{YELLOW:#} {text}");
}

pub(super) fn hint(text: Option<&str>) {
    if let Some(text) = text {
        err!("{CYAN}hint:{CYAN:#} {text}");
    }
}

pub(super) fn line(text: &str) {
    out!("{text}");
}

/// Why a command did nothing, and the next step; with `json`, for programs too.
pub(super) fn failure(error: &str, hint: Option<&str>, json: bool) {
    self::error(error);
    self::hint(hint);
    if json {
        self::json(&serde_json::json!({"error": error, "hint": hint}));
    }
}

/// Beside data, which is on standard output.
pub(super) fn note(text: &str) {
    err!("{text}");
}

/// Data as it is.
pub(super) fn data(text: &str) {
    let _ = write!(anstream::stdout(), "{text}");
}

pub(super) fn faint(text: &str) -> String {
    format!("{FAINT}{text}{FAINT:#}")
}

pub(super) fn strong(text: &str) -> String {
    format!("{BOLD}{text}{BOLD:#}")
}

pub(super) fn good(text: &str) -> String {
    format!("{GREEN}{text}{GREEN:#}")
}

pub(super) fn bad(text: &str) -> String {
    format!("{RED}{text}{RED:#}")
}

pub(super) fn doubtful(text: &str) -> String {
    format!("{YELLOW}{text}{YELLOW:#}")
}

/// One step, as it ends.
pub(super) fn step(step: &Step) {
    let name = step.step.to_string();
    let time = format!("{:.1} ms", step.ms);
    out!("  {name:<9} {:<58} {FAINT}{time:>10}{FAINT:#}", step.detail);
}

/// A file's error with the line that it is about.
pub(super) fn diagnostic(diagnostic: &Diagnostic, text: Option<&str>) {
    err!("{}\n", render(diagnostic, text, true).trim_end());
}

/// As [`diagnostic`], for what came from another process.
pub(super) fn rejected(rejected: &Rejected, text: Option<&str>) {
    diagnostic(&diagnosed(rejected), text);
}

/// As [`rejected`], among other lines of standard output.
pub(super) fn picture(rejected: &Rejected, text: Option<&str>) {
    out!("{}", render(&diagnosed(rejected), text, true).trim_end());
}

fn diagnosed(rejected: &Rejected) -> Diagnostic {
    let mut shown = Diagnostic::new(&rejected.file, rejected.reason.clone());
    shown.hint.clone_from(&rejected.hint);
    shown.nginx = rejected.nginx.clone().map(Box::new);
    if let (Some(line), Some(column)) = (rejected.line, rejected.column) {
        shown.at = Some(crate::diagnostic::Position {
            line,
            column,
            offset: rejected.offset.unwrap_or_default(),
            length: rejected.length.unwrap_or_default(),
        });
    }
    shown
}

/// Data for a program, on standard output.
pub(super) fn json(value: &impl serde::Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => out!("{text}"),
        Err(problem) => error(&format!("failed to write JSON: {problem}")),
    }
}

pub(super) fn is_colourful(stream: &impl IsTerminal) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !refused
}
