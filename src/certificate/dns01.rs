//! N: texts in DNS that prove control of a name (RFC 8555 §8.4): put there, seen at every authoritative
//! server, and taken out again.
//!
//! What is put into DNS is in the ledger before, so that it is taken out even where somebody was
//! killed meanwhile: by the next attempt, or by the next [`Dns01::clean_up_leftovers`].

mod error; // P why a name was not proven, and whether to try again
mod exec; // X a program of the operator's
mod propagation; // P whether every authoritative server shows it
pub mod record; // P the texts, and where they are put
mod rfc2136; // N signed updates
mod tsig_key; // P the key that they are signed with

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::RwLock;
use tokio::time::{Instant, sleep};

pub use self::error::{Dns01Error, ProviderError};
use self::record::{Presented, Record};
use crate::certificate::ledger::{CertificateLock, Ledger, LedgerError};
use crate::certificate::{CertificateName, CertificateRequest, Challenge};
use crate::clock::Clock;
use crate::dns::{Dns, Resolver};
use crate::settings::{DnsSettings, Means, ProviderSettings};

/// Changes a zone. Both are told again what they have done already, and then do nothing.
pub trait DnsProvider: Send + Sync {
    /// Adds the record beside what is there.
    fn present<'a>(&'a self, record: &'a Record) -> Changing<'a>;
    /// Removes the record and nothing else.
    fn clean_up<'a>(&'a self, record: &'a Record) -> Changing<'a>;
}

pub type Changing<'a> = Pin<Box<dyn Future<Output = Result<(), ProviderError>> + Send + 'a>>;

/// One of the settings' providers.
pub struct Provider {
    pub means: Box<dyn DnsProvider>,
    /// For one change.
    pub timeout: Duration,
    /// Until every authoritative server shows it.
    pub propagation: Duration,
}

/// The settings' DNS providers. Cheap to clone.
#[derive(Clone)]
pub struct Dns01 {
    shared: Arc<Shared>,
    rehearsal: bool,
}

struct Shared {
    providers: BTreeMap<String, Provider>,
    dns: Arc<dyn Dns>,
    ledger: Ledger,
    /// Shared by all who take something out beside other work.
    tidying: Arc<RwLock<()>>,
}

/// What one order puts into DNS.
#[derive(Debug)]
pub struct Session {
    dns01: Dns01,
    name: CertificateName,
    provider: Option<String>,
    /// Nobody else puts anything there for this certificate, or takes it out.
    _lock: CertificateLock,
}

impl Dns01 {
    /// `ledger` is the one of the state directory, also for what is stored elsewhere. Asks no network.
    pub fn new(settings: &DnsSettings, ledger: &Ledger, clock: &Clock) -> Self {
        let providers = settings.providers.iter();
        let providers =
            providers.map(|(name, provider)| (name.clone(), Provider::new(provider, clock)));
        let dns = Arc::new(Resolver::new(settings));
        Self::with(providers.collect(), dns, ledger)
    }

    pub fn with(providers: BTreeMap<String, Provider>, dns: Arc<dyn Dns>, ledger: &Ledger) -> Self {
        Self {
            shared: Arc::new(Shared {
                providers,
                dns,
                ledger: ledger.clone(),
                tidying: Arc::default(),
            }),
            rehearsal: false,
        }
    }

    /// For orders beside those that are made.
    pub fn rehearsal(self) -> Self {
        Self {
            rehearsal: true,
            ..self
        }
    }

    /// `lock` is the certificate's. `None`: there is nothing to put into DNS, nor to take out.
    pub fn session(
        &self,
        request: &CertificateRequest,
        lock: &CertificateLock,
    ) -> Result<Option<Session>, Dns01Error> {
        let provider = match &request.challenge {
            Challenge::Http01 if self.rehearsal => return Ok(None),
            Challenge::Http01 => None,
            Challenge::Dns01(provider) => Some(provider.to_string()),
        };
        if let Some(unknown) = provider.as_ref().filter(|it| !self.has(it)) {
            // before a CA is asked for anything
            return Err(Dns01Error::NoProvider(unknown.clone()));
        }
        let mut session = Session {
            dns01: self.clone(),
            name: request.name.clone(),
            provider,
            _lock: lock.clone(),
        };
        if self.rehearsal {
            // the lock that we were given is not of the state directory
            let name = record::rehearsal_of(&request.name).ok_or(Dns01Error::Busy)?;
            session._lock = self
                .shared
                .ledger
                .try_lock(&name)?
                .ok_or(Dns01Error::Busy)?;
            session.name = name;
        }
        Ok(Some(session))
    }

    /// Returns once nothing is being taken out beside other work any more.
    pub async fn tidied(&self) {
        drop(self.shared.tidying.write().await);
    }

    fn has(&self, provider: &str) -> bool {
        self.shared.providers.contains_key(provider)
    }

    /// Takes out what others have left: they were killed, or failed to. Returns whether something is
    /// still there.
    pub async fn clean_up_leftovers(&self) -> Result<bool, LedgerError> {
        let ledger = &self.shared.ledger;
        let mut left = false;
        for name in ledger.all_presented()? {
            match ledger.try_lock(&name)? {
                Some(_lock) => left |= !self.clean_up(&name).await?,
                // whoever has it takes it out
                None => left = true,
            }
        }
        Ok(left)
    }

    /// Takes out what the ledger has of one certificate, under its lock. Returns whether nothing is
    /// left.
    async fn clean_up(&self, name: &CertificateName) -> Result<bool, LedgerError> {
        let ledger = &self.shared.ledger;
        for presented in ledger.presented(name)? {
            let target = &presented.record.target;
            let error = match self.take_out(&presented).await {
                Ok(()) => {
                    tracing::debug!(identifier = %name, target, "removed a text");
                    None
                }
                Err(error) => Some(error),
            };
            // it is told once
            if let Some(error) = error.as_ref().filter(|_| error != presented.error) {
                tracing::warn!(identifier = %name, "failed to remove a text at {target}, which will be tried again: failed to {error}");
            }
            // the next order may have noted others meanwhile
            let mut all = ledger.presented(name)?;
            match &error {
                Some(_) => all
                    .iter_mut()
                    .filter(|it| it.is_same(&presented))
                    .for_each(|it| it.error.clone_from(&error)),
                None => all.retain(|it| !it.is_same(&presented)),
            }
            ledger.record_presented(name, &all)?;
        }
        Ok(ledger.presented(name)?.is_empty())
    }

    /// The error fits "failed to …".
    async fn take_out(&self, presented: &Presented) -> Result<(), String> {
        let record = &presented.record;
        match self.shared.providers.get(&presented.provider) {
            Some(provider) => {
                let error = match provider.means.clean_up(record).await {
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                };
                match error.is_outside() && self.is_gone(record).await {
                    true => Ok(()),
                    false => Err(error.to_string()),
                }
            }
            None if self.is_gone(record).await => Ok(()),
            None => Err(format!(
                "ask the DNS provider {} for it: the settings have none of that name any more",
                presented.provider
            )),
        }
    }

    /// Whether somebody else has taken it out.
    async fn is_gone(&self, record: &Record) -> bool {
        match self.shared.dns.txt(&record.target).await {
            Ok(published) => propagation::nobody_shows(&record.value, &published),
            Err(error) => error.is_absence(),
        }
    }
}

impl Session {
    /// How long [`Session::publish`] may take for that many texts, all in all.
    pub fn longest(&self, texts: usize) -> Duration {
        let texts = u32::try_from(texts).unwrap_or(u32::MAX);
        let provider = self.provider().ok();
        provider.map_or(Duration::ZERO, |(_, provider)| {
            let change = provider.timeout.saturating_mul(texts);
            // other orders have their turns with the same program
            let changes = change.saturating_mul(TURNS);
            changes.saturating_add(provider.propagation)
        })
    }

    /// Whether its order is proven by DNS.
    pub fn is_used(&self) -> bool {
        self.provider.is_some()
    }

    /// Puts the texts, each with its identifier, into DNS, and returns once every authoritative
    /// server shows them.
    pub async fn publish(&self, texts: &[(String, String)]) -> Result<(), Dns01Error> {
        let (name, provider) = self.provider()?;
        let records = self.all_placed(texts).await?;
        self.note(name, &records)?;
        for record in &records {
            tracing::debug!(identifier = %self.name, target = record.target, "publishing a text");
            let presented = provider.means.present(record).await;
            presented.map_err(|source| Dns01Error::Provider {
                provider: name.to_owned(),
                source: Box::new(source),
            })?;
        }
        self.shown(&records, provider.propagation).await
    }

    /// Takes out what was put into DNS for this certificate, also by others before us. What fails
    /// stays in the ledger, and is tried again.
    pub async fn clean_up(&self) {
        if let Err(error) = self.dns01.clean_up(&self.name).await {
            tracing::warn!(identifier = %self.name, "failed to {error}");
        }
    }

    /// As [`Session::clean_up`], beside other work: nobody should wait for it who has a certificate. It
    /// keeps the lock meanwhile, and [`Dns01::tidied`] waits for it.
    pub async fn clean_up_beside(self) {
        let presented = self.dns01.shared.ledger.presented(&self.name);
        if presented.is_ok_and(|presented| presented.is_empty()) {
            return;
        }
        let tidying = self.dns01.shared.tidying.clone().read_owned().await;
        tokio::spawn(async move {
            self.clean_up().await;
            drop(tidying);
        });
    }

    fn provider(&self) -> Result<(&str, &Provider), Dns01Error> {
        let name = self.provider.as_deref().unwrap_or_default();
        let provider = self.dns01.shared.providers.get(name);
        let provider = provider.ok_or_else(|| Dns01Error::NoProvider(name.to_owned()))?;
        Ok((name, provider))
    }

    /// Where the text of each identifier has to be; the error names all that have no place.
    async fn all_placed(&self, texts: &[(String, String)]) -> Result<Vec<Record>, Dns01Error> {
        let (mut records, mut lost, mut why) = (Vec::new(), Vec::new(), None);
        for (identifier, value) in texts {
            let name = record::name_of(identifier);
            match self.dns01.shared.dns.txt(&name).await {
                Ok(published) => records.push(Record {
                    name,
                    target: published.target,
                    zone: published.zone,
                    value: value.clone(),
                }),
                Err(source) => {
                    why.get_or_insert(source);
                    lost.push(name);
                }
            }
        }
        match why {
            None => Ok(records),
            Some(source) => Err(Dns01Error::NoPlace {
                names: lost,
                source,
            }),
        }
    }

    /// Before anything is put anywhere, and beside what is there already.
    fn note(&self, provider: &str, records: &[Record]) -> Result<(), LedgerError> {
        let ledger = &self.dns01.shared.ledger;
        let mut presented = ledger.presented(&self.name)?;
        for record in records {
            let new = Presented::new(provider, record);
            presented.retain(|it| !it.is_same(&new));
            presented.push(new);
        }
        ledger.record_presented(&self.name, &presented)
    }

    async fn shown(&self, records: &[Record], limit: Duration) -> Result<(), Dns01Error> {
        let begin = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut names = record::by_name(records);
        loop {
            let forgiving = begin.elapsed() >= SILENCE.min(limit / 2);
            let mut lacks = Vec::new();
            for name in names.keys().copied().collect::<Vec<_>>() {
                // by the name: its CNAME may lead elsewhere by now
                let published = self.dns01.shared.dns.txt(name).await;
                let lacking = propagation::lacking(name, &names[name], &published, forgiving);
                if lacking.is_empty() {
                    // it is not asked about again
                    names.remove(name);
                }
                lacks.extend(lacking);
            }
            if lacks.is_empty() {
                return Ok(());
            }
            if begin.elapsed() >= limit {
                return Err(Dns01Error::Lacking { limit, lacks });
            }
            tracing::debug!(identifier = %self.name, "waiting: {}", lacks[0]);
            sleep(pause).await;
            pause = pause.mul_f32(1.5).min(LONGEST_PAUSE);
        }
    }
}

impl Provider {
    fn new(settings: &ProviderSettings, clock: &Clock) -> Self {
        let timeout = settings.timeout;
        Self {
            means: match &settings.means {
                Means::Exec(exec) => Box::new(exec::Exec::new(exec, timeout)),
                Means::Rfc2136(server) => {
                    Box::new(rfc2136::Rfc2136::new(server, timeout, clock.clone()))
                }
            },
            timeout,
            propagation: settings.propagation,
        }
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider")
            .field("timeout", &self.timeout)
            .field("propagation", &self.propagation)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Dns01 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let providers: Vec<_> = self.shared.providers.keys().collect();
        f.debug_struct("Dns01")
            .field("providers", &providers)
            .field("rehearsal", &self.rehearsal)
            .finish_non_exhaustive()
    }
}

/// The first look is at once: a server that was updated answers.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// For so long a server that does not answer is waited for while others do.
const SILENCE: Duration = Duration::from_secs(15);
/// Orders at a time that wait for the same program.
const TURNS: u32 = 8;

#[cfg(test)]
mod tests;
