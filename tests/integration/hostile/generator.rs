//! Hostile vhost files, the same ones in every run: built from hostile values, or made from good
//! files by damaging them.

/// Deterministic (xorshift64), so that a failure can be repeated by its number.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // neighbouring seeds must not give neighbouring numbers; never zero
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % limit as u64) as usize
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

/// The document of this number.
pub fn document(number: u64) -> String {
    let mut random = Random::new(number);
    if number.is_multiple_of(2) {
        built(&mut random)
    } else {
        damaged(&mut random)
    }
}

fn built(random: &mut Random) -> String {
    match random.below(6) {
        0 => {
            let count = 1 + random.below(3);
            let items = (0..count).map(|_| item("", &vhost(random)));
            items.collect()
        }
        1 => {
            let mut text = "nginx__vhosts:\n".to_owned();
            for _ in 0..1 + random.below(2) {
                text.push_str(&item("  ", &vhost(random)));
            }
            if random.once_in(3) {
                let name = spelled(random, NAMES);
                text.push_str(&format!("pki__realms:\n  - domains: {name}\n"));
            }
            text
        }
        _ => vhost(random).concat(),
    }
}

/// An item of a list, indented.
fn item(indent: &str, lines: &[String]) -> String {
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        let mark = if index == 0 { "- " } else { "  " };
        text.push_str(&format!("{indent}{mark}{line}"));
    }
    text
}

/// The lines of one vhost. Most of its values are good ones, so that many files are accepted.
fn vhost(random: &mut Random) -> Vec<String> {
    let mut lines = vec![format!("server_name: {}\n", value(random, NAMES))];
    if random.once_in(4) {
        lines.push(format!("redirect_from: {}\n", value(random, NAMES)));
    }
    if !random.once_in(3) {
        lines.push(format!("root: {}\n", root(random)));
    }
    if !random.once_in(3) {
        lines.push(format!("proxy_pass_url: {}\n", value(random, UPSTREAMS)));
    }
    if random.once_in(3) {
        lines.push(format!("cache_assets: {}\n", assets(random)));
    }
    if !random.once_in(4) {
        let word = match random.below(8) {
            0 => "false".to_owned(),
            1 => "no".to_owned(),
            _ => spelled(random, TLS),
        };
        lines.push(format!("tls: {word}\n"));
    }
    if random.once_in(16) {
        let (key, special) = (random.of(FOREIGN_KEYS), random.of(SPECIAL));
        lines.push(format!("{key}: {}\n", quoted(random, special)));
    }
    lines
}

fn assets(random: &mut Random) -> String {
    match random.below(8) {
        0..3 => "true".into(),
        3..5 => format!("{{paths: {}}}", value(random, PATHS)),
        5..7 => format!(
            "{{paths: {}, max_age: {}}}",
            value(random, PATHS),
            spelled(random, AGES)
        ),
        _ => spelled(random, AGES),
    }
}

/// Of all values a directory has the most freedom.
fn root(random: &mut Random) -> String {
    let mut path = "/srv".to_owned();
    for _ in 0..1 + random.below(3) {
        path.push('/');
        for _ in 0..1 + random.below(4) {
            let pool = if random.once_in(16) {
                SPECIAL
            } else {
                HARMLESS
            };
            path.push_str(random.of(pool));
        }
    }
    if random.once_in(40) {
        path.push_str(&"/long".repeat(random.below(300)));
    }
    quoted(random, &path)
}

/// One value or a list of them.
fn value(random: &mut Random, pool: &Pool) -> String {
    if !random.once_in(3) {
        return spelled(random, pool);
    }
    let count = 1 + random.below(4);
    let items: Vec<String> = (0..count).map(|_| spelled(random, pool)).collect();
    format!("[{}]", items.join(", "))
}

/// A value of the pool, damaged now and then, in one of YAML's spellings.
fn spelled(random: &mut Random, pool: &Pool) -> String {
    let bad = random.once_in(16);
    let mut text = random.of(if bad { pool.bad } else { pool.good }).to_owned();
    if text == LABEL {
        text = format!("h{}.example.com", random.below(1_000_000));
    }
    if random.once_in(24) {
        damage(random, &mut text);
    }
    quoted(random, &text)
}

fn quoted(random: &mut Random, text: &str) -> String {
    match random.below(120) {
        0 => text.to_owned(),
        1 => format!("|\n    {text}\n"),
        2 => format!(">-\n    {text}\n"),
        3 => format!("!!str {text}"),
        4 => format!("&anchor \"{text}\""),
        5 => format!("\"{text}\" # {text}"),
        6 => escaped(text),
        number if number < 60 => format!("'{}'", text.replace('\'', "''")),
        _ => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
    }
}

/// Every character as an escape: what is seen in the file is nothing of the value.
fn escaped(text: &str) -> String {
    let escapes = text.chars().map(|c| format!("\\U{:08x}", u32::from(c)));
    format!("\"{}\"", escapes.collect::<String>())
}

/// A good file with one to four injuries.
fn damaged(random: &mut Random) -> String {
    let mut text = random.of(GOOD).to_owned();
    // one in ten stays as it is
    for _ in 0..random.below(10).min(4) {
        damage(random, &mut text);
    }
    text
}

fn damage(random: &mut Random, text: &mut String) {
    let places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    let at = match places.len() {
        0 => 0,
        count => places[random.below(count)],
    };
    match random.below(8) {
        0 if !text.is_empty() => {
            text.remove(at);
        }
        1 => text.truncate(at),
        2 => {
            let again = text[at..].to_owned();
            text.push_str(&again);
        }
        3 => text.insert_str(at, &random.of(SPECIAL).repeat(1 + random.below(300))),
        4 => {
            // another line's place
            let lines: Vec<&str> = text.lines().collect();
            let moved = lines[random.below(lines.len().max(1)).min(lines.len().max(1) - 1)..]
                .first()
                .map_or(String::new(), |line| format!("{line}\n"));
            text.insert_str(at, &moved);
        }
        5 => text.insert_str(at, random.of(HARMLESS)),
        _ => text.insert_str(at, random.of(SPECIAL)),
    }
}

/// Values of one key.
struct Pool {
    good: &'static [&'static str],
    bad: &'static [&'static str],
}

/// Replaced by a name of its own.
const LABEL: &str = "LABEL";

const NAMES: &Pool = &Pool {
    good: &[
        LABEL,
        LABEL,
        LABEL,
        LABEL,
        LABEL,
        LABEL,
        LABEL,
        "*.wild.example.com",
        "bücher.example",
        "EXAMPLE.Org",
        "例え.jp",
        "192.0.2.7",
        "[2001:db8::7]",
        "xn--bcher-kva.example",
    ],
    bad: &[
        "~^.*$",
        "$hostname",
        "_",
        "",
        "*",
        "*.com",
        ".example.com",
        "www.*",
        "a.example.com;",
        "a.example.com.",
        "a_b.example.com",
        "127.1",
        "vhostd.invalid",
        "a.example.com { }",
        "a..b.example",
        "169.254.169.254",
        "localhost",
        "a.example.com:80",
        "http://a.example.com",
        "a.example.com b.example.com",
        "a\u{200b}.example.com",
        "*.*.example.com",
        "[::1%lo].x",
    ],
};

const UPSTREAMS: &Pool = &Pool {
    good: &[
        "http://127.0.0.1:8000",
        "http://127.0.0.1:8001",
        "http://[::1]:8002",
        "http://10.0.0.7:80",
        "http://localhost:3000",
        "http://unix:/run/app.sock",
        "http://127.0.0.1:8000/",
        "http://unix:/run/a+b@c-d_e.f/g.sock",
        "https://127.0.0.1:8443",
    ],
    bad: &[
        "http://127.0.0.1:8000/path",
        "http://$host:80",
        "http://169.254.169.254:80",
        "http://unix:/run/a b;c.sock",
        "http://unix:/run/../etc/x",
        "http://127.1:80",
        "http://app:80",
        "http://127.0.0.1:80 backup",
        "http://127.0.0.1:8000;}",
        "unix:/run/x;",
        "http://u:p@127.0.0.1:80",
        "unix:/run/x.sock",
        "http://127.0.0.1",
        "http://unix:/a:b",
    ],
};

const PATHS: &Pool = &Pool {
    good: &[
        "/assets/",
        "/static/",
        "/v1.0/dist/",
        "/~user/",
        "/a-b_c/",
        "/x.y.z/",
        "/.a/",
    ],
    bad: &[
        "assets", "/", "/a b/", "/$x/", "/a(b/", "/../", "/%61/", "/.*/", "/a|b/", "/é/", "/[a]/",
        "/a/;}/",
    ],
};

const AGES: &Pool = &Pool {
    good: &["30d", "1s", "8w", "365d", "90"],
    bad: &[
        "366d",
        "0",
        "-1",
        "1y",
        "30d;",
        "$x",
        "1d1h",
        "9999999999999999999w",
    ],
};

const TLS: &Pool = &Pool {
    good: &["off", "internal"],
    bad: &["{challenge: dns-01}", "of", "yes please", "on;"],
};

const FOREIGN_KEYS: &[&str] = &[
    "<<",
    "include",
    "servername",
    "locations",
    "headers",
    "\"a;b\"",
    "'}'",
    "? x",
    "&x y",
    "*x",
    "~",
    "1",
    "nginx__vhosts",
    "raw",
    "alias",
];

/// What means something to nginx, to its scripts and patterns, to YAML, to a shell or to a terminal.
pub const SPECIAL: &[&str] = &[
    ";",
    "{",
    "}",
    "\"",
    "'",
    "\\",
    "#",
    "$",
    "${",
    "$host",
    "$uri",
    "\n",
    "\r",
    "\r\n",
    "\t",
    "\0",
    "; }",
    "} server {",
    ";\n}\n",
    "\\\"",
    "\\'",
    "\"; return 200 \"x",
    "include /etc/passwd;",
    "`",
    "$(id)",
    "${IFS}",
    "~",
    "~*",
    "^~",
    "=",
    "@",
    "*",
    "?",
    "[",
    "]",
    "(",
    ")",
    "|",
    "<",
    ">",
    "%0a",
    "%00",
    "..",
    "/..",
    "//",
    "/./",
    ": ",
    " #",
    "&a ",
    "*a",
    "!!binary ",
    "!",
    "%",
    "- ",
    "---\n",
    "...\n",
    "? ",
    "<<: ",
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "\u{F0000}",
    "\u{feff}",
    "\u{202e}",
    "\u{2028}",
    "\u{85}",
    "\u{1b}[31m",
    "\u{7f}",
    "\u{0}",
    "\u{200b}",
    "é",
    "e\u{301}",
    "\u{ffff}",
    "\u{10ffff}",
    "𝕏",
    "ſ",
    "İ",
    "unix:",
    "syslog:server=",
    "data:",
    "engine:",
    "off",
];

const HARMLESS: &[&str] = &[
    "a", "b1", "x y", "-", "_", ".z", "ü", "例", "%20", "+", "@", "~", "(1)", "&", "=", ",", "!",
    "*", "?", "[a]", "|", "<b>", ":", "^", "default", "off", "unix:", "server", "𝕏",
];

const GOOD: &[&str] = &[
    "server_name: \"hello.example.com\"\nroot: \"/srv/hello/public\"\n\
     proxy_pass_url: \"http://127.0.0.1:8000\"\ncache_assets: true\ntls: off\n",
    "server_name: [shop.example.com, www.shop.example.com]\nredirect_from: old.example.com\n\
     proxy_pass_url:\n  - http://127.0.0.1:8001\n  - http://127.0.0.1:8002\ntls: internal\n",
    "- server_name: a.example.com\n  root: /srv/a\n  tls: off\n\
     - server_name: \"*.b.example.com\"\n  proxy_pass_url: http://unix:/run/b.sock\n  tls: off\n",
    "nginx__vhosts:\n  - server_name: \"c.example.com\"\n    root: \"/srv/c\"\n    tls: internal\n\
     pki__realms:\n  - domains: [\"c.example.com\"]\n",
    "# a comment\nserver_name: d.example.com\nroot: '/srv/ein Platz/ü'\n\
     cache_assets: {paths: [/build/, /v1.0/], max_age: 30d}\ntls: off\n",
];
