//! N: looks, remembers, sends. Beside the daemon in a thread of its own, so that no receiver, name
//! server or command delays a reload or a renewal; by the commands once, where no daemon runs.

mod delivery; // N what one hook has not got yet → sent, a few at a time
mod vigil; // N which names are asked for when: once a day, and when their certificate changed

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::change::compare;
use super::memory::{Memory, MemoryError, Turn, take_turn};
use super::observe::{News, observe};
use crate::clock::Clock;
use crate::installation::Installation;
use crate::reconcile::{Applied, ReconcileError};
use crate::settings::hooks::{Hook, HookId};
pub(crate) use delivery::ANSWER_LIMIT;
use delivery::{Delivered, Delivery, Standing};
use vigil::Vigil;

/// The daemon's end. What it is told is looked at soon; nothing of it waits.
#[derive(Debug)]
pub struct Herald {
    /// `None` once it is to end.
    news: Option<watch::Sender<News>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Herald {
    /// Starts the thread, which ends when this is dropped.
    pub fn start(installation: Arc<Installation>, clock: Clock) -> io::Result<Self> {
        let (sender, receiver) = watch::channel(News::of(installation));
        let runtime = runtime()?;
        let name = thread::Builder::new().name("herald".to_owned());
        let thread = name.spawn(move || {
            runtime.block_on(keep_watch(receiver, clock));
            // whoever hangs in a look-up of a name is not waited for
            runtime.shutdown_background();
        })?;
        Ok(Self {
            news: Some(sender),
            thread: Some(thread),
        })
    }

    pub fn applied(&self, applied: &Applied) {
        self.tell(|news| news.applied(applied));
    }

    pub fn failed(&self, error: &ReconcileError) {
        self.tell(|news| news.failed(error));
    }

    /// Somebody wants everything looked at.
    pub fn asked(&self) {
        self.tell(|news| news.asked += 1);
    }

    /// An order has ended.
    pub fn stir(&self) {
        if let Some(sender) = &self.news {
            sender.send_modify(|_| {});
        }
    }

    pub fn reopened(&self, installation: &Arc<Installation>) {
        if let Some(sender) = &self.news {
            sender.send_modify(|news| news.installation = installation.clone());
        }
    }

    /// What says the same again wakes nobody.
    fn tell(&self, change: impl FnOnce(&mut News)) {
        if let Some(sender) = &self.news {
            sender.send_if_modified(|news| {
                let before = news.clone();
                change(news);
                !news.says_the_same(&before)
            });
        }
    }
}

impl Drop for Herald {
    /// It ends between two steps: nothing is written after that, and nobody is waited for who was
    /// being told.
    fn drop(&mut self) {
        self.news = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Looks and tells once, within some seconds (a command has its own time). Returns what could not
/// be delivered, in sentences; it is told at the next run.
pub fn tell(news: News, clock: Clock) -> Vec<String> {
    let built = runtime();
    let told = built.map(|runtime| {
        let complaints = runtime.block_on(tell_once(news, clock, ONCE_LIMIT));
        runtime.shutdown_background();
        complaints
    });
    told.unwrap_or_else(|error| vec![format!("failed to start telling anybody: {error}")])
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
}

async fn tell_once(news: News, clock: Clock, limit: Duration) -> Vec<String> {
    let end = Instant::now() + limit;
    let mut watchman = Watchman::new(clock, time::Duration::ZERO);
    watchman.turn_at(&news, end).await;
    watchman.look(&news);
    loop {
        watchman.start_sending(&news, Some(end));
        // none where all is sent, or the next attempt comes too late
        let next = watchman.next_sending(&news).filter(|next| *next < end);
        if watchman.sending.is_empty() && next.is_none() {
            break;
        }
        let wake = next.unwrap_or(end);
        tokio::select! {
            Some(delivered) = watchman.sending.join_next() => watchman.sent(&news, delivered),
            // a request has its own limit, and a command all the time that it may have
            () = tokio::time::sleep_until(wake.into()), if watchman.sending.is_empty() => {}
        }
    }
    let settings = &news.installation.settings;
    watchman.memory.warnings(&settings.hooks)
}

/// Looks at what is served now, if that was not done for a day: for hosts with a timer only.
pub fn look_at_what_is_served(installation: &Installation, clock: &Clock) {
    vigil::look_if_due(installation, clock());
}

async fn keep_watch(mut news: watch::Receiver<News>, clock: Clock) {
    let mut watchman = Watchman::new(clock, PATIENCE);
    let mut vigil = Vigil::default();
    loop {
        let now = Instant::now();
        let current = news.borrow_and_update().clone();
        if watchman.look_at <= now {
            watchman.look(&current);
        }
        watchman.start_sending(&current, None);
        vigil.start_look(&current, (watchman.clock)());
        let mut wake = watchman.look_at.min(vigil.next());
        if let Some(sending) = watchman.next_sending(&current) {
            wake = wake.min(sending);
        }
        // every arm is cancel-safe: a watch's change and a set's next lose nothing when dropped
        tokio::select! {
            changed = news.changed() => {
                if changed.is_err() {
                    return;
                }
                let latest = news.borrow().clone();
                let reopened = !Arc::ptr_eq(&latest.installation, &current.installation);
                if reopened {
                    watchman.forgive();
                }
                // an order that has ended serves nothing yet
                if reopened || !latest.says_the_same(&current) {
                    vigil.stir();
                }
                watchman.look_soon();
            }
            Some(delivered) = watchman.sending.join_next() => watchman.sent(&current, delivered),
            Some(looked) = vigil.looking.join_next() => {
                if vigil.looked(&current, looked, (watchman.clock)()) {
                    watchman.look_soon();
                }
            }
            () = tokio::time::sleep_until(wake.into()) => {}
        }
    }
}

struct Watchman {
    clock: Clock,
    patience: time::Duration,
    turn: Option<Turn>,
    memory: Memory,
    hooks: BTreeMap<HookId, Standing>,
    sending: JoinSet<Delivered>,
    looked_at: Option<Instant>,
    look_took: Duration,
    look_at: Instant,
    /// What has been logged, and is not said again while it stays so.
    said: Option<String>,
}

impl Watchman {
    fn new(clock: Clock, patience: time::Duration) -> Self {
        Self {
            clock,
            patience,
            turn: None,
            memory: Memory::default(),
            hooks: BTreeMap::new(),
            sending: JoinSet::new(),
            looked_at: None,
            look_took: Duration::ZERO,
            look_at: Instant::now(),
            said: None,
        }
    }

    /// The first hint is looked at, at once; of a flood, not each.
    fn look_soon(&mut self) {
        let now = Instant::now();
        let rest = REST.max(self.look_took * REST_FACTOR);
        let earliest = self.looked_at.map_or(now, |last| last + rest);
        self.look_at = self.look_at.min(earliest.max(now));
    }

    /// Somebody has read the settings again: what kept a hook from taking anything may be mended.
    fn forgive(&mut self) {
        self.hooks.values_mut().for_each(Standing::forgive);
    }

    /// Waits for the turn, for those who have only one.
    async fn turn_at(&mut self, news: &News, end: Instant) {
        let hooks = &news.installation.settings.hooks;
        while !hooks.is_empty() && !self.has_turn(news) && Instant::now() < end {
            tokio::time::sleep(POLL).await;
        }
    }

    fn has_turn(&mut self, news: &News) -> bool {
        if self.turn.is_some() {
            return true;
        }
        let state_dir = &news.installation.settings.state_dir;
        let taken = take_turn(state_dir).and_then(|turn| match turn {
            Some(turn) => Ok(Some((turn, Memory::read(state_dir)?))),
            None => Ok(None),
        });
        match taken {
            Ok(Some((turn, memory))) => {
                (self.turn, self.memory) = (Some(turn), memory);
                true
            }
            Ok(None) => false,
            Err(error) => {
                self.complain(&error);
                false
            }
        }
    }

    fn look(&mut self, news: &News) {
        let now = Instant::now();
        self.looked_at = Some(now);
        self.look_at = now + LOOK_AGAIN;
        let settings = &news.installation.settings;
        if settings.hooks.is_empty() {
            (self.turn, self.memory) = (None, Memory::default());
            if let Err(error) = Memory::forget(&settings.state_dir) {
                self.complain(&error);
            }
            return;
        }
        if !self.has_turn(news) {
            self.look_at = now + REST;
            return;
        }
        let at = (self.clock)();
        let seen = observe(news, at, self.patience);
        self.look_took = now.elapsed();
        tracing::debug!("looked for changes in {:.1?}", self.look_took);
        let comparison = compare(self.memory.told.as_ref(), &seen, at);
        if let Some(next) = comparison.next {
            self.look_at = self.look_at.min(now + until(next, at));
        }
        let before = self.memory.clone();
        for notice in &comparison.notices {
            let (event, subject) = (notice.event.word(), &notice.subject.name);
            tracing::debug!(event, subject, "{}", notice.title);
        }
        self.memory.told = Some(comparison.told);
        self.memory.add(comparison.notices, &settings.hooks);
        let given_up = self.memory.tidy(&settings.hooks, at);
        if given_up > 0 {
            tracing::error!("{given_up} messages are given up: nobody took them for a day");
        }
        if self.memory != before {
            self.write(news);
        }
    }

    fn write(&mut self, news: &News) {
        // what cannot be written down is told all the same, and once more after a restart
        match self.memory.write(&news.installation.settings.state_dir) {
            Ok(()) => self.said = None,
            Err(error) => self.complain(&error),
        }
    }

    fn complain(&mut self, error: &MemoryError) {
        let words = error.to_string();
        if self.said.as_ref() != Some(&words) {
            tracing::warn!("failed to {words}; who is to be told may be told twice, or late");
            self.said = Some(words);
        }
    }

    /// `end`: after that no request is waited for.
    fn start_sending(&mut self, news: &News, end: Option<Instant>) {
        if self.turn.is_none() {
            return;
        }
        let now = Instant::now();
        if end.is_some_and(|end| end <= now) {
            return;
        }
        for (label, hook) in news.installation.settings.hooks.all() {
            let id = hook.id();
            let standing = self.hooks.entry(id.clone()).or_default();
            let notices = standing.ready(self.memory.unsent_to(&id), now);
            if notices.is_empty() {
                continue;
            }
            let delivery = Delivery::new(label, hook, &notices, end);
            standing.is_busy = true;
            let proxy = news.installation.settings.acme.proxy.clone();
            self.sending.spawn(delivery.carry_out(proxy));
        }
    }

    fn next_sending(&self, news: &News) -> Option<Instant> {
        self.turn.as_ref()?;
        let hooks = news.installation.settings.hooks.all();
        let waiting = hooks.iter().filter_map(|(_, hook): &(String, &Hook)| {
            let id = hook.id();
            let standing = self.hooks.get(&id)?;
            let unsent = self.memory.unsent.iter();
            let mut mine = unsent.filter(|unsent| unsent.hooks.contains(&id));
            mine.next()?;
            (!standing.is_busy).then_some(standing.not_before?)
        });
        waiting.min()
    }

    fn sent(&mut self, news: &News, delivered: Result<Delivered, tokio::task::JoinError>) {
        let delivered = match delivered {
            Ok(delivered) => delivered,
            Err(error) => return tracing::error!("failed to send: {error}"),
        };
        let standing = self.hooks.entry(delivered.id.clone()).or_default();
        standing.note(&delivered, Instant::now());
        let error = standing.error.clone();
        if self.memory.note(&delivered.id, &delivered.sent, error) {
            self.write(news);
        }
    }
}

fn until(at: OffsetDateTime, now: OffsetDateTime) -> Duration {
    let wait = Duration::try_from(at - now).unwrap_or(Duration::ZERO);
    wait.clamp(REST, LOOK_AGAIN)
}

/// For nginx to be restarted, or upgraded by its package.
const PATIENCE: time::Duration = time::Duration::seconds(10);
/// Between two looks in a flood of hints.
const REST: Duration = Duration::from_secs(1);
/// A thousand certificates take a while to read.
const REST_FACTOR: u32 = 10;
/// A clock may jump, and somebody may renew beside the daemon.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);
/// For those who have only one look.
const ONCE_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);
/// Names are looked up and commands run in them.
const BLOCKING_THREADS: usize = 16;
