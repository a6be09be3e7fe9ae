//! Long-lived flows: a sender that never stops, a receiver that counts.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::SockRef;

use crate::lab::{Netns, PATIENCE, eventually};

/// How long a cut flow is watched. TCP would have sent again by then (200 ms at first).
const SILENCE: Duration = Duration::from_millis(400);

/// An established flow with traffic on it; ends with the value.
pub(crate) struct Flow {
    pub(crate) name: String,
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Flow {
    /// A TCP connection from `client` to `server`, which sends as fast as it may to whom `upload` says.
    pub(crate) fn tcp(client: &Netns, server: &Netns, address: IpAddr, upload: bool) -> Self {
        let listener = server.run(|| TcpListener::bind((address, 0)).unwrap());
        let to = listener.local_addr().unwrap();
        let near = client.run(|| TcpStream::connect_timeout(&to, PATIENCE).unwrap());
        let (far, _) = listener.accept().unwrap();
        let (sender, receiver) = if upload { (near, far) } else { (far, near) };
        let way = if upload { "up" } else { "down" };
        Self::over_tcp(format!("tcp {way} {to}"), sender, receiver)
    }

    /// Over a connection that is there already.
    pub(crate) fn over_tcp(name: String, mut sender: TcpStream, mut receiver: TcpStream) -> Self {
        for stream in [&sender, &receiver] {
            stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
            // Closed while it is cut, it would wait for its last ACK, and hold its network namespace, for minutes.
            SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        Self::start(
            name,
            // Some pause, for two cores are shared by all tests: it is the packets that matter, not their number.
            move || {
                let _ = sender.write(&[0x51; 1200]);
                std::thread::sleep(Duration::from_micros(500));
            },
            move || receiver.read(&mut [0; 1 << 16]).unwrap_or(0) as u64,
        )
    }

    /// UDP datagrams from one socket to another, without an answer.
    pub(crate) fn udp(from: &Netns, to: &Netns, address: IpAddr) -> Self {
        let receiver = to.run(|| UdpSocket::bind((address, 0)).unwrap());
        let target = receiver.local_addr().unwrap();
        let any: SocketAddr = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
        let sender = from.run(|| UdpSocket::bind(any).unwrap());
        Self::over_udp(format!("udp {target}"), sender, receiver, target)
    }

    /// From one socket to another, which is bound to this address.
    pub(crate) fn over_udp(name: String, sender: UdpSocket, receiver: UdpSocket, target: SocketAddr) -> Self {
        receiver.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        Self::start(
            name,
            move || {
                let _ = sender.send_to(&[0x51; 600], target);
                std::thread::sleep(Duration::from_micros(500));
            },
            move || receiver.recv(&mut [0; 2048]).unwrap_or(0) as u64,
        )
    }

    fn start(
        name: String,
        mut send: impl FnMut() + Send + 'static,
        mut receive: impl FnMut() -> u64 + Send + 'static,
    ) -> Self {
        let received = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (count, stop_sender, stop_receiver) = (received.clone(), stop.clone(), stop.clone());
        let threads = vec![
            std::thread::spawn(move || {
                while !stop_sender.load(Ordering::Relaxed) {
                    send();
                }
            }),
            std::thread::spawn(move || {
                while !stop_receiver.load(Ordering::Relaxed) {
                    count.fetch_add(receive(), Ordering::Relaxed);
                }
            }),
        ];
        Self { name, received, stop, threads }
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Something arrives from now on, on each of them. A TCP flow that was cut for a while may wait for its next try.
    #[track_caller]
    pub(crate) fn assert_all_alive(flows: &[Self]) {
        let mut waiting: Vec<_> = flows.iter().map(|flow| (flow, flow.received())).collect();
        eventually(PATIENCE, || {
            waiting.retain(|(flow, before)| flow.received() == *before);
            waiting.is_empty()
        });
        let dead: Vec<_> = waiting.iter().map(|(flow, _)| &flow.name).collect();
        assert!(dead.is_empty(), "nothing arrives: {dead:?}");
    }

    /// Nothing arrives any more, on any of them, once what had arrived before is read: however long that takes.
    #[track_caller]
    pub(crate) fn await_all_dead(flows: &[Self]) {
        let received = || flows.iter().map(Self::received).collect::<Vec<_>>();
        let rests = eventually(PATIENCE, || {
            let before = received();
            std::thread::sleep(SILENCE);
            before == received()
        });
        assert!(rests, "bytes go on to arrive: {:?}", flows.iter().map(|flow| &flow.name).collect::<Vec<_>>());
    }

    /// Nothing arrives from now on, on any of them.
    #[track_caller]
    pub(crate) fn assert_all_dead(flows: &[Self]) {
        // What had arrived before the cut may still wait in a receive buffer.
        std::thread::sleep(Duration::from_millis(50));
        let before: Vec<u64> = flows.iter().map(Self::received).collect();
        std::thread::sleep(SILENCE);
        for (flow, before) in flows.iter().zip(before) {
            assert_eq!(flow.received(), before, "{}: bytes arrive", flow.name);
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
