//! Real nginx, real Pebble, real sockets; one binary.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "tests"
)]

mod addresses;
mod adopt;
mod authorities;
mod ca;
mod certificates;
mod chaos;
mod check;
mod crash;
mod demo;
mod dns;
mod dns01;
mod down;
mod drop;
mod dump;
mod editors;
mod fuzz;
mod hooks;
mod hostile;
mod hostile_ca;
mod key_types;
mod links;
mod load;
mod logs;
mod names;
mod neighbours;
mod ordinary;
mod owners;
mod pem_files;
mod permissions;
mod preflight;
mod proxy;
mod quarantine;
mod refused;
mod reload;
mod renewal;
mod rollback;
mod sandbox;
mod served;
mod signing;
mod silent;
mod socket;
mod state;
mod status;
mod storm;
mod subset;
mod support;
mod token;
mod upgrade;
