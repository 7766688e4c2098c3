//! N: what one hook has not got yet → sent, a few at a time and in order.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::super::message::digest;
use super::super::observe::host_name;
use super::super::send::{SendError, send};
use crate::notice::Notice;
use crate::settings::hooks::{Hook, HookId};
use crate::settings::proxy::ProxySettings;

/// A round for one hook.
pub(super) struct Delivery {
    label: String,
    hook: Hook,
    /// Each with the notices that it stands for.
    messages: Vec<(Notice, BTreeSet<String>)>,
    /// After that no request is waited for.
    end: Option<Instant>,
}

pub(super) struct Delivered {
    pub(super) id: HookId,
    label: String,
    /// Of the notices that were taken.
    pub(super) sent: BTreeSet<String>,
    /// Of those that were refused, each by itself.
    refused: BTreeSet<String>,
    error: Option<SendError>,
}

/// How it goes with a hook.
#[derive(Default)]
pub(super) struct Standing {
    pub(super) is_busy: bool,
    pub(super) not_before: Option<Instant>,
    /// The last one, while it has not been made good.
    pub(super) error: Option<String>,
    /// In a row.
    failures: usize,
    /// Of the notices that it does not take, though it may take others.
    refused: BTreeSet<String>,
    /// The last error was about every notice.
    is_dead: bool,
}

impl Delivery {
    pub(super) fn new(
        label: String,
        hook: &Hook,
        notices: &[&Notice],
        end: Option<Instant>,
    ) -> Self {
        let messages = match hook {
            // programs want each
            Hook::Command(_) | Hook::Webhook(_) => notices
                .iter()
                .map(|it| ((*it).clone(), vec![*it]))
                .collect(),
            Hook::Discord(_) | Hook::Ntfy(_) | Hook::Slack(_) => digest(notices),
        };
        let ids = |all: Vec<&Notice>| all.iter().map(|it| it.id.clone()).collect();
        let first = messages.into_iter().take(IN_A_ROUND);
        Self {
            label,
            hook: hook.clone(),
            messages: first.map(|(notice, all)| (notice, ids(all))).collect(),
            end,
        }
    }

    pub(super) async fn carry_out(self, proxy: ProxySettings) -> Delivered {
        let host = host_name();
        let (mut sent, mut refused, mut error) = (BTreeSet::new(), BTreeSet::new(), None);
        for (notice, ids) in self.messages {
            let left = self
                .end
                .map(|end| end.saturating_duration_since(Instant::now()));
            let limit = left.unwrap_or(ANSWER_LIMIT).min(ANSWER_LIMIT);
            if limit.is_zero() {
                break;
            }
            match send(&self.hook, &notice, &host, &proxy, limit).await {
                Ok(()) => sent.extend(ids),
                Err(failed) => {
                    let goes_on = failed.is_about_the_message();
                    error = Some(failed);
                    if !goes_on {
                        break;
                    }
                    refused.extend(ids);
                }
            }
        }
        Delivered {
            id: self.hook.id(),
            label: self.label,
            sent,
            refused,
            error,
        }
    }
}

impl Standing {
    /// Those of `unsent` that it is time for. What it refused keeps nothing else waiting: that goes
    /// first, and at once.
    pub(super) fn ready<'a>(&mut self, unsent: Vec<&'a Notice>, now: Instant) -> Vec<&'a Notice> {
        if self.is_busy {
            return Vec::new();
        }
        self.refused
            .retain(|id| unsent.iter().any(|notice| notice.id == *id));
        let is_time = self.not_before.is_none_or(|not_before| not_before <= now);
        let (refused, mut ready): (Vec<_>, Vec<_>) = unsent
            .into_iter()
            .partition(|notice| self.refused.contains(&notice.id));
        match (is_time, self.is_dead) {
            (true, _) => ready.extend(refused),
            (false, true) => ready.clear(),
            (false, false) => {}
        }
        ready
    }

    /// It is tried again now, and soon after that.
    pub(super) fn forgive(&mut self) {
        (self.failures, self.not_before) = (0, None);
    }

    /// A dead hook is logged when it dies and when it lives again.
    pub(super) fn note(&mut self, delivered: &Delivered, now: Instant) {
        self.is_busy = false;
        let hook = &delivered.label;
        self.refused.retain(|id| !delivered.sent.contains(id));
        self.refused.extend(delivered.refused.iter().cloned());
        let Some(error) = &delivered.error else {
            if !self.refused.is_empty() {
                // others were taken; these wait for their time
                return;
            }
            if self.error.take().is_some() {
                tracing::info!(hook, "takes messages again");
            }
            (self.failures, self.not_before) = (0, None);
            return;
        };
        self.is_dead = !error.is_about_the_message();
        let delay = delay(self.failures, error.retry_after());
        (self.failures, self.not_before) = (self.failures + 1, Some(now + delay));
        match self.error.replace(error.to_string()) {
            None => tracing::warn!(hook, "failed to {error}; it is tried again"),
            Some(_) => tracing::debug!(hook, "failed to {error}; tried again in {delay:?}"),
        }
    }
}

fn delay(failures: usize, asked: Option<Duration>) -> Duration {
    let usual = DELAYS.get(failures).copied().unwrap_or(LONGEST);
    usual.max(asked.unwrap_or_default().min(LONGEST))
}

/// Until a receiver has answered.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// What is taken is struck out after each round.
const IN_A_ROUND: usize = 20;
const DELAYS: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(600),
];
const LONGEST: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(id: usize) -> Notice {
        Notice {
            id: id.to_string(),
            ..Notice::test(time::OffsetDateTime::UNIX_EPOCH)
        }
    }

    #[test]
    fn what_a_hook_refuses_keeps_nothing_else_waiting_and_is_tried_last() {
        let now = Instant::now();
        let ids = |notices: Vec<&Notice>| -> Vec<usize> {
            notices.iter().map(|it| it.id.parse().unwrap()).collect()
        };
        let hook = Hook::Command(crate::settings::hooks::Argv {
            program: "/bin/false".into(),
            arguments: Vec::new(),
        });
        let notices: Vec<Notice> = (0..IN_A_ROUND + 2).map(notice).collect();
        let unsent = || notices.iter().collect::<Vec<_>>();
        let delivered = |sent: &[usize], refused: std::ops::Range<usize>, error| Delivered {
            id: hook.id(),
            label: String::new(),
            sent: sent.iter().map(ToString::to_string).collect(),
            refused: refused.map(|id| id.to_string()).collect(),
            error,
        };
        let failed = || {
            Some(SendError::CommandFailed {
                program: "/bin/false".into(),
                status: "exit status: 1".into(),
                words: String::new(),
            })
        };
        let mut standing = Standing::default();
        assert_eq!(standing.ready(unsent(), now).len(), notices.len());
        // a whole round of them
        standing.note(&delivered(&[], 0..IN_A_ROUND, failed()), now);
        let (next, last) = (IN_A_ROUND, IN_A_ROUND + 1);
        assert_eq!(ids(standing.ready(unsent(), now)), [next, last]);
        standing.note(&delivered(&[next], 0..0, None), now);
        assert!(standing.error.is_some() && standing.not_before.is_some());
        let left = || unsent().into_iter().filter(|it| it.id != next.to_string());
        let later = now + Duration::from_secs(2);
        let all = ids(standing.ready(left().collect(), later));
        assert_eq!((all.len(), all[0]), (IN_A_ROUND + 1, last));
        // an error about all of them
        let silent = Some(SendError::TimedOut {
            limit: ANSWER_LIMIT,
            via: String::new(),
        });
        standing.note(&delivered(&[], 0..0, silent), now);
        assert!(standing.ready(left().collect(), now).is_empty());
        // what was refused is taken after all
        let every: Vec<usize> = (0..IN_A_ROUND).collect();
        standing.note(&delivered(&every, 0..0, None), later);
        assert!(standing.error.is_none() && standing.not_before.is_none());
    }

    #[test]
    fn a_dead_hook_is_tried_less_and_less_often_and_not_before_it_says() {
        let seconds = |failures, asked: u64| {
            let asked = (asked > 0).then(|| Duration::from_secs(asked));
            delay(failures, asked).as_secs()
        };
        assert_eq!(
            [0, 1, 2, 3, 4, 99].map(|n| seconds(n, 0)),
            [1, 10, 60, 600, 3600, 3600]
        );
        assert_eq!(seconds(0, 30), 30);
        assert_eq!(seconds(2, 30), 60);
        assert_eq!(seconds(0, 1_000_000), 3600);
    }
}
