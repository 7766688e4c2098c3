//! The latencies that a user feels, what the daemon costs in memory and a day's look at its
//! certificates, and what nginx spends on requests, each beside its floor in one run.
//!
//! `cargo bench` (or `make bench`). Ratios are what counts: the machine's speed cancels out.
//! The floors are nginx's own `-t` and SIGHUP on the same bytes, and a minimal ACME client that
//! does nothing but the requests that a certificate costs; for requests, hand-tuned server blocks.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::unwrap_used,
    dead_code,
    reason = "a benchmark, on the tests' support code"
)]

#[path = "../tests/integration"]
mod integration {
    pub mod support;
}

#[path = "latency/acme.rs"]
mod acme;
#[path = "latency/change.rs"]
mod change;
#[path = "latency/daily.rs"]
mod daily;
#[path = "latency/drop.rs"]
mod drop;
#[path = "latency/many.rs"]
mod many;
#[path = "latency/memory.rs"]
mod memory;
#[path = "latency/served.rs"]
mod served;

use std::time::Duration;

use integration::support;

/// Of `ours` and its floor, over the same number of runs.
struct Figure {
    what: String,
    ours: Vec<Duration>,
    floor: Vec<Duration>,
    /// At most `factor` × the floor and `slack` more.
    factor: f64,
    slack: Duration,
}

fn main() {
    // Nothing is removed before the end: an ext4 without a journal looks past every file that was
    // removed in the last minutes wherever it makes one, so each run would be slower than the last.
    let place = tempfile::tempdir().unwrap();
    tempfile::env::override_temp_dir(place.path()).unwrap();
    // `cargo bench NAME` runs what matches; `--bench` is what cargo adds
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let chosen =
        |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str()));
    println!(
        "{:<52} {:>9} {:>9} {:>7}  limit",
        "", "ours", "floor", "ratio"
    );
    if chosen("drop") {
        drop::run().print();
    }
    for files in [20, 100] {
        if chosen("many") {
            many::run(files).print();
        }
    }
    if chosen("daily") {
        daily::run(1000);
    }
    for vhosts in [1, 100] {
        if chosen("change") {
            change::run(vhosts).print();
        }
    }
    for (name, run) in [
        ("static", served::static_file as fn() -> _),
        ("proxied", served::proxied),
    ] {
        if chosen(name) {
            let (figure, plain): (Figure, Vec<Duration>) = run();
            figure.print();
            let (usual, spread) = (milliseconds(median(&plain)), spread(&plain));
            println!("{:<52} {usual:>6.1} ms with plain blocks, {spread}", "");
        }
    }
    if chosen("memory") {
        memory::run(100);
    }
}

impl Figure {
    fn print(&self) {
        let (ours, floor) = (median(&self.ours), median(&self.floor));
        let limit = floor.mul_f64(self.factor) + self.slack;
        let slack = match self.slack.as_millis() {
            0 => String::new(),
            ms => format!(" + {ms} ms"),
        };
        println!(
            "{:<52} {:>6.1} ms {:>6.1} ms {:>6.2}×  {} × floor{slack}: {}",
            self.what,
            milliseconds(ours),
            milliseconds(floor),
            ours.as_secs_f64() / floor.as_secs_f64(),
            self.factor,
            if ours <= limit { "held" } else { "MISSED" },
        );
        println!(
            "{:<52} {} | {}",
            "",
            spread(&self.ours),
            spread(&self.floor)
        );
    }
}

fn median(samples: &[Duration]) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

fn spread(samples: &[Duration]) -> String {
    let (least, most) = (samples.iter().min().unwrap(), samples.iter().max().unwrap());
    format!(
        "{:.1} … {:.1} ms, {} runs",
        milliseconds(*least),
        milliseconds(*most),
        samples.len()
    )
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
