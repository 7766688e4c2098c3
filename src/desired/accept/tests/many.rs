//! Many small worlds against the quadratic form, and what a large one costs.

use super::oracle;
use super::*;
use crate::desired::NamePattern;
use crate::desired::accept::index::LOOKS;
use crate::diagnostic::Located;

/// xorshift64: the same worlds in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

const NAMES: &[&str] = &[
    "a.example",
    "b.example",
    "c.example",
    "d.example",
    "e.example",
    "f.example",
    "g.example",
    "h.example",
    "i.example",
    "x.a.example",
    "y.x.a.example",
    "z.y.x.a.example",
    "*.a.example",
    "*.x.a.example",
    "*.y.x.a.example",
    "*.b.example",
    "co.uk",
    "*.github.io",
    "byhand.example",
    "new.wild.example",
    "www.brand.example",
    "192.0.2.1",
    "192.0.2.2",
    "192.0.2.3",
    "192.0.2.4",
    "[2001:db8::7]",
    "[2001:db8::8]",
];

const APPS: &[&str] = &["a", "b", "c", "d", "e", "f", "g"];

struct Worlds {
    random: Random,
    template: App,
    names: Vec<ServerName>,
}

impl Worlds {
    fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            template: app("t", &["t.example"]),
            names: NAMES.iter().map(|name| name.parse().unwrap()).collect(),
        }
    }

    /// `pool`: how many of the names are asked for, so that some worlds are crowded.
    fn app(&mut self, name: &str, pool: &[usize]) -> App {
        let mut left = pool.to_vec();
        let mut line = 1;
        let mut some = |random: &mut Random, count: usize, left: &mut Vec<usize>| {
            let mut names = Vec::new();
            for _ in 0..count.min(left.len()) {
                line += 1;
                let at = Position {
                    line,
                    ..self.template.vhosts[0].at
                };
                let value = self.names[left.remove(random.below(left.len()))].clone();
                names.push(Located { value, at });
            }
            names
        };
        let mut vhosts = Vec::new();
        for _ in 0..=self.random.below(2) {
            let mut vhost = self.template.vhosts[0].clone();
            let (names, redirects) = (1 + self.random.below(3), self.random.below(2));
            vhost.server_names = some(&mut self.random, names, &mut left);
            vhost.redirect_from = some(&mut self.random, redirects, &mut left);
            if self.random.chance(20) {
                vhost.tls.mode = Some(TlsMode::Off);
            }
            vhosts.push(vhost);
        }
        vhosts.retain(|vhost| !vhost.server_names.is_empty());
        App {
            name: name.parse().unwrap(),
            file: format!("/etc/vhostd/vhosts.d/{name}.yml").into(),
            vhosts,
            ..self.template.clone()
        }
    }

    fn world(&mut self) -> (Vec<Candidate>, Given) {
        let mut pool: Vec<usize> = (0..NAMES.len()).collect();
        let size = 3 + self.random.below(NAMES.len() - 2);
        while pool.len() > size {
            pool.remove(self.random.below(pool.len()));
        }
        let count = 1 + self.random.below(APPS.len());
        let mut candidates = Vec::new();
        let mut silent = BTreeMap::new();
        for name in &APPS[..count] {
            if self.random.chance(15) {
                silent.insert(name.parse().unwrap(), format!("{name}.yml").into());
                continue;
            }
            let fallback = self.random.chance(60).then(|| self.app(name, &pool));
            let age = Duration::from_secs(self.random.below(3) as u64);
            candidates.push(Candidate {
                app: self.app(name, &pool),
                modified: OffsetDateTime::UNIX_EPOCH + age,
                fallback,
            });
        }
        let mut owners = BTreeMap::new();
        for name in &self.names {
            if self.random.chance(50) {
                owners.insert(name.clone(), self.random.one(APPS).parse().unwrap());
            }
        }
        let place = |name: &str| (name.parse().unwrap(), "/etc/nginx/x:3".into());
        let pattern = NamePattern::parse("www.brand.*", "/etc/nginx/x:4");
        let given = Given {
            owners: owners.into(),
            hand_written: ["byhand.example", "*.wild.example"].map(place).into(),
            patterns: pattern.into_iter().map(Result::unwrap).collect(),
            silent,
            held: BTreeSet::new(),
            entrances: self.entrances(),
        };
        (candidates, given)
    }

    fn entrances(&mut self) -> Option<Entrances> {
        let sockets: &[&str] = match self.random.below(5) {
            0 => return None,
            1 => &["0.0.0.0:443", "[::]:443"],
            2 => &["192.0.2.1:443", "0.0.0.0:443", "[::]:443"],
            // behind a translation of addresses clients may arrive at either
            3 => &["10.0.0.1:443", "10.0.0.2:443", "[::]:443"],
            _ => &["192.0.2.1:443", "192.0.2.2:443"],
        };
        let ours = sockets.iter().map(|socket| Entrance {
            socket: socket.parse().unwrap(),
            default_server: match self.random.chance(10) {
                true => DefaultServerOf::Nobody,
                false => DefaultServerOf::Us,
            },
        });
        let ours = ours.collect();
        let kept = self.random.chance(20).then(|| "192.0.2.4".parse().unwrap());
        Some(Entrances {
            ours,
            taken: Vec::new(),
            tls: TlsMode::Internal.into(),
            kept: kept.into_iter().collect(),
        })
    }
}

#[test]
fn every_decision_is_the_one_of_a_comparison_of_everything_with_everything() {
    let mut worlds = Worlds::new(0x9e37_79b9_7f4a_7c15);
    let (mut rejected, mut stale, mut accepted) = (0, 0, 0);
    for _ in 0..1_500 {
        let (candidates, given) = worlds.world();
        let expected = oracle::accept(candidates.clone(), &given);
        let found = accept(candidates.clone(), &given);
        assert_eq!(found, expected, "{candidates:#?} {given:#?}");
        accepted += found.apps.len();
        rejected += found.rejections.len();
        stale += found.rejections.iter().filter(|it| it.stale).count();
    }
    // the worlds are neither all peace nor all war
    let least = [accepted, rejected, stale].into_iter().min();
    assert!(least > Some(200), "{accepted} {rejected} {stale}");
}

/// Claims that were added, removed or compared.
fn looks(candidates: Vec<Candidate>, given: &Given) -> usize {
    LOOKS.with(|looks| looks.set(0));
    accept(candidates, given);
    LOOKS.with(std::cell::Cell::get)
}

/// Candidates and what is given, of a size.
type Shape = fn(usize) -> (Vec<Candidate>, Given);

fn named(count: usize, name: impl Fn(usize) -> String) -> Vec<String> {
    (0..count).map(name).collect()
}

/// The larger `nth`, the later the file.
fn app_of(app: &str, nth: usize, names: &[String]) -> Candidate {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    candidate(app, &names, 900_000 - nth as u64)
}

/// `size` files of 20 names, and no conflict.
fn peace(size: usize) -> (Vec<Candidate>, Given) {
    let file = |f: usize| {
        app_of(
            &format!("f{f}"),
            f,
            &named(20, |n| format!("h{n}.f{f}.b.cc")),
        )
    };
    ((0..size).map(file).collect(), Given::default())
}

/// As many files again, which ask for one name that another has.
fn losers(size: usize) -> (Vec<Candidate>, Given) {
    let (mut candidates, given) = peace(size);
    let late = |f: usize| app_of(&format!("l{f}"), size + f, &["h1.f1.b.cc".into()]);
    candidates.extend((0..size).map(late));
    (candidates, given)
}

/// As many files again, which ask for a wildcard above all names.
fn wildcard_losers(size: usize) -> (Vec<Candidate>, Given) {
    let (mut candidates, given) = peace(size);
    let late = |f: usize| app_of(&format!("l{f}"), size + f, &["*.b.cc".into()]);
    candidates.extend((0..size).map(late));
    (candidates, given)
}

/// All ask for the same names.
fn crowd(size: usize) -> (Vec<Candidate>, Given) {
    let names = named(20, |n| format!("h{n}.b.cc"));
    let all = (0..size).map(|f| app_of(&format!("f{f}"), f, &names));
    (all.collect(), Given::default())
}

/// Each falls back to what the next one asks for, so that one round costs one app its newest version.
fn falling(size: usize) -> (Vec<Candidate>, Given) {
    let last_good = |f: usize| named(20, |n| format!("h{n}.f{f}.b.cc"));
    let mut owned = Vec::new();
    let mut one = |f: usize| {
        let wanted = match f {
            0 => "co.uk".into(),
            f => format!("h1.f{}.b.cc", f - 1),
        };
        let name = format!("f{f}");
        let mut it = app_of(&name, f, &[format!("new.f{f}.b.cc"), wanted]);
        let names = last_good(f);
        it = with_fallback(it, &names.iter().map(String::as_str).collect::<Vec<_>>());
        owned.extend(it.fallback.clone());
        it
    };
    let candidates = (0..size).map(&mut one).collect();
    let owners = Owners::of(&owned);
    (
        candidates,
        Given {
            owners,
            ..Given::default()
        },
    )
}

/// Each gets its newest version once the next one has, which gives a name up for it.
fn rising(size: usize) -> (Vec<Candidate>, Given) {
    let kept = |f: usize| format!("kept.f{f}.b.cc");
    let mut owned = Vec::new();
    let mut one = |f: usize| {
        let name = format!("f{f}");
        owned.push(app(&name, &[&kept(f)]));
        app_of(&name, f + 1, &[format!("new.f{f}.b.cc"), kept(f + 1)])
    };
    let mut candidates: Vec<_> = (0..size).map(&mut one).collect();
    // the oldest takes a name of each, and may not have another
    let mut names = named(size, |f| format!("new.f{f}.b.cc"));
    names.push("co.uk".into());
    candidates.push(app_of("first", 0, &names));
    let owners = Owners::of(&owned);
    (
        candidates,
        Given {
            owners,
            ..Given::default()
        },
    )
}

/// Addresses that share a socket.
fn addresses(size: usize) -> (Vec<Candidate>, Given) {
    let names = |f: usize| named(20, |n| format!("10.{n}.{}.{}", f / 200, f % 200 + 1));
    let all = (0..size).map(|f| app_of(&format!("f{f}"), f, &names(f)));
    (all.collect(), with_entrances(Owners::default()))
}

#[test]
fn the_cost_grows_with_the_claims_and_not_with_the_claims_of_all_times_the_rejected_apps() {
    let shapes: [(&str, Shape, usize); 7] = [
        ("peace", peace, 0),
        ("losers", losers, 40),
        ("wildcard losers", wildcard_losers, 40),
        ("crowd", crowd, 39),
        ("falling", falling, 40),
        ("rising", rising, 1),
        ("addresses", addresses, 39),
    ];
    for (what, shape, rejected) in shapes {
        let (candidates, given) = shape(40);
        assert_eq!(
            accept(candidates.clone(), &given).rejections.len(),
            rejected,
            "{what}"
        );
        let (small, (candidates, given)) = (looks(candidates, &given), shape(160));
        let large = looks(candidates, &given);
        assert!(
            large < small * 5,
            "{what}: {small}, of four times the size {large}"
        );
    }
    let of = |shape: Shape| {
        let (candidates, given) = shape(40);
        looks(candidates, &given)
    };
    for shape in [losers as Shape, wildcard_losers] {
        assert!(of(shape) < 3 * of(peace), "{} {}", of(shape), of(peace));
    }
}

#[test]
fn of_many_names_below_a_wildcard_some_are_told() {
    let (candidates, given) = wildcard_losers(3);
    let rejection = &accept(candidates, &given).rejections[0];
    let reasons: Vec<_> = rejection
        .diagnostics
        .iter()
        .map(|it| it.reason.as_str())
        .collect();
    assert_eq!(reasons.len(), SHOWN + 1);
    assert!(reasons[0].starts_with("`*.b.cc` is above `h0.f0.b.cc`, which belongs to f0"));
    assert_eq!(reasons[SHOWN], "`*.b.cc` conflicts with further names");
}
