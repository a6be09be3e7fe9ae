//! A sender in a pod that never stops, and a receiver on the node that knows when the last packet arrived.

use std::io::IoSliceMut;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt, sockopt};

use crate::Outcome;
use crate::node::{ADDRESS, Pod, wait_for};

/// The pause between two packets.
const PAUSE: Duration = Duration::from_micros(20);
/// After this long without a packet it has ended.
const QUIET: Duration = Duration::from_millis(30);

/// A stream of datagrams out of a pod, until it is dropped.
pub(crate) struct Stream {
    is_over: Arc<AtomicBool>,
    arrivals: Arc<Arrivals>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Arrivals {
    /// When the last one was taken from the wire, in nanoseconds since the epoch, as the kernel stamped it.
    last: AtomicU64,
    count: AtomicU64,
}

impl Stream {
    pub(crate) fn start(pod: &Pod) -> Outcome<Self> {
        let receiver = UdpSocket::bind((ADDRESS, 0))?;
        receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
        setsockopt(&receiver, sockopt::ReceiveTimestampns, &true)?;
        let sender = pod.inside(|| UdpSocket::bind(("0.0.0.0", 0)))??;
        sender.connect(receiver.local_addr()?)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let arrivals = Arc::new(Arrivals::default());
        let (over, seen) = (is_over.clone(), arrivals.clone());
        let receiving = std::thread::spawn(move || {
            while !over.load(SeqCst) {
                if let Some(at) = receive(&receiver) {
                    seen.last.store(at, SeqCst);
                    seen.count.fetch_add(1, SeqCst);
                }
            }
        });
        let over = is_over.clone();
        let sending = std::thread::spawn(move || {
            // SAFETY: takes a number and no memory of ours.
            unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000_u64) };
            while !over.load(SeqCst) {
                let _ = sender.send(b"still here");
                std::thread::sleep(PAUSE);
            }
        });
        Ok(Self { is_over, arrivals, threads: vec![receiving, sending] })
    }

    /// How many packets have arrived.
    pub(crate) fn count(&self) -> u64 {
        self.arrivals.count.load(SeqCst)
    }

    /// Until packets arrive.
    pub(crate) fn wait_until_it_flows(&self) -> Outcome<()> {
        let before = self.count();
        wait_for("a packet", || Ok(self.count() > before + 5))
    }

    /// From `start` until the last packet arrived, in milliseconds; waits until nothing arrives any more.
    pub(crate) fn last_arrival_after(&self, start: u64) -> Outcome<f64> {
        wait_for("the last packet", || {
            let last = self.arrivals.last.load(SeqCst).max(start);
            Ok(now().saturating_sub(last) > u64::try_from(QUIET.as_nanos())?)
        })?;
        Ok(self.arrivals.last.load(SeqCst).saturating_sub(start) as f64 / 1e6)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.is_over.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The clock that the kernel stamps packets by.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn receive(socket: &UdpSocket) -> Option<u64> {
    let mut bytes = [0; 64];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let message = recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty()).ok()?;
    message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::ScmTimestampns(at) => u64::try_from(Duration::from(at).as_nanos()).ok(),
        _ => None,
    })
}
