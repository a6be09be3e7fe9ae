//! A sender at full speed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::sockets::PacketSocket;
use crate::lab::Netns;

/// Sends one frame over and over until it is dropped.
pub(crate) struct Flood {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    pub(crate) fn start(from: &Netns, ifname: &str, frames: Vec<Vec<u8>>) -> Self {
        let socket = PacketSocket::open(from, ifname);
        let sent = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (count, stopped) = (sent.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            yield_to_others();
            while !stopped.load(Ordering::Relaxed) {
                for frame in &frames {
                    // ENOBUFS is what a drop on the way out looks like to a packet socket.
                    let _ = socket.send(frame);
                }
                count.fetch_add(frames.len() as u64, Ordering::Relaxed);
            }
        });
        Self { sent, stop, thread: Some(thread) }
    }

    /// How many were sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// The calling thread takes all the time that nobody else wants, and no more: tests run side by side.
fn yield_to_others() {
    // SAFETY: three numbers; 0 is the calling thread, and being nicer is always allowed.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 15) };
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
