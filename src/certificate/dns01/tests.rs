use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::certificate::{Identifier, Issuer, WantedCertificate};
use crate::dns::{Addresses, Authority, Caa, Looking, Lookup, NoAnswer, Published};

/// One zone with two servers, of which the second one lags.
#[derive(Default)]
struct World {
    /// NAME VALUE, as the provider has it.
    zone: Mutex<Vec<String>>,
    log: Mutex<Vec<String>>,
    /// Looks until the second server has what the first one has.
    lag: AtomicUsize,
    /// Whose names lag; empty: all.
    lagging: Mutex<String>,
    /// The names that were asked about.
    asked: Mutex<Vec<String>>,
    presents: AtomicUsize,
    /// From which present on it fails; 0: none does.
    fail_present: AtomicUsize,
    fail_cleanup: AtomicUsize,
}

#[derive(Clone, Default)]
struct Fake(Arc<World>);

impl Fake {
    fn values(&self, name: &str) -> Lookup<Vec<String>> {
        let zone = self.0.zone.lock().unwrap();
        let values = zone
            .iter()
            .filter_map(|it| it.strip_prefix(&format!("{name} ")));
        let values: Vec<_> = values.map(str::to_owned).collect();
        match values.is_empty() {
            true => Err(NoAnswer::NoSuchName),
            false => Ok(values),
        }
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.log.lock().unwrap())
    }

    fn note(&self, text: String) {
        self.0.log.lock().unwrap().push(text);
    }
}

impl DnsProvider for Fake {
    fn present<'a>(&'a self, record: &'a Record) -> Changing<'a> {
        Box::pin(async move {
            let nth = self.0.presents.fetch_add(1, Ordering::Relaxed) + 1;
            let fails = self.0.fail_present.load(Ordering::Relaxed);
            self.note(format!("present {}", record.value));
            let line = format!("{} {}", record.target, record.value);
            self.0.zone.lock().unwrap().push(line);
            match fails != 0 && nth >= fails {
                true => Err(ProviderError::Other("no quota".into())),
                false => Ok(()),
            }
        })
    }

    fn clean_up<'a>(&'a self, record: &'a Record) -> Changing<'a> {
        Box::pin(async move {
            if self.0.fail_cleanup.load(Ordering::Relaxed) > 0 {
                self.0.fail_cleanup.fetch_sub(1, Ordering::Relaxed);
                return Err(ProviderError::Other("no network".into()));
            }
            self.note(format!("cleanup {}", record.value));
            let line = format!("{} {}", record.target, record.value);
            self.0.zone.lock().unwrap().retain(|it| *it != line);
            Ok(())
        })
    }
}

impl Dns for Fake {
    fn addresses<'a>(&'a self, _: &'a str) -> Looking<'a, Addresses> {
        let (v4, v6) = (Err(NoAnswer::NoData), Err(NoAnswer::NoData));
        Box::pin(async { Addresses { v4, v6 } })
    }

    fn caa<'a>(&'a self, _: &'a str) -> Looking<'a, Lookup<Vec<Caa>>> {
        Box::pin(async { Err(NoAnswer::NoData) })
    }

    fn txt<'a>(&'a self, name: &'a str) -> Looking<'a, Lookup<Published>> {
        Box::pin(async move {
            if name.contains("nowhere") {
                return Err(NoAnswer::NoSuchName);
            }
            self.0.asked.lock().unwrap().push(name.to_owned());
            let lags = name.ends_with(&*self.0.lagging.lock().unwrap());
            let target = name.replace("_acme-challenge.delegated", "delegated.acme");
            let now = self.values(&target);
            let late = match &now {
                Ok(_) if lags && self.0.lag.load(Ordering::Relaxed) > 0 => {
                    self.0.lag.fetch_sub(1, Ordering::Relaxed);
                    Err(NoAnswer::NoData)
                }
                now => now.clone(),
            };
            let server = |name: &str, last, values| Authority {
                name: name.into(),
                address: Some((Ipv4Addr::new(192, 0, 2, last), 53).into()),
                values,
            };
            Ok(Published {
                target,
                zone: "example".into(),
                servers: vec![server("one", 1, now), server("two", 2, late)],
            })
        })
    }
}

struct Fixture {
    _directory: tempfile::TempDir,
    ledger: Ledger,
    fake: Fake,
    dns01: Dns01,
}

fn fixture() -> Fixture {
    fixture_within(Duration::from_secs(60))
}

fn fixture_within(propagation: Duration) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(directory.path());
    let fake = Fake::default();
    let provider = Provider {
        means: Box::new(fake.clone()),
        timeout: Duration::from_secs(1),
        propagation,
    };
    let providers = BTreeMap::from([("p".to_owned(), provider)]);
    let dns01 = Dns01::with(providers, Arc::new(fake.clone()), &ledger);
    Fixture {
        _directory: directory,
        ledger,
        fake,
        dns01,
    }
}

fn request(provider: &str) -> CertificateRequest {
    let names = vec![Identifier::Dns("a.example".into())];
    let wanted = WantedCertificate::new(names, Issuer::Acme).unwrap();
    CertificateRequest {
        challenge: Challenge::Dns01(provider.into()),
        ..CertificateRequest::new(&wanted, None, None)
    }
}

impl Fixture {
    fn session(&self, provider: &str) -> Session {
        let request = request(provider);
        let lock = self.ledger.try_lock(&request.name).unwrap().unwrap();
        self.dns01.session(&request, &lock).unwrap().unwrap()
    }

    fn left(&self) -> usize {
        self.ledger.presented(&request("p").name).unwrap().len()
    }
}

fn texts(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let pairs = pairs.iter();
    pairs
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[tokio::test]
async fn texts_side_by_side_are_seen_at_every_server_before_anybody_is_told() {
    let fixture = fixture();
    let others = "_acme-challenge.a.example other's".to_owned();
    fixture.fake.0.zone.lock().unwrap().push(others.clone());
    fixture.fake.0.lag.store(5, Ordering::Relaxed);
    let session = fixture.session("p");
    let both = texts(&[("a.example", "one"), ("*.a.example", "two")]);
    session.publish(&both).await.unwrap();
    assert_eq!(fixture.fake.0.lag.load(Ordering::Relaxed), 0);
    assert_eq!(fixture.fake.log(), ["present one", "present two"]);
    assert_eq!(fixture.left(), 2);
    session.clean_up().await;
    assert_eq!(fixture.fake.log(), ["cleanup one", "cleanup two"]);
    assert_eq!(fixture.left(), 0);
    assert_eq!(*fixture.fake.0.zone.lock().unwrap(), [others]);
}

#[tokio::test]
async fn only_names_that_lack_a_text_are_asked_about_again() {
    let fixture = fixture();
    fixture.fake.0.lag.store(3, Ordering::Relaxed);
    *fixture.fake.0.lagging.lock().unwrap() = "b.example".into();
    let session = fixture.session("p");
    let both = texts(&[("a.example", "one"), ("b.example", "two")]);
    session.publish(&both).await.unwrap();
    let asked = fixture.fake.0.asked.lock().unwrap().clone();
    let times = |name: &str| asked.iter().filter(|it| it.ends_with(name)).count();
    // each once before for where its text has to be
    assert_eq!((times("a.example"), times("b.example")), (2, 5));
}

#[tokio::test]
async fn who_lags_too_long_is_named_with_what_it_lacks() {
    let fixture = fixture_within(Duration::from_secs(1));
    fixture.fake.0.lag.store(usize::MAX, Ordering::Relaxed);
    let session = fixture.session("p");
    let error = session.publish(&texts(&[("a.example", "one")])).await;
    assert_eq!(
        error.unwrap_err().to_string(),
        "publish the texts for dns-01 within 1 s: two (192.0.2.2:53) does not show one at _acme-challenge.a.example"
    );
}

#[tokio::test]
async fn a_text_is_put_where_the_names_cname_leads() {
    let fixture = fixture();
    let session = fixture.session("p");
    let text = texts(&[("delegated.example", "one")]);
    session.publish(&text).await.unwrap();
    let zone = fixture.fake.0.zone.lock().unwrap().clone();
    assert_eq!(zone, ["delegated.acme.example one"]);
    let error = session.publish(&texts(&[("nowhere.example", "one")])).await;
    assert_eq!(
        error.unwrap_err().to_string(),
        "find the zone of _acme-challenge.nowhere.example: there is no such name"
    );
}

#[tokio::test]
async fn what_failed_half_way_is_taken_out_whole() {
    let fixture = fixture();
    fixture.fake.0.fail_present.store(2, Ordering::Relaxed);
    let session = fixture.session("p");
    let both = texts(&[("a.example", "one"), ("b.example", "two")]);
    let error = session.publish(&both).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "publish a text for dns-01 through p: no quota"
    );
    session.clean_up().await;
    assert!(fixture.fake.0.zone.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_cannot_be_taken_out_is_tried_again_by_whoever_comes_next() {
    let fixture = fixture();
    let session = fixture.session("p");
    session
        .publish(&texts(&[("a.example", "one")]))
        .await
        .unwrap();
    fixture.fake.0.fail_cleanup.store(2, Ordering::Relaxed);
    session.clean_up().await;
    let left = fixture.ledger.presented(&request("p").name).unwrap();
    assert_eq!(left[0].error.as_deref(), Some("no network"));
    // somebody has the lock
    assert!(fixture.dns01.clean_up_leftovers().await.unwrap());
    drop(session);
    assert!(fixture.dns01.clean_up_leftovers().await.unwrap());
    assert!(!fixture.dns01.clean_up_leftovers().await.unwrap());
    assert_eq!(fixture.left(), 0);
    assert!(fixture.fake.0.zone.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_a_provider_that_is_gone_has_left_is_remembered_until_dns_shows_it_no_more() {
    let fixture = fixture();
    let session = fixture.session("p");
    session
        .publish(&texts(&[("a.example", "one")]))
        .await
        .unwrap();
    drop(session);
    let dns = Arc::new(fixture.fake.clone());
    let without = Dns01::with(BTreeMap::new(), dns, &fixture.ledger);
    assert!(without.clean_up_leftovers().await.unwrap());
    let left = fixture.ledger.presented(&request("p").name).unwrap();
    assert_eq!(
        left[0].error.as_deref(),
        Some("ask the DNS provider p for it: the settings have none of that name any more")
    );
    // by hand
    fixture.fake.0.zone.lock().unwrap().clear();
    assert!(!without.clean_up_leftovers().await.unwrap());
    assert_eq!(fixture.left(), 0);
}

#[tokio::test]
async fn a_provider_that_is_not_there_is_missed_before_anybody_is_asked_for_anything() {
    let fixture = fixture();
    let request = request("q");
    let lock = fixture.ledger.try_lock(&request.name).unwrap().unwrap();
    let error = fixture.dns01.session(&request, &lock).unwrap_err();
    assert!(matches!(&error, Dns01Error::NoProvider(name) if name == "q"));
    let useless = crate::certificate::attempts::RetryAdvice::Useless;
    assert_eq!(error.retry(), useless);
}

#[tokio::test]
async fn a_rehearsal_keeps_its_own_account_of_what_it_puts_into_dns() {
    let fixture = fixture();
    let rehearsal = fixture.dns01.clone().rehearsal();
    let scratch = tempfile::tempdir().unwrap();
    let request = request("p");
    let lock = Ledger::new(scratch.path())
        .try_lock(&request.name)
        .unwrap()
        .unwrap();
    let session = rehearsal.session(&request, &lock).unwrap().unwrap();
    session
        .publish(&texts(&[("a.example", "one")]))
        .await
        .unwrap();
    assert!(matches!(
        rehearsal.session(&request, &lock),
        Err(Dns01Error::Busy)
    ));
    assert_eq!(fixture.left(), 0);
    // killed
    drop(session);
    assert!(!fixture.dns01.clean_up_leftovers().await.unwrap());
    assert!(fixture.fake.0.zone.lock().unwrap().is_empty());
}
