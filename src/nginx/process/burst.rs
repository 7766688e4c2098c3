//! R: which accepting workers may still be of an older configuration, though they came after the
//! signal.
//!
//! nginx starts all workers of a configuration in one burst, sleeps for 100 ms, tells those of the
//! one before to quit (`ngx_master_process_cycle`), and only then reads the next. So where somebody
//! else has asked for a reload a moment before us, the first burst after our signal is of what nginx
//! was reading by then, and the second of what we asked for. Later ones are of nothing older.

use std::fs;
use std::sync::OnceLock;

/// In clock ticks, of which Linux shows a hundred a second to user space.
type Ticks = u64;

/// More than between two workers of one configuration, less than nginx's own pause.
const PAUSE: Ticks = 5;
/// After that long whoever still accepts was not told to quit: a worker that died was replaced.
const SETTLED: Ticks = 100;

/// The first workers that came after the signal.
#[derive(Debug, Default)]
pub(super) struct FirstBurst {
    begin: OnceLock<Ticks>,
}

impl FirstBurst {
    /// Whether a second burst is there and some of the first still accept. `workers`: those that
    /// accept and came after the signal.
    pub(super) fn lingers(&self, workers: &[i32]) -> bool {
        let starts: Vec<Ticks> = workers.iter().filter_map(|pid| started(*pid)).collect();
        uptime().is_some_and(|now| self.overlaps(&starts, now))
    }

    fn overlaps(&self, starts: &[Ticks], now: Ticks) -> bool {
        let (Some(least), Some(most)) = (starts.iter().min(), starts.iter().max()) else {
            return false;
        };
        let end = self.begin.get_or_init(|| *least) + PAUSE;
        let young = now.saturating_sub(*most) < SETTLED;
        young && *least < end && *most >= end
    }
}

fn uptime() -> Option<Ticks> {
    let text = fs::read_to_string("/proc/uptime").ok()?;
    let (seconds, hundredths) = text.split_whitespace().next()?.split_once('.')?;
    Some(seconds.parse::<Ticks>().ok()? * 100 + hundredths.parse::<Ticks>().ok()?)
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
        assert!(!first.overlaps(&[], 979));
        assert!(!first.overlaps(&[980, 981], 985));
        assert!(first.overlaps(&[990, 980, 991, 981], 992));
        assert!(!first.overlaps(&[990, 991], 1000));
        // somebody reloads again and again
        assert!(!first.overlaps(&[990, 991, 1002, 1002], 1003));
    }

    #[test]
    fn a_worker_that_died_and_was_replaced_keeps_nobody_waiting_for_more_than_a_second() {
        let first = FirstBurst::default();
        assert!(!first.overlaps(&[500, 500], 500));
        assert!(first.overlaps(&[500, 600], 601));
        assert!(!first.overlaps(&[500, 600], 700));
    }

    #[test]
    fn a_process_knows_when_it_was_started() {
        let me = i32::try_from(std::process::id()).unwrap();
        let (start, now) = (started(me).unwrap(), uptime().unwrap());
        assert!(start <= now && now - start < 100 * 3600, "{start} {now}");
        assert!(!FirstBurst::default().lingers(&[me, me]));
        assert_eq!(started(-1), None);
    }
}
