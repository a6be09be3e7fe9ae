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

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
