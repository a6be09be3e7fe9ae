//! What every long-running part needs: how a broken watch comes back, and when to end.

use std::time::Duration;

use kube::runtime::utils::Backoff;

/// The longest pause before a broken watch is tried again. An isolation that waits for it waits as long.
const PAUSE_MAX: Duration = Duration::from_secs(4);
const PAUSE_MIN: Duration = Duration::from_millis(200);

/// Pauses that double, from a fifth of a second to four, and begin anew once the watch works.
#[derive(Debug)]
pub struct Doubling(Duration);

/// The pauses between attempts to watch again.
#[must_use]
pub fn backoff() -> Doubling {
    Doubling(PAUSE_MIN)
}

impl Iterator for Doubling {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = PAUSE_MAX.min(2 * pause);
        Some(pause)
    }
}

impl Backoff for Doubling {
    fn reset(&mut self) {
        self.0 = PAUSE_MIN;
    }
}

/// Ends when the process is told to.
pub async fn ended() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
