//! R: which accepting workers may still be of an older configuration, though they came after the
//! signal.
//!
//! nginx starts all workers of a configuration in one burst, sleeps for 100 ms, tells those of the
//! one before to quit (`ngx_master_process_cycle`), and only then reads the next. So where somebody
//! else has asked for a reload a moment before us, the first burst after our signal is of what nginx
//! was reading by then, and the second of what we asked for. Later ones are of nothing older.

use std::fs;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// In clock ticks, of which Linux shows a hundred a second to user space.
type Ticks = u64;

/// More than between two workers of one configuration, less than nginx's own pause.
const PAUSE: Ticks = 5;
/// Who accepts for longer was not told to quit: a worker that died was replaced.
const PATIENCE: Duration = Duration::from_secs(1);

/// The first workers that came after the signal.
#[derive(Debug, Default)]
pub(super) struct FirstBurst {
    begin: OnceLock<Ticks>,
    /// When a second burst was first seen beside it.
    overlapped: OnceLock<Instant>,
}

impl FirstBurst {
    /// Whether a second burst is there and some of the first still accept. `workers`: those that
    /// accept and came after the signal.
    pub(super) fn lingers(&self, workers: &[i32]) -> bool {
        let starts: Vec<Ticks> = workers.iter().filter_map(|pid| started(*pid)).collect();
        self.overlaps(starts) && self.overlapped.get_or_init(Instant::now).elapsed() < PATIENCE
    }

    fn overlaps(&self, mut starts: Vec<Ticks>) -> bool {
        starts.sort_unstable();
        let (Some(least), Some(most)) = (starts.first(), starts.last()) else {
            return false;
        };
        let begin = *self.begin.get_or_init(|| *least);
        // many workers take their time, one after the other
        let end = starts
            .iter()
            .fold(begin + PAUSE, |end, start| match *start < end {
                true => end.max(start + PAUSE),
                false => end,
            });
        *least < end && *most >= end
    }
}

/// proc(5), `/proc/PID/stat`: the 22nd field; the second, in parentheses, may hold anything.
fn started(pid: i32) -> Option<Ticks> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_burst_is_waited_for_once_a_second_is_there_and_later_ones_are_not() {
        let first = FirstBurst::default();
        assert!(!first.overlaps(vec![]));
        assert!(!first.overlaps(vec![980, 981]));
        assert!(first.overlaps(vec![990, 980, 991, 981]));
        assert!(!first.overlaps(vec![990, 991]));
        // somebody reloads again and again
        assert!(!first.overlaps(vec![990, 991, 1002, 1002]));
    }

    #[test]
    fn workers_that_are_started_slowly_one_after_the_other_are_one_burst() {
        let first = FirstBurst::default();
        assert!(!first.overlaps(vec![100]));
        assert!(!first.overlaps(vec![100, 103, 106, 109, 112]));
        assert!(first.overlaps(vec![100, 103, 106, 109, 112, 122]));
    }

    #[test]
    fn a_process_knows_when_it_was_started() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(started(me).is_some_and(|ticks| ticks > 0));
        assert!(!FirstBurst::default().lingers(&[me, me]));
        assert_eq!(started(-1), None);
    }
}
