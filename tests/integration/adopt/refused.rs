//! What cannot be adopted says why, nothing of it is stored, and certbot goes on.

use std::fs;
use std::path::{Path, PathBuf};

use time::Duration;

use super::{NAME, adopt, host};
use crate::support::app::App;
use crate::support::certbot::{Certbot, Lineage, link};
use crate::support::host::Host;

struct Fixture {
    host: Host,
    certbot: Certbot,
    _app: App,
}

impl Fixture {
    fn new() -> Self {
        let (host, _ca, app, certbot) = host();
        host.drop_app("hello", NAME, &app);
        host.drop_app("both", "[both.example.com, www.both.example.com]", &app);
        let inside = format!(
            "server_name: inside.example.com\nproxy_pass_url: {}\ntls: internal\n",
            app.url()
        );
        host.drop_file("inside.yml", &inside);
        Self {
            host,
            certbot,
            _app: app,
        }
    }

    /// It is refused with `words`, and then is not there any more.
    fn refuses(&self, words: &str) {
        let certbot = &self.certbot;
        let conf = certbot.conf(NAME);
        let ended = adopt(&self.host, certbot, &[NAME]);
        assert_eq!(ended.status, 1, "{words}: {ended:?}");
        assert!(ended.stderr.contains(words), "{words}: {ended:?}");
        assert!(!ended.stderr.contains("PRIVATE"), "{ended:?}");
        assert_eq!(certbot.conf(NAME), conf);
        let stored = fs::read_dir(self.host.path("state/certificates"));
        assert_eq!(stored.into_iter().flatten().count(), 0, "{words}");
        for name in ["archive", "live"] {
            let path = certbot.path(name).join(NAME);
            match path.is_symlink() {
                true => fs::remove_file(path).unwrap(),
                false => fs::remove_dir_all(path).unwrap(),
            }
        }
    }

    fn refuses_one(&self, words: &str, lineage: &Lineage<'_>) {
        self.certbot.lineage(lineage);
        self.refuses(words);
    }

    /// A good one, spoilt.
    fn refuses_spoilt(&self, words: &str, spoil: impl FnOnce()) {
        self.certbot.lineage(&Lineage::default());
        spoil();
        self.refuses(words);
    }

    fn live_key(&self) -> PathBuf {
        self.certbot.path(&format!("live/{NAME}/privkey.pem"))
    }
}

#[test]
fn a_certificate_that_is_no_use_here_is_not_adopted() {
    let fixture = Fixture::new();
    let usual = Lineage::default;
    let ends = |ends| Lineage { ends, ..usual() };
    fixture.refuses_one("it ended at", &ends(-Duration::DAY));
    fixture.refuses_one("it is not valid before", &ends(Duration::days(100)));
    let placeholder = Lineage {
        self_signed: true,
        ..usual()
    };
    fixture.refuses_one("signed by itself: a placeholder", &placeholder);
    let staging = Lineage {
        server: "https://acme-staging-v02.api.letsencrypt.org/directory",
        ..usual()
    };
    fixture.refuses_one("no browser trusts", &staging);
    for (name, words) in [
        ("else.example.com", "no vhost here wants its names"),
        (
            "both.example.com",
            "the vhost both also wants www.both.example.com",
        ),
        (
            "inside.example.com",
            "wants a certificate from vhostd's own CA",
        ),
    ] {
        let identifiers = &[name];
        let lineage = Lineage {
            identifiers,
            ..usual()
        };
        fixture.refuses_one(words, &lineage);
    }
}

#[test]
fn a_key_that_is_none_or_anothers_is_not_adopted() {
    let fixture = Fixture::new();
    fixture.refuses_spoilt("is not the key of", || {
        let old = fs::read(fixture.live_key()).unwrap();
        fixture.certbot.lineage(&Lineage::default());
        fs::write(fixture.live_key(), old).unwrap();
    });
    fixture.refuses_spoilt("failed to read a private key", || {
        fs::write(fixture.live_key(), "no key").unwrap();
    });
}

#[test]
fn no_link_leads_out_of_certbots_archive() {
    let fixture = Fixture::new();
    let certbot = &fixture.certbot;
    let archive = certbot.path("archive").join(NAME);
    // good by themselves
    let stranger = certbot.path("stranger.pem");
    let elsewhere = certbot.path("elsewhere");
    let key = || fs::canonicalize(fixture.live_key()).unwrap();
    fixture.refuses_spoilt("leads out of", || {
        fs::copy(key(), &stranger).unwrap();
        link(&stranger, &fixture.live_key());
    });
    fixture.refuses_spoilt("leads out of", || {
        let other = certbot.path("archive/other");
        fs::create_dir(&other).unwrap();
        fs::copy(key(), other.join("privkey1.pem")).unwrap();
        let target = Path::new("../../archive/other/privkey1.pem");
        link(target, &fixture.live_key());
    });
    fixture.refuses_spoilt("is not a link into certbot's archive", || {
        let text = fs::read(fixture.live_key()).unwrap();
        fs::remove_file(fixture.live_key()).unwrap();
        fs::write(fixture.live_key(), text).unwrap();
    });
    // a link behind the link
    fixture.refuses_spoilt("is not a regular file", || {
        fs::copy(key(), &stranger).unwrap();
        link(&stranger, &archive.join("privkey1.pem"));
    });
    fixture.refuses_spoilt("is not a directory of certbot's", || {
        fs::rename(&archive, &elsewhere).unwrap();
        link(&elsewhere, &archive);
    });
}

#[test]
fn a_renewal_configuration_that_says_something_else_is_left_as_it_is() {
    let fixture = Fixture::new();
    let path = fixture.certbot.path(&format!("renewal/{NAME}.conf"));
    fixture.refuses_spoilt("is neither a section nor", || {
        fs::write(&path, "words\n").unwrap();
    });
    fixture.refuses_spoilt("says that `privkey` is /etc/shadow", || {
        let text = fixture.certbot.conf(NAME);
        let mut lines = text.lines();
        let line = lines.find(|line| line.starts_with("privkey")).unwrap();
        fs::write(&path, text.replace(line, "privkey = /etc/shadow")).unwrap();
    });
    for (name, words) in [
        (
            "nobody.example.com",
            "certbot has no certificate of that name",
        ),
        ("../etc/passwd", "certbot has no certificate of that name"),
    ] {
        let ended = adopt(&fixture.host, &fixture.certbot, &[name]);
        assert_eq!(ended.status, 2, "{ended:?}");
        assert!(ended.stderr.contains(words), "{ended:?}");
    }
}
