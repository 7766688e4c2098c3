//! P: when nginx may be reloaded again.
//!
//! Each reload leaves old workers behind, which live as long as their longest connection. So the
//! first change is served at once, and a flood of them about once a second, or, where a reload
//! takes long, half of the time at most is spent with it. Edits wait for edits: what certificates
//! cost is not theirs.

use std::time::{Duration, Instant};

use crate::generation::manifest::Reason;
use crate::reconcile::report::{Report, StepName};

/// Between the end of a reload and the next one that files ask for.
const REST: Duration = Duration::from_secs(1);
/// Between two that certificates ask for, while our own CA signs more of them.
const SIGNING: Duration = Duration::from_secs(3);
/// As many times as long as the last reload took, if that is longer.
const FACTOR: u32 = 2;

/// What is known of the last reload.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    last: Option<Reload>,
    /// When the last one ended that was not for certificates alone.
    last_edit: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Reload {
    end: Instant,
    took: Duration,
}

impl Pace {
    /// Remembers a reconcile that told nginx to reload. How long one took that failed says nothing
    /// (nginx tries a taken port for 2.5 s), and who mends it should not wait for that.
    pub(super) fn note(&mut self, report: &Report, reason: Reason, now: Instant) {
        let mut steps = report.steps.iter();
        if steps.any(|step| step.step == StepName::Reload) {
            let ms: f64 = match report.succeeded() {
                true => report.steps.iter().map(|step| step.ms).sum(),
                false => 0.0,
            };
            self.last = Some(Reload {
                end: now,
                took: Duration::from_secs_f64(ms.max(0.0) / 1000.0),
            });
            if reason != Reason::Certificate {
                self.last_edit = Some(now);
            }
        }
    }

    /// When a batch for `reason` may be applied. Root's reload waits for none, and root's rollback for
    /// a second at most. A certificate comes once in weeks, and a site waits for it. `spaced`: users ask,
    /// who wait as files do, or many certificates are being signed, which come one by one.
    pub(super) fn not_before(self, reason: Reason, spaced: bool, now: Instant) -> Instant {
        let Some(Reload { end, took }) = self.last else {
            return now;
        };
        let long = end + took * FACTOR;
        match reason {
            Reason::File => long.max(self.last_edit.map_or(long, |edit| edit + REST)),
            Reason::Reload | Reason::Rollback if spaced => long.max(end + REST),
            Reason::Rollback => end + REST,
            Reason::Certificate if spaced => long.max(end + SIGNING),
            Reason::Certificate => long,
            Reason::Reload | Reason::Setup | Reason::Start => now,
        }
    }
}

/// When files are read again that were as before: whoever touches one without a pause costs no more
/// than a look a second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Readings {
    last: Option<Instant>,
    /// How many in a row found nothing new.
    in_vain: u32,
}

/// After the first that found nothing new; then twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// An edit waits no longer for it.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl Readings {
    /// Remembers a reading that files asked for, and whether it led to anything.
    pub(super) fn note(&mut self, anything: bool, now: Instant) {
        let in_a_row = self.last.is_some_and(|last| now < last + 2 * LONGEST_PAUSE);
        self.in_vain = match (anything, in_a_row) {
            (true, _) => 0,
            (false, true) => self.in_vain.saturating_add(1),
            (false, false) => 1,
        };
        self.last = Some(now);
    }

    /// `None`: at once.
    pub(super) fn not_before(self) -> Option<Instant> {
        let doublings = self.in_vain.checked_sub(1)?;
        let pause = FIRST_PAUSE * 2_u32.pow(doublings.min(10));
        Some(self.last? + pause.min(LONGEST_PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::base_report;
    use crate::reconcile::report::Step;

    fn after(ms: f64, reason: Reason, now: Instant) -> Pace {
        let mut report = base_report(1);
        report.steps = [StepName::Test, StepName::Reload]
            .map(|step| Step {
                step,
                ms: ms / 2.0,
                detail: String::new(),
            })
            .into();
        let mut pace = Pace::default();
        pace.note(&report, reason, now);
        pace
    }

    #[test]
    fn edits_wait_a_second_or_twice_as_long_as_a_reload_and_certificates_only_the_latter() {
        let now = Instant::now();
        let wait = |ms, reason| {
            let pace = after(ms, Reason::File, now);
            pace.not_before(reason, false, now) - now
        };
        assert_eq!(wait(40.0, Reason::File), Duration::from_secs(1));
        assert_eq!(wait(3000.0, Reason::File), Duration::from_secs(6));
        assert_eq!(wait(40.0, Reason::Certificate), Duration::from_millis(80));
        for reason in [Reason::Reload, Reason::Start] {
            assert_eq!(wait(3000.0, reason), Duration::ZERO);
        }
    }

    #[test]
    fn a_users_rollback_and_reload_wait_as_edits_do_and_roots_rollback_a_second() {
        let now = Instant::now();
        let wait = |reason, by_users| {
            let pace = after(3000.0, Reason::File, now);
            pace.not_before(reason, by_users, now) - now
        };
        for reason in [Reason::Reload, Reason::Rollback] {
            assert_eq!(wait(reason, true), wait(Reason::File, false));
        }
        assert_eq!(wait(Reason::Rollback, false), REST);
    }

    #[test]
    fn after_a_failure_edits_wait_a_second_however_long_it_took() {
        let now = Instant::now();
        let mut report = base_report(1);
        report.error = Some("a port is taken".into());
        report.steps = vec![Step {
            step: StepName::Reload,
            ms: 2600.0,
            detail: String::new(),
        }];
        let mut pace = Pace::default();
        pace.note(&report, Reason::File, now);
        assert_eq!(pace.not_before(Reason::File, false, now) - now, REST);
    }

    #[test]
    fn certificates_that_our_own_ca_signs_one_by_one_are_served_together_and_hold_up_no_edit() {
        let now = Instant::now();
        let pace = after(40.0, Reason::Certificate, now);
        let wait = |reason, being_signed| pace.not_before(reason, being_signed, now) - now;
        assert_eq!(wait(Reason::Certificate, true), SIGNING);
        assert_eq!(wait(Reason::Certificate, false), Duration::from_millis(80));
        assert_eq!(wait(Reason::File, true), Duration::from_millis(80));
        // what was edited before rests as long as ever
        let mut edited = after(40.0, Reason::File, now);
        let later = now + Duration::from_millis(300);
        edited.last = after(40.0, Reason::Certificate, later).last;
        assert_eq!(edited.not_before(Reason::File, true, later), now + REST);
    }

    #[test]
    fn readings_in_vain_wait_twice_as_long_each_time_up_to_a_second() {
        let mut readings = Readings::default();
        let mut now = Instant::now();
        assert_eq!(readings.not_before(), None);
        for pause in [100, 200, 400, 800, 1000, 1000] {
            readings.note(false, now);
            let next = now + Duration::from_millis(pause);
            assert_eq!(readings.not_before(), Some(next), "{pause}");
            now = next;
        }
        readings.note(true, now);
        assert_eq!(readings.not_before(), None);
        readings.note(false, now);
        assert_eq!(readings.not_before(), Some(now + FIRST_PAUSE));
        // what was long ago is no row
        now += 10 * LONGEST_PAUSE;
        readings.note(false, now);
        assert_eq!(readings.not_before(), Some(now + FIRST_PAUSE));
    }

    #[test]
    fn the_first_and_what_reloads_nothing_wait_for_nobody() {
        let now = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.not_before(Reason::File, false, now), now);
        pace.note(&base_report(1), Reason::File, now);
        assert_eq!(pace.not_before(Reason::File, false, now), now);
    }
}
