//! How often: the pauses between tries that fail, and between looks that events ask for. Pure: the time is given.

use std::time::{Duration, Instant};

/// The wait after the first failure of a sandbox; it doubles each time, up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(60);
/// The wait between two looks at the same sandbox that events in it ask for; it doubles each time, up to the longest,
/// whether there was something to repair or not: whoever makes events in a loop gets no more of the processor. The host
/// guard holds meanwhile.
const LOOK_FIRST: Duration = Duration::from_millis(5);
const LOOK_LONGEST: Duration = Duration::from_millis(250);
/// After so long without such a look the next one is a first one again.
pub(super) const LOOKS_FORGOTTEN: Duration = Duration::from_secs(10);

/// A wait that doubles from `first` with each time before, up to `longest`.
fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(longest)
}

/// The tries at a sandbox that failed, one after the other.
#[derive(Debug, Default)]
pub(super) struct Retries(u32);

impl Retries {
    /// One more failed: how long to wait for the next.
    pub(super) fn next_pause(&mut self) -> Duration {
        let pause = doubled(RETRY_FIRST, self.0, RETRY_LONGEST);
        self.0 = self.0.saturating_add(1);
        pause
    }
}

/// The looks at one sandbox that events asked for.
#[derive(Debug, Default)]
pub(super) struct Looks {
    times: u32,
    last: Option<Instant>,
}

impl Looks {
    /// When the look that is asked for now is to be.
    pub(super) fn next(&mut self, now: Instant) -> Instant {
        let when = match self.last {
            Some(last) if now < last + LOOKS_FORGOTTEN => {
                let pause = doubled(LOOK_FIRST, self.times, LOOK_LONGEST);
                self.times = self.times.saturating_add(1);
                now.max(last + pause)
            }
            _ => {
                self.times = 0;
                now
            }
        };
        self.last = Some(when);
        when
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn what_fails_is_tried_ever_more_seldom() {
        let mut retries = Retries::default();
        let pauses: Vec<_> = (0..12).map(|_| retries.next_pause().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000]);
        assert_eq!(Retries(u32::MAX).next_pause(), RETRY_LONGEST);
    }

    /// (when it is asked for, when it is): milliseconds after the first.
    #[test]
    fn looks_are_paced() {
        for (name, asked) in [
            (
                "a storm",
                vec![(0, 0), (0, 5), (5, 15), (15, 35), (35, 75), (75, 155), (155, 315), (315, 565), (565, 815)],
            ),
            ("one now and then is at once", vec![(0, 0), (1000, 1000), (3000, 3000)]),
            ("a quiet time is forgotten", vec![(0, 0), (0, 5), (0, 15), (20_000, 20_000), (20_000, 20_005)]),
        ] {
            let start = Instant::now();
            let mut looks = Looks::default();
            for (at, expected) in asked {
                assert_eq!(looks.next(start + ms(at)) - start, ms(expected), "{name}: asked for at {at}");
            }
        }
    }
}
