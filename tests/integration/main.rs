//! Real nginx, real Pebble, real sockets; one binary.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "tests"
)]

mod certificates;
mod crash;
mod down;
mod drop;
mod dump;
mod refused;
mod served;
mod silent;
mod support;
mod token;
