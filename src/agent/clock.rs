//! What the agent has to do at a time of its own, whatever happens.

use std::time::{Duration, Instant};

/// When the two are due.
pub(super) struct Clock {
    /// How often systemd wants to hear that the loop runs.
    pub(super) watchdog: Option<Duration>,
    pub(super) ping: Option<Instant>,
    pub(super) resync: Instant,
}

impl Clock {
    pub(super) fn started(resync_pause: Duration) -> Self {
        let now = Instant::now();
        let watchdog = sd_notify::watchdog_enabled().map(|interval| interval / 2);
        Self { watchdog, ping: watchdog.map(|interval| now + interval), resync: now + resync_pause }
    }
}
