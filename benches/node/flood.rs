//! What it costs to drop frames, into the pod and out of it, beside whoever else drops them there, and beside the least that
//! a drop at the host's end can cost.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::node::{ADDRESS, Node, Pod};
use crate::report::Section;
use crate::tcx::{Hook, Link};
use crate::{Effort, Outcome};

/// Which way the frames go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Into,
    Out,
}

impl Way {
    fn said(self) -> &'static str {
        match self {
            Self::Into => "into the pod",
            Self::Out => "out of the pod",
        }
    }
}

/// Who drops.
struct Dropper {
    name: &'static str,
    way: Way,
    pod: Pod,
    setup: Setup,
    /// What hangs there as long as this.
    _link: Option<Link>,
}

#[derive(Clone, Copy)]
enum Setup {
    Isolated {
        host_guard: &'static str,
    },
    /// A rule in the pod, in this table and chain.
    Iptables(&'static str, &'static str),
    /// One chain at the host's end with nothing but a drop.
    Nft,
    /// A program there of two instructions.
    Tcx,
    /// Nobody has a use for the frames.
    Nothing,
}

/// Of each way: what is dropped by whom. The last is what sending alone costs.
const INTO: [(&str, Setup); 7] = [
    ("quarantine, with the host guard", Setup::Isolated { host_guard: "auto" }),
    ("nft at the host's end, a drop alone", Setup::Nft),
    ("tcx at the host's end, a drop alone", Setup::Tcx),
    ("quarantine, pod-side alone", Setup::Isolated { host_guard: "off" }),
    ("iptables INPUT DROP", Setup::Iptables("filter", "INPUT")),
    ("iptables raw PREROUTING DROP", Setup::Iptables("raw", "PREROUTING")),
    (NOBODY, Setup::Nothing),
];
const OUT: [(&str, Setup); 4] = [
    ("quarantine", Setup::Isolated { host_guard: "auto" }),
    ("nft at the host's end, a drop alone", Setup::Nft),
    ("tcx at the host's end, a drop alone", Setup::Tcx),
    (NOBODY, Setup::Nothing),
];
const NOBODY: &str = "nobody (EtherType that no one listens to)";

/// Frames as fast as one CPU can send them.
pub(crate) fn flood(node: &Node, effort: &Effort) -> Outcome<Section> {
    let mut section = Section::new("flood", "Dropping a flood of raw frames");
    for (way, subjects, first) in [(Way::Into, &INTO[..], 30), (Way::Out, &OUT[..], 45)] {
        let pods = node.pods(first..first + u32::try_from(subjects.len())?)?;
        let droppers =
            subjects.iter().zip(pods).map(|(&(name, setup), pod)| Dropper::set_up(node, name, way, pod, setup));
        let droppers = droppers.collect::<Outcome<Vec<_>>>()?;
        // One CPU sends and drops, so that its time is that of both.
        let mut one = CpuSet::new();
        one.set(0)?;
        let measured = std::thread::scope(|scope| {
            scope
                .spawn(|| in_turn(node, effort, &droppers, one, &mut section).map_err(|error| error.to_string()))
                .join()
                .map_err(|_| "the flood panicked".to_owned())
        });
        measured??;
        let (whole, dropping) = (whole(way), format!("CPU for dropping each, {}", way.said()));
        let sending = section.series(&whole, NOBODY, "ns").samples.clone();
        for dropper in droppers.iter().filter(|dropper| dropper.name != NOBODY) {
            let each = section.series(&whole, dropper.name, "ns").samples.clone();
            for (whole, sending) in each.iter().zip(&sending) {
                section.push(&dropping, dropper.name, "ns", whole - sending);
            }
        }
    }
    section.notes.push(
        "One CPU sends frames of 60 bytes and drops them; its time for both is divided by the attempts to send. What \
         sending costs where nobody looks at them, which is the row of nobody, is taken off in the tables of dropping. Into \
         the pod 64 frames are sent by each call; out of it one, by whomever it is dropped: what drops in the pod says so \
         to the sender, whose call ends there."
            .to_owned(),
    );
    Ok(section)
}

fn whole(way: Way) -> String {
    format!("CPU for each, {}", way.said())
}

fn in_turn(node: &Node, effort: &Effort, droppers: &[Dropper], cpu: CpuSet, section: &mut Section) -> Outcome<()> {
    sched_setaffinity(Pid::from_raw(0), &cpu)?;
    let softirq = softirq_thread()?;
    let cannons = droppers.iter().map(Cannon::new).collect::<Outcome<Vec<_>>>()?;
    for _ in 0..effort.runs(30) {
        for (dropper, cannon) in droppers.iter().zip(&cannons) {
            let (before, received) = (dropper.dropped(node)?, dropper.received()?);
            let cpu =
                || -> Outcome<Duration> { Ok(cpu_time_of("/proc/thread-self/schedstat")? + cpu_time_of(&softirq)?) };
            let (started, cpu_before) = (Instant::now(), cpu()?);
            let mut tried = 0_u64;
            while started.elapsed() < Duration::from_millis(100) {
                tried += cannon.fire()?;
            }
            // By the CPU's time and not the clock's: whoever else runs takes nothing from the figure.
            let busy = cpu()? - cpu_before;
            let dropped = match dropper.setup {
                // It counts nothing: what did not come to the other side was dropped.
                Setup::Tcx => tried.saturating_sub(dropper.received()? - received),
                _ => dropper.dropped(node)?.map_or(tried, |after| after - before.unwrap_or(0)),
            };
            if dropped * 100 < tried * 95 {
                return Err(format!("{}: {dropped} of {tried} frames dropped", dropper.name).into());
            }
            section.push(&whole(dropper.way), dropper.name, "ns", busy.as_nanos() as f64 / tried as f64);
        }
    }
    Ok(())
}

impl Dropper {
    fn set_up(node: &Node, name: &'static str, way: Way, pod: Pod, setup: Setup) -> Outcome<Self> {
        let end = pod.host_end();
        let mut link = None;
        match setup {
            Setup::Isolated { host_guard } => {
                let entry = json!({ "type": "quarantine", "stateDir": node.state, "hostGuard": host_guard });
                node.call(&node.quarantine, "ADD", &pod, &entry).run()?;
                node.command(["isolate", &pod.container_id]).run()?;
            }
            Setup::Iptables(table, chain) => {
                pod.sh(&format!("iptables -w -t {table} -A {chain} -j DROP"))?;
            }
            Setup::Nft => {
                let hook = if way == Way::Into { "egress" } else { "ingress" };
                let chain =
                    format!("type filter hook {hook} device \"{end}\" priority -500; policy drop; counter drop");
                let table = format!("table netdev {} {{ chain whole {{ {chain}; }}; }}", pod.name());
                crate::process::sh(&format!("echo '{table}' | nft -f -"))?;
            }
            Setup::Tcx => {
                let hook = if way == Way::Into { Hook::Egress } else { Hook::Ingress };
                link = Some(Link::dropping_all(hook, nix::net::if_::if_nametoindex(end.as_str())?)?);
            }
            Setup::Nothing => {}
        }
        Ok(Self { name, way, pod, setup, _link: link })
    }

    /// How many IPv4 packets have come to the network stack that the frames are for.
    fn received(&self) -> Outcome<u64> {
        let read = || fs::read_to_string("/proc/thread-self/net/snmp");
        let statistics = if self.way == Way::Into { self.pod.inside(read)? } else { read() }?;
        let mut of_ip = statistics.lines().filter(|line| line.starts_with("Ip:")).map(str::split_whitespace);
        let (names, mut values) = (of_ip.next().ok_or("no names")?, of_ip.next().ok_or("no values")?);
        let place = names.into_iter().position(|name| name == "InReceives").ok_or("no InReceives")?;
        Ok(values.nth(place).ok_or("too few values")?.parse()?)
    }

    /// How many packets it says that it has dropped, where it counts them.
    fn dropped(&self, node: &Node) -> Outcome<Option<u64>> {
        Ok(match self.setup {
            Setup::Isolated { .. } => {
                let status = node.command(["status", &self.pod.container_id, "-o", "json"]).output()?;
                let status: Value = serde_json::from_str(&status)?;
                let drops = status["drops"].as_array().ok_or("status says no drops")?;
                Some(drops.iter().filter_map(|drop| drop["packets"].as_u64()).sum())
            }
            Setup::Iptables(table, chain) => {
                let listed = self.pod.sh(&format!("iptables -w -t {table} -nvxL {chain}"))?;
                let rule = listed.lines().find(|line| line.contains("DROP ")).ok_or("no rule")?;
                Some(rule.split_whitespace().next().ok_or("no counter")?.parse()?)
            }
            Setup::Nft => {
                let listed = crate::process::sh(&format!("nft list table netdev {}", self.pod.name()))?;
                let mut words = listed.split_whitespace().skip_while(|word| *word != "packets");
                Some(words.nth(1).ok_or("no counter")?.parse()?)
            }
            Setup::Tcx | Setup::Nothing => None,
        })
    }
}

/// The kernel thread that does what the first CPU's sender could not do itself.
fn softirq_thread() -> Outcome<String> {
    for process in fs::read_dir("/proc")? {
        let path = process?.path();
        if fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "ksoftirqd/0") {
            return Ok(path.join("schedstat").display().to_string());
        }
    }
    Ok("/dev/null".to_owned())
}

fn cpu_time_of(schedstat: &str) -> Outcome<Duration> {
    let times = fs::read_to_string(schedstat)?;
    Ok(Duration::from_nanos(times.split_whitespace().next().map_or(Ok(0), str::parse)?))
}

/// A packet socket on one end of a pod's veth, and a frame.
struct Cannon {
    socket: OwnedFd,
    frame: Vec<u8>,
    /// How many frames a call sends. A drop on the way out is said to the sender, and ends its call: where one of those that are
    /// compared drops there, the others must not have calls for many either.
    salvo: u32,
}

const SALVO: u32 = 64;

impl Cannon {
    fn new(dropper: &Dropper) -> Outcome<Self> {
        let frame = frame(dropper)?;
        match dropper.way {
            Way::Into => Self::open(&dropper.pod.host_end(), frame, SALVO),
            Way::Out => dropper
                .pod
                .inside(|| Self::open("eth0", frame, 1).map_err(|error| error.to_string()))?
                .map_err(Into::into),
        }
    }

    fn open(interface: &str, frame: Vec<u8>, salvo: u32) -> Outcome<Self> {
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        let index = nix::net::if_::if_nametoindex(interface)?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: i32::try_from(index)?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: pointer and length are those of `address`, which the kernel reads; the descriptor is ours.
        let result = unsafe {
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t)
        };
        nix::errno::Errno::result(result)?;
        Ok(Self { socket, frame, salvo })
    }

    /// Sends a batch of frames; returns how many it tried to send.
    fn fire(&self) -> Outcome<u64> {
        let mut part = libc::iovec { iov_base: self.frame.as_ptr().cast_mut().cast(), iov_len: self.frame.len() };
        // SAFETY: all zero is a valid msghdr: null pointers with lengths of 0.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_iov = &raw mut part;
        message.msg_hdr.msg_iovlen = 1;
        let mut messages = [message; SALVO as usize];
        // SAFETY: no more are sent than there are; all point to `part`, and it to the frame, which both outlive the call and are only read.
        let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), self.salvo, 0) };
        if sent > 0 {
            return Ok(u64::from(sent.unsigned_abs()));
        }
        match std::io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(1),
            error => Err(error.into()),
        }
    }
}

/// A UDP datagram that nothing answers.
fn frame(dropper: &Dropper) -> Outcome<Vec<u8>> {
    let address = |text: &str| -> Outcome<[u8; 4]> { Ok(text.parse::<std::net::Ipv4Addr>()?.octets()) };
    let (mut ends, mut addresses) =
        ([dropper.pod.mac(), dropper.pod.host_mac()], [address(ADDRESS)?, address(&dropper.pod.address())?]);
    if dropper.way == Way::Out {
        ends.reverse();
        addresses.reverse();
    }
    let mut frame = ends.concat();
    // 0x88b5 is for local experiments.
    frame.extend(if matches!(dropper.setup, Setup::Nothing) { [0x88, 0xb5] } else { [0x08, 0x00] });
    let mut ip = vec![0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0];
    ip.extend(addresses.concat());
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!u16::try_from((sum & 0xffff) + (sum >> 16))?).to_be_bytes());
    frame.extend(ip);
    // Ports 7777, length 26, no checksum.
    frame.extend([0x1e, 0x61, 0x1e, 0x61, 0, 26, 0, 0]);
    frame.resize(60, 0);
    Ok(frame)
}
