//! One question and its answer over an ordinary socket: the way a policy is asked what it lets through.
//!
//! Many exchanges go at once, so that all that must stay unanswered share one wait.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::sockets::{address, at_an_address_used_before};
use crate::lab::{Netns, PATIENCE};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

/// A client, a server, a port, and whether the server should be reached.
pub(crate) struct Exchange<'a> {
    pub(crate) name: String,
    pub(crate) client: Client<'a>,
    pub(crate) server: &'a Netns,
    pub(crate) address: IpAddr,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) expected: bool,
}

/// Whose socket asks.
pub(crate) enum Client<'a> {
    /// One of the test's own, in this network namespace.
    In(&'a Netns),
    /// This one, which another process has made: it is of that one's cgroup.
    Made(Socket),
}

/// How far it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// The server saw nothing.
    Silence,
    /// The question arrived; its answer did not.
    Asked,
    Answered,
}

struct Running {
    server: Socket,
    accepted: Option<Socket>,
    client: Socket,
    asked: bool,
    outcome: Outcome,
}

/// Runs them all; gives those that did not end as expected: answered, or without a trace.
pub(crate) fn surprises(exchanges: &[Exchange<'_>], silence: Duration) -> Vec<(String, Outcome)> {
    let mut running: Vec<Running> = exchanges.iter().map(Running::start).collect();
    let begun = Instant::now();
    loop {
        let mut waiting = false;
        for (exchange, run) in exchanges.iter().zip(&mut running) {
            run.step(exchange.protocol);
            waiting |= exchange.expected && run.outcome != Outcome::Answered;
        }
        // Names that must resolve and segments that must be sent again get their time; silence is only so long.
        let limit = if waiting { PATIENCE } else { silence };
        if begun.elapsed() >= limit {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let wrong = |(exchange, run): (&Exchange<'_>, &Running)| {
        let expected = if exchange.expected { Outcome::Answered } else { Outcome::Silence };
        (run.outcome != expected).then(|| (exchange.name.clone(), run.outcome))
    };
    exchanges.iter().zip(&running).filter_map(wrong).collect()
}

impl Running {
    fn start(exchange: &Exchange<'_>) -> Self {
        let domain = if exchange.address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let kind = if exchange.protocol == Protocol::Tcp { Type::STREAM } else { Type::DGRAM };
        let to: SocketAddr = (exchange.address, exchange.port).into();
        let server = exchange.server.run(|| {
            let socket = Socket::new(domain, kind, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.set_nonblocking(true).unwrap();
            // The round before had its servers there.
            at_an_address_used_before(|| {
                socket.bind(&address(to.ip(), to.port()))?;
                if exchange.protocol == Protocol::Tcp { socket.listen(8) } else { Ok(()) }
            })
            .unwrap_or_else(|error| panic!("{to}: {error}"));
            socket
        });
        let client = match &exchange.client {
            Client::In(netns) => netns.run(|| Socket::new(domain, kind, None).unwrap()),
            Client::Made(socket) => socket.try_clone().unwrap(),
        };
        client.set_nonblocking(true).unwrap();
        let _ = client.connect(&to.into());
        // No socket here may linger on its port when it is closed: the next round wants it.
        if exchange.protocol == Protocol::Tcp {
            client.set_linger(Some(Duration::ZERO)).unwrap();
        }
        Self { server, accepted: None, client, asked: false, outcome: Outcome::Silence }
    }

    fn step(&mut self, protocol: Protocol) {
        if self.outcome == Outcome::Answered {
            return;
        }
        let mut buffer = [0; 64];
        if !self.asked || protocol == Protocol::Udp && self.outcome == Outcome::Silence {
            self.asked |= self.client.write(b"question").is_ok();
        }
        match protocol {
            Protocol::Tcp => {
                if self.accepted.is_none()
                    && let Ok((socket, _)) = self.server.accept()
                {
                    socket.set_nonblocking(true).unwrap();
                    socket.set_linger(Some(Duration::ZERO)).unwrap();
                    self.outcome = Outcome::Asked;
                    self.accepted = Some(socket);
                }
                if let Some(socket) = &mut self.accepted
                    && socket.read(&mut buffer).is_ok_and(|length| length > 0)
                {
                    let _ = socket.write(b"answer");
                }
            }
            Protocol::Udp => {
                // SAFETY: u8 and MaybeUninit<u8> have one layout, and recv_from only writes initialised bytes.
                let uninit = unsafe { &mut *(&raw mut buffer as *mut [std::mem::MaybeUninit<u8>; 64]) };
                if let Ok((_, from)) = self.server.recv_from(uninit) {
                    self.outcome = Outcome::Asked;
                    let _ = self.server.send_to(b"answer", &from);
                }
            }
        }
        if self.client.read(&mut buffer).is_ok_and(|length| length > 0) {
            self.outcome = Outcome::Answered;
        }
    }
}
