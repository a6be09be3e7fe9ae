//! An isolated pod whose root flushes all rules as fast as the kernel lets it: what the agent spends on it, and whether
//! anything gets out.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use cni_quarantine::internals::{Socket, append_message};
use nix::sys::socket::SockProtocol;

use crate::node::{Node, wait_for};
use crate::report::Section;
use crate::stream::Stream;
use crate::{Effort, Outcome};

pub(crate) fn measure(node: &Node, effort: &Effort) -> Outcome<Section> {
    let mut section = Section::new("tampering", "Root in the isolated pod flushes the rules in a loop");
    let pod = node.pods(40..41)?.remove(0);
    node.plugin("ADD", &pod, None).run()?;
    let agent = node.agent()?;
    let stream = Stream::start(&pod)?;
    stream.wait_until_it_flows()?;
    node.command(["isolate", &pod.container_id]).run()?;
    agent.wait_until_idle()?;
    let before = stream.count();
    let mut socket = pod.inside(|| Socket::open(SockProtocol::NetlinkNetFilter))??;
    let (is_over, flushes) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| -> Outcome<()> {
        scope.spawn(|| {
            while !is_over.load(SeqCst) {
                if flush_everything(&mut socket).is_ok() {
                    flushes.fetch_add(1, SeqCst);
                }
            }
        });
        let measured = (|| {
            for _ in 0..effort.runs(30) {
                let (started, cpu, count) = (Instant::now(), agent.cpu()?, flushes.load(SeqCst));
                std::thread::sleep(Duration::from_millis(200));
                let elapsed = started.elapsed().as_secs_f64();
                let busy = (agent.cpu()? - cpu).as_secs_f64();
                section.push("CPU of one core", "quarantine agent", "%", busy / elapsed * 100.0);
                let rate = (flushes.load(SeqCst) - count) as f64 / elapsed;
                section.push("flushes in a second", "the attacker", "", rate);
            }
            Ok(())
        })();
        is_over.store(true, SeqCst);
        measured
    })?;
    section.push("datagrams that got out meanwhile", "the pod", "", (stream.count() - before) as f64);
    let mut rules = pod.rules()?;
    let started = Instant::now();
    wait_for("the last repair", || rules.are_awake())?;
    section.push("last flush to rules awake again", "quarantine agent", "ms", started.elapsed().as_secs_f64() * 1e3);
    Ok(section)
}

/// What `nft flush ruleset` says to the kernel, without the process.
fn flush_everything(socket: &mut Socket) -> Outcome<()> {
    const BATCH_BEGIN: u16 = 0x10;
    const BATCH_END: u16 = 0x11;
    const DELTABLE: u16 = 10 << 8 | 2;
    const REQUEST: u16 = 1;
    const ACKNOWLEDGE: u16 = 4;
    let first = socket.sequences(3);
    let mut bytes = Vec::new();
    let subsystem = [0, 0, 0, 10];
    append_message(&mut bytes, BATCH_BEGIN, REQUEST, first, |body| body.extend(subsystem));
    append_message(&mut bytes, DELTABLE, REQUEST | ACKNOWLEDGE, first + 1, |body| body.extend([0; 4]));
    append_message(&mut bytes, BATCH_END, REQUEST, first + 2, |body| body.extend(subsystem));
    socket.send(&[std::io::IoSlice::new(&bytes)])?;
    let _ = socket.receive_datagram()?.count();
    Ok(())
}
