//! Real nginx, real Pebble, real sockets; one binary.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "tests"
)]

mod adopt;
mod ca;
mod certificates;
mod chaos;
mod check;
mod crash;
mod demo;
mod down;
mod drop;
mod dump;
mod editors;
mod fuzz;
mod hostile;
mod hostile_ca;
mod load;
mod names;
mod neighbours;
mod quarantine;
mod refused;
mod reload;
mod renewal;
mod rollback;
mod sandbox;
mod served;
mod silent;
mod socket;
mod state;
mod status;
mod storm;
mod support;
mod token;
mod upgrade;
