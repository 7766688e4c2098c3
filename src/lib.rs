//! vhostd: a dropped vhost file is served by nginx over HTTPS, tested, reloaded and proven.
//!
//! The stages, in the order in which data flows:
//! vhost file → spec → desired state → rendered generation → `nginx -t` → activated → reloaded →
//! verified, or rolled back. Certificates: wanted → due → ordered → stored → the same path.
//! Each room has one colour (P pure, R reads, W writes, X runs a process, N network);
//! `docs/architecture.md` lists them with the invariants.
#![forbid(unsafe_code)]

// what every room speaks
pub mod atomic_file; // W every write passes here
pub mod command; // X one child process, with an argv and a timeout
pub mod diagnostic; // P what is wrong, where, and what to do
pub mod dns; // N what DNS says of a name
pub mod settings; // R vhostd's own settings, once
pub mod yaml; // P text → nodes with positions; the only user of the YAML parser

// a vhost file → a parsed spec
pub mod vhost; // P VhostSpec and its newtypes

pub mod policy; // R what a vhost file may name, by its owner and the settings

// specs → what nginx should serve
pub mod desired; // P all specs resolved against each other and the certificates
pub mod render; // P DesiredState → RenderedConfig

// certificates: inventory → due → ACME order → stored → reconcile
pub mod certificate; // P identifiers, certificates, inventory
pub mod obtain; // N what is due → ordered in parallel, for the daemon and the commands

// rendered → staged → nginx -T → activated → reloaded → verified, or rolled back
pub mod generation; // W stage, activate, roll back, prune; owns `current` and the lock
pub mod nginx; // X test, reload, ask: the only room that runs or signals nginx
pub mod reconcile; // orchestrates the steps → Report

// around the flow
pub mod adoption; // W a certbot lineage → a certificate of ours
pub mod chance; // R the only one that draws lots
pub mod cli; // the commands; hints, colours and exit statuses exist only here
pub mod clock; // R the only reader of the wall clock
pub mod control; // N the socket that commands talk to
pub mod daemon; // one loop, one closed enum of events
pub mod demo; // X a complete private instance in a temporary directory, and the proof of it
pub mod installation; // W what every command works on, opened once, and repaired
pub mod notice; // P what an operator is told; below it, how that is remembered and sent
pub mod overview; // R what `status` and `history` show
pub mod preparation; // W `setup` and its undoing
pub mod served; // N whether nginx still shows the certificates that it should
pub mod status; // W what the last reconcile found, per vhost
pub mod systemd; // W READY, RELOADING, STATUS, WATCHDOG
pub mod trust_store; // W the roots of our CA in the system's own trust store
pub mod watch; // R inotify; an event is only a hint to read again
