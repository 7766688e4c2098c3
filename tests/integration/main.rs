//! Real nginx, real Pebble, real sockets; one binary.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "tests"
)]

mod certificates;
mod demo;
mod drop;
mod dump;
mod served;
mod support;
mod token;
