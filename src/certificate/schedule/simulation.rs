//! Four hundred days of renewals in a moment: a CA that fails and is away, a clock that jumps, a
//! process that is started again.

use super::tests::{signed_leaf, terms, wanted};
use super::*;
use crate::certificate::attempts::RetryAdvice;
use crate::certificate::renewal_info::{NoWindow, Reply, Window};
use crate::certificate::subset::IdentifierFailure;
use crate::certificate::{CLOCK_SKEW, Origin};
use crate::settings::KeyType;

const DAYS: i64 = 400;
const NAMES: usize = 10;
/// The daemon looks at least so often: its clock may jump.
const LOOK_AGAIN: Duration = Duration::HOUR;

/// What the CA is like.
#[derive(Clone, Copy)]
struct Ca {
    lifetime: Duration,
    /// Whether it says when to renew.
    suggests: bool,
    /// Whether nobody reaches it from the 150th day to the 160th.
    outage: bool,
    /// Whether control of the second name of each certificate cannot be proven, from the 100th day to
    /// the 260th.
    dead: bool,
}

/// The truth, what vhostd believes, and what it has.
struct World {
    ca: Ca,
    now: OffsetDateTime,
    /// How far vhostd's clock is ahead, and until when.
    ahead: Duration,
    until: OffsetDateTime,
    lots: Lots,
    leaf: Vec<u8>,
    wanted: Vec<WantedCertificate>,
    inventory: CertificateInventory,
    memories: BTreeMap<CertificateName, Memory>,
    seen: Seen,
}

#[derive(Debug, Default)]
struct Seen {
    issued: usize,
    failed: usize,
    /// Not sent, for the clock.
    withheld: usize,
    /// Of the second names, when each failed.
    refused: BTreeMap<Identifier, Vec<OffsetDateTime>>,
    /// Certificates without the second name.
    incomplete: usize,
    asked: usize,
    jumps: usize,
    restarts: usize,
    /// The least that was left of a served certificate's life.
    least: Option<Duration>,
}

/// Knuth's MMIX generator: the same lots in every run.
struct Lots(u64);

impl Lots {
    fn draw(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / 2_f64.powi(53)
    }

    fn happens(&mut self, probability: f64) -> bool {
        self.draw() < probability
    }
}

fn start() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

impl World {
    fn new(ca: Ca, seed: u64) -> Self {
        Self {
            ca,
            now: start(),
            ahead: Duration::ZERO,
            until: start(),
            lots: Lots(seed),
            leaf: signed_leaf(),
            wanted: (0..NAMES)
                .map(|n| {
                    let mut wanted = wanted(&format!("n{n}.example"));
                    let second = Identifier::Dns(format!("www.n{n}.example"));
                    wanted.identifiers.extend(ca.dead.then_some(second));
                    wanted
                })
                .collect(),
            inventory: CertificateInventory::default(),
            memories: BTreeMap::new(),
            seen: Seen::default(),
        }
    }

    fn run(ca: Ca, seed: u64) -> Seen {
        let mut world = Self::new(ca, seed);
        world.run_until(start() + Duration::days(DAYS));
        world.seen
    }

    fn run_until(&mut self, end: OffsetDateTime) {
        while self.now < end {
            self.fate();
            let (clock, wanted) = (self.clock(), self.wanted());
            let schedule = self.due(&wanted, clock);
            for inquiry in &schedule.inquiries {
                self.ask(inquiry);
            }
            for request in &schedule.due {
                self.order(request);
            }
            self.check();
            let next = self.due(&wanted, clock).next;
            let wait = next.map_or(LOOK_AGAIN, |next| next - clock);
            // sleeping does not depend on what the clock shows
            self.now += wait.clamp(Duration::SECOND, LOOK_AGAIN);
        }
    }

    fn due(&self, wanted: &[WantedCertificate], clock: OffsetDateTime) -> Schedule {
        due(wanted, &self.inventory, &self.memories, &terms(), clock)
    }

    /// One after the other within the first lifetime, so that whenever something happens some
    /// certificate is in each part of its life.
    fn wanted(&self) -> Vec<WantedCertificate> {
        let pause: Duration = self.ca.lifetime / NAMES as i32;
        let passed = (self.now - start()).whole_seconds() / pause.whole_seconds();
        let count = (passed as usize + 1).min(NAMES);
        self.wanted[..count].to_vec()
    }

    fn clock(&self) -> OffsetDateTime {
        self.now + self.ahead
    }

    /// About every twenty days the clock is a year off for up to two days; about once a day the
    /// process is started again, and knows what it has written.
    fn fate(&mut self) {
        if self.now >= self.until {
            self.ahead = Duration::ZERO;
            if self.lots.happens(1.0 / (20.0 * 24.0)) {
                self.seen.jumps += 1;
                let year = Duration::days(365);
                self.ahead = if self.lots.happens(0.5) { year } else { -year };
                self.until = self.now + Duration::days(2) * self.lots.draw();
            }
        }
        if self.lots.happens(1.0 / 24.0) {
            self.seen.restarts += 1;
            for memory in self.memories.values_mut() {
                let written = serde_json::to_string(&memory.attempts).unwrap();
                memory.attempts = serde_json::from_str(&written).unwrap();
                let written = serde_json::to_string(&memory.renewal_info).unwrap();
                memory.renewal_info = serde_json::from_str(&written).unwrap();
            }
        }
    }

    /// By our clock the CA's own certificate is not valid: nothing is sent.
    fn is_skewed(&self) -> bool {
        self.ahead.abs() > CLOCK_SKEW
    }

    /// Three of ten requests fail, and in an outage all.
    fn answers(&mut self) -> bool {
        let day = (self.now - start()).whole_days();
        let away = self.ca.outage && (150..160).contains(&day);
        !away && !self.is_skewed() && !self.lots.happens(0.3)
    }

    /// As Let's Encrypt does it: two thirds of the life, or half of a short one, give or take a
    /// hundredth; asked about again after six hours, give or take a fifth.
    fn ask(&mut self, inquiry: &Inquiry) {
        self.seen.asked += 1;
        let answers = self.answers();
        let stored = &self.inventory.certificates[&inquiry.name];
        let validity = stored.validity;
        let point = validity.not_before
            + match validity.lifetime() < Duration::days(10) {
                true => validity.lifetime() / 2,
                false => validity.lifetime() * 2 / 3,
            };
        let width = validity.lifetime() / 100;
        let window = Window {
            start: point - width,
            end: point + width,
            explanation_url: None,
        };
        let pause = 6.0 * 3600.0 * (0.8 + 0.4 * self.lots.draw());
        let reply = Reply {
            window: match (answers, self.ca.suggests) {
                (false, _) => Err(NoWindow::Failed),
                (true, false) => Err(NoWindow::Unsupported),
                (true, true) => Ok(window),
            },
            retry_after: answers.then(|| std::time::Duration::from_secs_f64(pause)),
        };
        let (clock, chance) = (self.clock(), self.lots.draw());
        let memory = self.memories.entry(inquiry.name.clone()).or_default();
        let known = memory.renewal_info.as_ref();
        memory.renewal_info = Some(RenewalInfo::after(known, inquiry, &reply, clock, chance));
    }

    fn order(&mut self, request: &CertificateRequest) {
        if request.by_age && self.is_too_early(request) {
            return;
        }
        let answers = self.answers();
        let dead = self.dead(request);
        if answers && dead.is_empty() {
            return self.issue(request);
        }
        match self.is_skewed() {
            true => self.seen.withheld += 1,
            false => self.seen.failed += 1,
        }
        let (clock, chance) = (self.clock(), self.lots.draw());
        let memory = self.memories.entry(request.name.clone()).or_default();
        let failed = Attempts::after_failure(
            memory.attempts.as_ref(),
            request,
            "no".into(),
            RetryAdvice::Retry,
            clock,
            chance,
        );
        let failures = dead
            .iter()
            .filter(|_| answers)
            .map(|one| IdentifierFailure {
                identifier: one.clone(),
                why: "got 404".into(),
                refused: false,
            });
        memory.attempts = Some(failed.naming(&failures.collect::<Vec<_>>()));
        for identifier in dead.into_iter().filter(|_| answers) {
            let refused = self.seen.refused.entry(identifier).or_default();
            refused.push(self.now);
        }
        // the others at once, as `obtain` does it
        let wanted = request.to_wanted();
        let mut due = self.due(std::slice::from_ref(&wanted), clock).due;
        due.retain(|others| others.identifiers.len() < request.identifiers.len());
        due.iter().for_each(|others| self.order(others));
    }

    /// What cannot be proven of an order.
    fn dead(&self, request: &CertificateRequest) -> Vec<Identifier> {
        let day = (self.now - start()).whole_days();
        let second = request.wanted.get(1);
        let second = second.filter(|it| request.identifiers.contains(it));
        let dead = second.filter(|_| self.ca.dead && (100..260).contains(&day));
        dead.cloned().into_iter().collect()
    }

    fn is_too_early(&mut self, request: &CertificateRequest) -> bool {
        let stored = self.inventory.certificates[&request.name].clone();
        let inquiry = Inquiry::about(&stored, &terms().directory).unwrap();
        self.ask(&inquiry);
        let memory = &self.memories[&request.name];
        self.clock() < renew_at(stored.validity, memory.suggestion(&stored.serial))
    }

    fn issue(&mut self, request: &CertificateRequest) {
        self.seen.issued += 1;
        let from = self.now - Duration::HOUR;
        let stored = StoredCertificate {
            uid: None,
            name: request.name.clone(),
            serial: format!("{:x}", self.seen.issued),
            issuer: request.issuer,
            identifiers: request.identifiers.clone(),
            validity: Validity {
                not_before: from,
                not_after: from + self.ca.lifetime,
            },
            origin: Some(Origin {
                directory: terms().directory,
                profile: None,
            }),
            adopted: false,
            key_type: Some(KeyType::EcdsaP256),
            chain: "/c".into(),
            key: "/k".into(),
            leaf: self.leaf.clone(),
        };
        let memory = self.memories.entry(request.name.clone()).or_default();
        let omitted = request.omitted();
        let known = memory.attempts.take();
        let known = known.filter(|_| !omitted.is_empty());
        self.seen.incomplete += usize::from(!omitted.is_empty());
        memory.attempts = known.map(|known| Attempts::after_subset(&known, &omitted));
        self.inventory
            .certificates
            .insert(request.name.clone(), stored);
    }

    /// What was served once is valid, whatever our own clock shows.
    fn check(&mut self) {
        for stored in self.inventory.certificates.values() {
            let left = stored.validity.not_after - self.now;
            assert!(left.is_positive(), "{} lapsed on {}", stored.name, self.now);
            self.seen.least = Some(self.seen.least.map_or(left, |least| least.min(left)));
        }
    }
}

/// With six seeds: nothing lapses, and as much is ordered as the lifetime asks for.
fn assert_never_lapses(days: f64, outage: bool) {
    let lifetime = Duration::seconds_f64(days * 86400.0);
    for (suggests, seed) in (0..6).map(|seed| (seed % 2 == 0, seed)) {
        let ca = Ca {
            lifetime,
            suggests,
            outage,
            dead: false,
        };
        let seen = World::run(ca, seed);
        eprintln!("{days} days, seed {seed}: {seen:?}");
        let part = if days < 10.0 { 0.5 } else { 2.0 / 3.0 };
        // what is renewed on time; late ones, after an outage, are fewer
        let most = DAYS as f64 / (days * part * 0.98) + 1.0;
        let least = DAYS as f64 / (days * (part + 0.25)) - 2.0;
        let each = seen.issued as f64 / NAMES as f64;
        assert!((least..=most).contains(&each), "{days}: {each}: {seen:?}");
        // three of ten fail, and the more the longer nobody answers
        let outages = if outage { 14.0 * NAMES as f64 } else { 0.0 };
        let failures = seen.issued as f64 * 0.43 * 1.5 + outages;
        assert!(seen.failed as f64 <= failures, "{days}: {seen:?}");
        assert!(seen.jumps > 5 && seen.restarts > 200, "{seen:?}");
        let a_day = seen.asked as f64 / (NAMES as f64 * DAYS as f64);
        assert!((0.8..8.0).contains(&a_day), "{days}: {a_day}: {seen:?}");
    }
}

/// For 160 days control of every second name cannot be proven: the first names never lapse, the
/// second are tried about once a day and never more than five times in an hour, and all come back.
fn assert_others_never_lapse(days: i64) {
    for (suggests, seed) in [(true, 0), (false, 1)] {
        let ca = Ca {
            lifetime: Duration::days(days),
            suggests,
            outage: false,
            dead: true,
        };
        let mut world = World::new(ca, seed);
        // of a CA that fails three of ten times it is asked once a day
        let back = start() + Duration::days(275);
        world.run_until(back);
        eprintln!(
            "{days} days, seed {seed}: {} incomplete",
            world.seen.incomplete
        );
        let complete = world.inventory.certificates.values();
        assert!(
            complete.into_iter().all(|it| it.identifiers.len() == 2),
            "{days}: {seed}"
        );
        // each at least once in 160 days
        assert!(world.seen.incomplete >= NAMES, "{days}: {seed}");
        let most = 160.0 * if days < 10 { 4.0 } else { 1.2 } + 10.0;
        for (name, refused) in &world.seen.refused {
            assert!((refused.len() as f64) < most, "{name}: {}", refused.len());
            let hour = refused
                .windows(6)
                .all(|six| six[5] - six[0] > Duration::HOUR);
            assert!(hour, "{name}");
        }
        world.run_until(start() + Duration::days(DAYS));
        let incomplete = world.inventory.certificates.values();
        assert!(incomplete.into_iter().all(|it| it.identifiers.len() == 2));
    }
}

#[test]
fn in_400_days_a_dead_name_lets_no_other_lapse_and_comes_back_with_90_days() {
    assert_others_never_lapse(90);
}

#[test]
fn in_400_days_a_dead_name_lets_no_other_lapse_and_comes_back_with_6_days() {
    assert_others_never_lapse(6);
}

#[test]
fn in_400_days_no_certificate_of_90_days_lapses() {
    assert_never_lapses(90.0, true);
}

#[test]
fn in_400_days_no_certificate_of_64_days_lapses() {
    assert_never_lapses(64.0, true);
}

#[test]
fn in_400_days_no_certificate_of_45_days_lapses() {
    assert_never_lapses(45.0, true);
}

/// Let's Encrypt's `shortlived` profile: 160 hours.
#[test]
fn in_400_days_no_certificate_of_6_days_lapses() {
    assert_never_lapses(160.0 / 24.0, false);
}
