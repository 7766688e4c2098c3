//! W: what was told, and what is still to be sent: `notices/memory.json` in the state directory.
//!
//! A directory of its own: the state directory belongs to whoever reconciles, who removes what
//! others are just writing there.
//!
//! A notice is written down together with the state that it is about, before it is sent, and struck
//! out after somebody has taken it. So a crash in between sends it again, and none is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::change::Told;
use super::{Event, Notice};
use crate::atomic_file::{self, WriteError};
use crate::settings::hooks::{HookId, HookSettings};

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Memory {
    /// `None`: nobody was told anything yet.
    pub told: Option<Told>,
    /// In the order in which it happened.
    pub unsent: Vec<Unsent>,
    /// Why a hook took nothing when it was tried last; fragments that fit "failed to …".
    #[serde(default)]
    pub dead: BTreeMap<HookId, String>,
    /// Those of the settings at the last look.
    #[serde(default)]
    pub hooks: BTreeSet<HookId>,
}

/// A notice, and who has yet to take it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Unsent {
    pub notice: Notice,
    pub hooks: BTreeSet<HookId>,
}

/// The right to look and to send; one process has it at a time, so that each notice is sent once.
#[derive(Debug)]
pub struct Turn(#[allow(dead_code, reason = "held, not read")] File);

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("lock {}: {source}", path.display())]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// `None`: another process has it.
pub fn take_turn(state_dir: &Path) -> Result<Option<Turn>, MemoryError> {
    let directory = directory(state_dir)?;
    let path = directory.join("lock");
    let file = atomic_file::lock_file(&path)?;
    match file.try_lock() {
        Ok(()) => {
            atomic_file::sweep_dead(&directory)?;
            Ok(Some(Turn(file)))
        }
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(source)) => Err(MemoryError::Lock { path, source }),
    }
}

impl Memory {
    /// What is missing or damaged is begun anew: what is wrong then is told once more.
    pub fn read(state_dir: &Path) -> Result<Self, MemoryError> {
        let path = path(state_dir);
        match fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!("{} is damaged and begun anew: {error}", path.display());
                Self::default()
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(MemoryError::Read { path, source }),
        }
    }

    pub fn write(&self, state_dir: &Path) -> Result<(), MemoryError> {
        directory(state_dir)?;
        Ok(atomic_file::write_json(&path(state_dir), self, 0o600)?)
    }

    /// While nobody is to be told, nothing is remembered: who is told later begins with that time.
    pub fn forget(state_dir: &Path) -> Result<(), MemoryError> {
        let path = path(state_dir);
        if path.exists() {
            atomic_file::remove(&path)?;
        }
        Ok(())
    }

    /// Adds notices for those of `hooks` who want them.
    pub fn add(&mut self, notices: Vec<Notice>, hooks: &HookSettings) {
        for notice in notices {
            let hooks = wanting(notice.event, hooks);
            if !hooks.is_empty() {
                self.unsent.push(Unsent { notice, hooks });
            }
        }
    }

    fn strike_out(&mut self, hook: &HookId, sent: &BTreeSet<String>) {
        for unsent in &mut self.unsent {
            if sent.contains(&unsent.notice.id) {
                unsent.hooks.remove(hook);
            }
        }
        self.unsent.retain(|unsent| !unsent.hooks.is_empty());
    }

    /// What nobody will take: for hooks that are gone, too old while nothing of it is so any more, or
    /// beyond what is kept. Returns how many were given up that somebody still should have had.
    ///
    /// What a hook that is gone had not taken is for those that came in its place: somebody has
    /// corrected a URL.
    pub fn tidy(&mut self, hooks: &HookSettings, now: OffsetDateTime) -> usize {
        let known: BTreeSet<HookId> = hooks.all().iter().map(|(_, hook)| hook.id()).collect();
        let came: BTreeSet<HookId> = match self.hooks.is_empty() {
            true => BTreeSet::new(),
            false => known.difference(&self.hooks).cloned().collect(),
        };
        for unsent in &mut self.unsent {
            let before = unsent.hooks.len();
            unsent.hooks.retain(|hook| known.contains(hook));
            if unsent.hooks.len() < before {
                let wanting = wanting(unsent.notice.event, hooks);
                unsent.hooks.extend(wanting.intersection(&came).cloned());
            }
        }
        self.hooks = known.clone();
        self.unsent.retain(|unsent| !unsent.hooks.is_empty());
        self.dead.retain(|hook, _| known.contains(hook));
        let before = self.unsent.len();
        let told = &self.told;
        let stands = |notice: &Notice| told.as_ref().is_some_and(|told| told.stands(notice));
        self.unsent
            .retain(|unsent| unsent.notice.at + KEPT > now || stands(&unsent.notice));
        let beyond = self.unsent.len().saturating_sub(MOST_UNSENT);
        self.unsent.drain(..beyond);
        before - self.unsent.len()
    }

    /// Notes what a hook has taken, or why it took nothing. Returns whether that is something else.
    pub fn note(&mut self, hook: &HookId, sent: &BTreeSet<String>, error: Option<String>) -> bool {
        self.strike_out(hook, sent);
        let before = match &error {
            Some(error) => self.dead.insert(hook.clone(), error.clone()),
            None => self.dead.remove(hook),
        };
        !sent.is_empty() || before != error
    }

    /// A sentence for each hook that messages wait for.
    pub fn warnings(&self, hooks: &HookSettings) -> Vec<String> {
        let all = hooks.all().into_iter();
        let warnings = all.filter_map(|(label, hook)| {
            let id = hook.id();
            let error = self.dead.get(&id)?;
            let waiting = match self.unsent_to(&id).len() {
                0 => return None,
                1 => "1 message waits".to_owned(),
                more => format!("{more} messages wait"),
            };
            Some(format!("{waiting} for {label}: failed to {error}"))
        });
        warnings.collect()
    }

    pub fn unsent_to<'a>(&'a self, hook: &HookId) -> Vec<&'a Notice> {
        let mine = self.unsent.iter().filter(|it| it.hooks.contains(hook));
        mine.map(|unsent| &unsent.notice).collect()
    }
}

/// Who is told of it.
fn wanting(event: Event, hooks: &HookSettings) -> BTreeSet<HookId> {
    let on_failure = hooks.on_failure.iter();
    let on_failure = on_failure.filter(|_| event.is_about_failure());
    let all = on_failure.chain(&hooks.on_change);
    all.map(|hook| hook.id()).collect()
}

/// Makes it where it is missing, but not the state directory: that may have been removed.
pub(crate) fn directory(state_dir: &Path) -> Result<PathBuf, WriteError> {
    let directory = state_dir.join(DIRECTORY);
    if !state_dir.is_dir() {
        return Err(WriteError {
            operation: "create",
            path: directory,
            source: io::ErrorKind::NotFound.into(),
        });
    }
    if !directory.is_dir() {
        atomic_file::create_directory(&directory, 0o700)?;
    }
    Ok(directory)
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(DIRECTORY).join("memory.json")
}

pub(crate) const DIRECTORY: &str = "notices";

/// An older alarm helps nobody, unless it is still one.
const KEPT: Duration = Duration::DAY;
/// Of a queue that nobody takes anything from.
const MOST_UNSENT: usize = 2000;

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::notice::change::{Observed, compare};
    use crate::settings::hooks::{Argv, Hook};

    fn command(program: &str) -> Hook {
        Hook::Command(Argv {
            program: program.into(),
            arguments: Vec::new(),
        })
    }

    fn notice(event: Event, at: OffsetDateTime) -> Notice {
        Notice {
            event,
            id: format!("{event:?}"),
            ..Notice::test(at)
        }
    }

    #[test]
    fn on_failure_hears_of_what_is_wrong_and_on_change_of_everything_once() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let (both, change) = (command("/both"), command("/change"));
        let hooks = HookSettings {
            on_failure: vec![both.clone()],
            on_change: vec![both.clone(), change.clone()],
        };
        let failure_only = HookSettings {
            on_change: Vec::new(),
            ..hooks.clone()
        };
        let notices = [Event::CertificateFailing, Event::CertificateRenewed];
        let notices = notices.map(|event| notice(event, now)).to_vec();
        let mut memory = Memory::default();
        memory.add(notices.clone(), &failure_only);
        assert_eq!(memory.unsent.len(), 1);
        let mut memory = Memory::default();
        memory.add(notices, &hooks);
        assert_eq!(memory.unsent_to(&both.id()).len(), 2);
        assert_eq!(memory.unsent_to(&change.id()).len(), 2);
        let sent = BTreeSet::from(["CertificateFailing".to_owned()]);
        memory.strike_out(&both.id(), &sent);
        assert_eq!(memory.unsent_to(&both.id()).len(), 1);
        assert_eq!(memory.unsent_to(&change.id()).len(), 2);
        let gone = Some("reach it".to_owned());
        assert!(memory.note(&change.id(), &BTreeSet::new(), gone.clone()));
        assert!(!memory.note(&change.id(), &BTreeSet::new(), gone));
        assert_eq!(
            memory.warnings(&hooks),
            ["2 messages wait for hooks.on_change[1] (command): failed to reach it"]
        );
        // one of them is taken out of the settings
        assert_eq!(memory.tidy(&failure_only, now), 0);
        assert_eq!(memory.unsent.len(), 1);
        assert_eq!(memory.tidy(&failure_only, now + Duration::days(2)), 1);
        assert!(memory.unsent.is_empty());
    }

    #[test]
    fn what_a_corrected_hook_had_not_taken_is_for_the_one_in_its_place_alone() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let (right, wrong, mended) = (command("/right"), command("/wrong"), command("/mended"));
        let settings = |hook: &Hook| HookSettings {
            on_failure: vec![right.clone(), hook.clone()],
            on_change: Vec::new(),
        };
        let notices = vec![
            notice(Event::NginxDown, now),
            notice(Event::VhostRejected, now),
        ];
        let mut memory = Memory::default();
        memory.add(notices, &settings(&wrong));
        memory.tidy(&settings(&wrong), now);
        let sent = BTreeSet::from(["NginxDown".to_owned(), "VhostRejected".to_owned()]);
        memory.note(&right.id(), &sent, None);
        memory.tidy(&settings(&mended), now);
        assert_eq!(memory.unsent_to(&mended.id()).len(), 2);
        assert!(memory.unsent_to(&right.id()).is_empty());
        // what nobody waited for is not told to who comes later
        memory.note(&mended.id(), &sent, None);
        memory.tidy(&settings(&command("/later")), now);
        assert!(memory.unsent.is_empty());
    }

    #[test]
    fn what_is_still_wrong_is_not_given_up() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let hooks = HookSettings {
            on_failure: vec![command("/tell")],
            on_change: Vec::new(),
        };
        let seen = Observed {
            nginx_running: Some(false),
            ..Observed::default()
        };
        let comparison = compare(None, &seen, now);
        let mut memory = Memory {
            told: Some(comparison.told),
            ..Memory::default()
        };
        memory.add(comparison.notices, &hooks);
        memory.add(vec![notice(Event::VhostRejected, now)], &hooks);
        assert_eq!(memory.tidy(&hooks, now + Duration::days(3)), 1);
        let left = memory.unsent_to(&hooks.on_failure[0].id());
        assert!(
            left.len() == 1 && left[0].event == Event::NginxDown,
            "{left:?}"
        );
        let seen = Observed {
            nginx_running: Some(true),
            ..Observed::default()
        };
        memory.told = Some(compare(memory.told.as_ref(), &seen, now).told);
        assert_eq!(memory.tidy(&hooks, now + Duration::days(3)), 1);
    }

    #[test]
    fn what_is_damaged_is_begun_anew_and_only_one_has_its_turn() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path();
        assert_eq!(Memory::read(state).unwrap(), Memory::default());
        fs::create_dir(state.join("notices")).unwrap();
        fs::write(state.join("notices/memory.json"), "{").unwrap();
        assert_eq!(Memory::read(state).unwrap(), Memory::default());
        Memory::forget(state).unwrap();
        assert!(!state.join("notices/memory.json").exists());
        assert!(take_turn(&state.join("gone")).is_err() && !state.join("gone").exists());
        let turn = take_turn(state).unwrap();
        assert!(turn.is_some() && take_turn(state).unwrap().is_none());
        drop(turn);
        assert!(take_turn(state).unwrap().is_some());
    }
}
