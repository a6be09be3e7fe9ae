//! What packets cost: those of a pod that is released, and those that are dropped.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::node::{ADDRESS, Node, Pod};
use crate::report::Section;
use crate::{Effort, Outcome};

/// Throughput and latency of two pods, one of them with the plugin.
pub(crate) fn released(node: &Node, effort: &Effort) -> Outcome<Section> {
    let mut section = Section::new("released", "What a released pod pays");
    let [with, without]: [Pod; 2] = node.pods(20..22)?.try_into().map_err(|_| "two pods were wanted")?;
    node.plugin("ADD", &with, None).run()?;
    let subjects = [("without the plugin", &without), ("with the plugin, released", &with)];
    for round in 0..effort.runs(40) {
        for turn in 0..2 {
            // Each is first as often as second.
            let (subject, pod) = subjects[(round + turn) % 2];
            let throughput = throughput(pod, Duration::from_millis(200))?;
            section.push("TCP throughput", subject, "Gbit/s", throughput);
            let (median, late) = latency(pod, 2000)?;
            section.push("request and answer, p50", subject, "µs", median);
            section.push("request and answer, p99", subject, "µs", late);
        }
    }
    // The reference first, whoever was measured first.
    section.series.sort_by_key(|series| (series.measure.clone(), series.subject != subjects[0].0));
    Ok(section)
}

/// A connection from the pod to the node.
fn connection(pod: &Pod) -> Outcome<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((ADDRESS, 0))?;
    let address = listener.local_addr()?;
    let from_pod = pod.inside(|| TcpStream::connect(address))??;
    let (on_node, _) = listener.accept()?;
    from_pod.set_nodelay(true)?;
    on_node.set_nodelay(true)?;
    Ok((from_pod, on_node))
}

fn throughput(pod: &Pod, how_long: Duration) -> Outcome<f64> {
    let (mut from_pod, mut on_node) = connection(pod)?;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let bytes = [7; 128 * 1024];
            while from_pod.write_all(&bytes).is_ok() {}
        });
        let mut buffer = vec![0; 256 * 1024];
        let started = Instant::now();
        let mut count = 0;
        while started.elapsed() < how_long {
            count += on_node.read(&mut buffer)?;
        }
        let elapsed = started.elapsed().as_secs_f64();
        // The sender ends by it.
        drop(on_node);
        Ok(count as f64 * 8.0 / elapsed / 1e9)
    })
}

/// Median and 99th percentile, in microseconds, of this many requests and answers.
fn latency(pod: &Pod, count: usize) -> Outcome<(f64, f64)> {
    let (mut from_pod, mut on_node) = connection(pod)?;
    let mut times = crate::report::Series::new("", "", "µs");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut bytes = [0; 64];
            while on_node.read_exact(&mut bytes).and_then(|()| on_node.write_all(&bytes)).is_ok() {}
        });
        let mut bytes = [1; 64];
        for _ in 0..count {
            let started = Instant::now();
            from_pod.write_all(&bytes)?;
            from_pod.read_exact(&mut bytes)?;
            times.samples.push(started.elapsed().as_secs_f64() * 1e6);
        }
        drop(from_pod);
        Ok((times.quantile(0.5), times.quantile(0.99)))
    })
}

/// Who drops, and how it can be asked how much.
struct Dropper {
    name: &'static str,
    pod: Pod,
    setup: Setup,
}

/// Which of them shows what sending alone costs.
const SENDING: usize = 4;

enum Setup {
    Isolated,
    Iptables(&'static str, &'static str),
    /// The pod's own stack has no use for the frames.
    Nothing,
}

/// Frames into pods, as fast as one CPU can send them.
pub(crate) fn flood(node: &Node, effort: &Effort) -> Outcome<Section> {
    let mut section = Section::new("flood", "Dropping a flood of raw frames into the pod");
    let names = [
        ("quarantine, pod-side alone", Setup::Isolated),
        ("quarantine, with the host guard", Setup::Isolated),
        ("iptables INPUT DROP", Setup::Iptables("filter", "INPUT")),
        ("iptables raw PREROUTING DROP", Setup::Iptables("raw", "PREROUTING")),
        ("nobody (EtherType that no one listens to)", Setup::Nothing),
    ];
    let pods = node.pods(30..35)?;
    let droppers: Vec<_> =
        names.into_iter().zip(pods).map(|((name, setup), pod)| Dropper { name, pod, setup }).collect();
    for dropper in &droppers {
        match dropper.setup {
            Setup::Isolated => {
                let guard = if dropper.name.contains("alone") { "off" } else { "auto" };
                let entry = json!({ "type": "quarantine", "stateDir": node.state, "hostGuard": guard });
                node.call(&node.quarantine, "ADD", &dropper.pod, &entry).run()?;
                node.command(["isolate", &dropper.pod.container_id]).run()?;
            }
            Setup::Iptables(table, chain) => {
                dropper.pod.sh(&format!("iptables -w -t {table} -A {chain} -j DROP"))?;
            }
            Setup::Nothing => {}
        }
    }
    // One CPU sends and drops, so that its time is that of both.
    let mut one = CpuSet::new();
    one.set(0)?;
    let measured = std::thread::scope(|scope| {
        scope
            .spawn(|| flood_in_turn(node, effort, &droppers, one, &mut section).map_err(|error| error.to_string()))
            .join()
            .map_err(|_| "the flood panicked".to_owned())
    });
    measured??;
    let sending = section.series("CPU for each", droppers[SENDING].name, "ns").samples.clone();
    for dropper in &droppers[..SENDING] {
        let each = section.series("CPU for each", dropper.name, "ns").samples.clone();
        for (whole, sending) in each.iter().zip(&sending) {
            section.push("CPU for dropping each", dropper.name, "ns", whole - sending);
        }
    }
    section.notes.push(
        "One CPU sends frames of 60 bytes into the pod and drops them there, or before; its time for both is divided \
         by their number. The last row is what sending them costs where nothing looks at them; it is taken off in the \
         last table."
            .to_owned(),
    );
    Ok(section)
}

fn flood_in_turn(
    node: &Node,
    effort: &Effort,
    droppers: &[Dropper],
    cpu: CpuSet,
    section: &mut Section,
) -> Outcome<()> {
    sched_setaffinity(Pid::from_raw(0), &cpu)?;
    let softirq = softirq_thread()?;
    let cannons = droppers.iter().map(Cannon::new).collect::<Outcome<Vec<_>>>()?;
    for _ in 0..effort.runs(30) {
        for (dropper, cannon) in droppers.iter().zip(&cannons) {
            let before = dropper.dropped(node)?;
            let cpu =
                || -> Outcome<Duration> { Ok(cpu_time_of("/proc/thread-self/schedstat")? + cpu_time_of(&softirq)?) };
            let (started, cpu_before) = (Instant::now(), cpu()?);
            let mut sent = 0_u64;
            while started.elapsed() < Duration::from_millis(100) {
                sent += cannon.fire()?;
            }
            let busy = cpu()? - cpu_before;
            let dropped = match dropper.dropped(node)? {
                Some(after) => after - before.unwrap_or(0),
                None => sent,
            };
            if dropped * 100 < sent * 95 {
                return Err(format!("{}: {dropped} of {sent} frames dropped", dropper.name).into());
            }
            // By the CPU's time and not the clock's: whoever else runs takes nothing from the figure.
            section.push(
                "frames dropped in a second of CPU",
                dropper.name,
                "thousand",
                dropped as f64 / busy.as_secs_f64() / 1e3,
            );
            section.push("CPU for each", dropper.name, "ns", busy.as_nanos() as f64 / dropped as f64);
        }
    }
    Ok(())
}

impl Dropper {
    /// How many packets it says that it has dropped.
    fn dropped(&self, node: &Node) -> Outcome<Option<u64>> {
        Ok(match self.setup {
            Setup::Isolated => {
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
            Setup::Nothing => None,
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

/// A packet socket on the node's end of a pod's veth, and a frame.
struct Cannon {
    socket: OwnedFd,
    frame: Vec<u8>,
}

const SALVO: usize = 64;

impl Cannon {
    fn new(dropper: &Dropper) -> Outcome<Self> {
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        let bypass: libc::c_int = 1;
        // SAFETY: pointer and length are those of `bypass`, which the kernel reads; the descriptor is ours.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_QDISC_BYPASS,
                (&raw const bypass).cast(),
                size_of_val(&bypass) as libc::socklen_t,
            )
        };
        nix::errno::Errno::result(result)?;
        let index = nix::net::if_::if_nametoindex(dropper.pod.host_end().as_str())?;
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
        Ok(Self { socket, frame: frame(dropper)? })
    }

    /// Sends a batch of frames; returns how many were sent.
    fn fire(&self) -> Outcome<u64> {
        let mut part = libc::iovec { iov_base: self.frame.as_ptr().cast_mut().cast(), iov_len: self.frame.len() };
        // SAFETY: all zero is a valid msghdr: null pointers with lengths of 0.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_iov = &raw mut part;
        message.msg_hdr.msg_iovlen = 1;
        let mut messages = [message; SALVO];
        // SAFETY: all messages point to `part`, and it to the frame, which both outlive the call and are only read.
        let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), SALVO as u32, 0) };
        if sent > 0 {
            return Ok(u64::from(sent.unsigned_abs()));
        }
        match std::io::Error::last_os_error() {
            // A drop on the way out is said to the sender, after the first frame of each call.
            error if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(1),
            error => Err(error.into()),
        }
    }
}

/// A UDP datagram to the pod that nothing answers.
fn frame(dropper: &Dropper) -> Outcome<Vec<u8>> {
    let address = |text: &str| -> Outcome<[u8; 4]> { Ok(text.parse::<std::net::Ipv4Addr>()?.octets()) };
    let mut frame = dropper.pod.mac().to_vec();
    frame.extend(dropper.pod.host_mac());
    // 0x88b5 is for local experiments.
    frame.extend(if matches!(dropper.setup, Setup::Nothing) { [0x88, 0xb5] } else { [0x08, 0x00] });
    let mut ip = vec![0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0];
    ip.extend(address(ADDRESS)?);
    ip.extend(address(&dropper.pod.address())?);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!u16::try_from((sum & 0xffff) + (sum >> 16))?).to_be_bytes());
    frame.extend(ip);
    // Ports 7777, length 26, no checksum.
    frame.extend([0x1e, 0x61, 0x1e, 0x61, 0, 26, 0, 0]);
    frame.resize(60, 0);
    Ok(frame)
}
