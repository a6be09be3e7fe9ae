//! A small HTTP server in a pod, and the probes that a kubelet would send to it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::lab::Netns;

/// Answers every connection with `200 OK`, in both families, until it is dropped.
pub(crate) struct Server {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(netns: &Netns, port: u16) -> Self {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let listener = netns.run(|| TcpListener::bind(any).unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let waiter = std::os::fd::AsFd::as_fd(&listener);
            listener.set_nonblocking(true).unwrap();
            while !stopped.load(Ordering::Relaxed) {
                let mut waiting = [nix::poll::PollFd::new(waiter, nix::poll::PollFlags::POLLIN)];
                let _ = nix::poll::poll(&mut waiting, 20_u8);
                if let Ok((stream, _)) = listener.accept() {
                    answer(stream);
                }
            }
        });
        Self { port, stop, thread: Some(thread) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A client that says nothing (a TCP probe) costs the server no more than its time-out.
fn answer(mut stream: TcpStream) {
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
    let _ = stream.set_write_timeout(Some(Duration::from_millis(200)));
    let read = stream.read(&mut [0; 1024]);
    if read.is_ok_and(|length| length > 0) {
        let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok");
    }
}

/// An HTTP probe from inside a namespace, by the calling thread's user: true if it is answered with 200 in time.
pub(crate) fn http_probe(from: &Netns, to: IpAddr, port: u16, limit: Duration) -> bool {
    from.run(|| http_probe_here(to, port, limit))
}

/// The same in the namespace of the calling thread.
pub(crate) fn http_probe_here(to: IpAddr, port: u16, limit: Duration) -> bool {
    let exchange = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&(to, port).into(), limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.0 200"))
    };
    exchange().unwrap_or(false)
}

/// A TCP probe: it only connects.
pub(crate) fn tcp_probe(from: &Netns, to: IpAddr, port: u16, limit: Duration) -> bool {
    from.run(|| TcpStream::connect_timeout(&(to, port).into(), limit).is_ok())
}
