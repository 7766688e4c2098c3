//! argv → tracing → cli → exit status; nothing else.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = vhostd::cli::Arguments::parse();
    arguments.start_tracing();
    vhostd::cli::run(arguments).into()
}
