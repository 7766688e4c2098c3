//! Which points of a long walk are met: all of them, or a sample that differs from seed to seed.
//!
//! `VHOSTD_TEST_WALK=all` (`make test-exhaustive`): all. Otherwise about a quarter, and always those that
//! the test calls vital. `VHOSTD_TEST_SEED` is a number; without it, the clock's.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// One walk's choice.
pub struct Walk {
    name: String,
    seed: Option<u64>,
}

/// One point of this many is met.
const SHARE: u64 = 4;

impl Walk {
    /// Says which seed it has: a failure is seen again with that.
    pub fn new(name: &str) -> Self {
        let seed = seed();
        match seed {
            Some(seed) => eprintln!("{name}: a sample, VHOSTD_TEST_SEED={seed}"),
            None => eprintln!("{name}: every point"),
        }
        Self {
            name: name.to_owned(),
            seed,
        }
    }

    pub fn is_whole(&self) -> bool {
        self.seed.is_none()
    }

    /// Whether `point` is met. The same seed says the same, whatever was asked before.
    pub fn meets(&self, point: impl Hash) -> bool {
        self.seed.is_none_or(|seed| {
            let mut hasher = DefaultHasher::new();
            (seed, &self.name, point).hash(&mut hasher);
            hasher.finish().is_multiple_of(SHARE)
        })
    }
}

/// `None`: nothing is left out.
fn seed() -> Option<u64> {
    static SEED: OnceLock<Option<u64>> = OnceLock::new();
    *SEED.get_or_init(|| {
        if std::env::var_os("VHOSTD_TEST_WALK").is_some_and(|walk| walk == "all") {
            return None;
        }
        let given = std::env::var("VHOSTD_TEST_SEED").ok();
        let given = given.map(|text| text.parse().expect("VHOSTD_TEST_SEED is a number"));
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        given.or(Some(since.as_secs()))
    })
}

#[test]
fn a_sample_is_a_quarter_that_the_seed_alone_decides() {
    let walk = |name: &str, seed| Walk {
        name: name.to_owned(),
        seed,
    };
    let met = |walk: &Walk| -> Vec<u32> { (0..1000).filter(|it| walk.meets(it)).collect() };
    let sample = met(&walk("reload", Some(7)));
    assert!((180..320).contains(&sample.len()), "{}", sample.len());
    assert_eq!(met(&walk("reload", Some(7))), sample);
    for other in [walk("reload", Some(8)), walk("setup", Some(7))] {
        assert_ne!(met(&other), sample);
    }
    assert_eq!(met(&walk("reload", None)).len(), 1000);
}
