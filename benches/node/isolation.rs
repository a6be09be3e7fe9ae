//! Isolate and release of one pod: from the mark to the kernel, and as commands, beside what others do.

use std::time::{Duration, Instant};

use cni_quarantine::internals::Events;
use nix::sys::socket::SockProtocol;
use serde_json::json;

use crate::node::{Node, Pod, Rules, wait_for};
use crate::process::Program;
use crate::report::Section;
use crate::{Effort, Outcome};

/// What security products do.
pub(crate) const NSENTER: &str = "nsenter, iptables";

/// The same command, of a pod that gets eBPF programs too.
const WITH_PROGRAMS: &str = "quarantine, with eBPF programs";

/// The commands of [`NSENTER`] that isolate, one process after the other.
pub(crate) fn nsenter_isolate(pod: &Pod) -> [Program; 2] {
    ["INPUT", "OUTPUT"].map(|chain| nsenter(pod, &["iptables", "-w", "-A", chain, "-j", "DROP"]))
}

/// And those that release.
pub(crate) fn nsenter_release(pod: &Pod) -> [Program; 2] {
    ["INPUT", "OUTPUT"].map(|chain| nsenter(pod, &["iptables", "-w", "-D", chain, "-j", "DROP"]))
}

fn nsenter(pod: &Pod, words: &[&str]) -> Program {
    let net = format!("--net={}", pod.netns);
    Program::new(["nsenter", &net].into_iter().chain(words.iter().copied()))
}

pub(crate) fn measure(node: &Node, effort: &Effort) -> Outcome<Section> {
    let mut section = Section::new("isolation", "Isolate and release one pod");
    let [own, with_agent, iptables, nft, programs]: [Pod; 5] =
        node.pods(10..15)?.try_into().map_err(|_| "five pods were wanted")?;
    for pod in [&own, &with_agent] {
        node.plugin("ADD", pod, None).run()?;
    }
    // Where a datapath takes packets past netfilter, they are attached without being asked for.
    let entry = json!({ "type": "quarantine", "stateDir": node.state, "ebpf": "always" });
    node.call(&node.quarantine, "ADD", &programs, &entry).run()?;
    let [isolate_programs, release_programs] =
        ["isolate", "release"].map(|verb| node.command([verb, &programs.container_id]));
    let isolate = node.command(["isolate", &own.container_id]);
    let release = node.command(["release", &own.container_id]);
    let (awake, guard) = node.rules_for(&own)?;
    let guard = guard.replace(&own.container_id, &nft.container_id).replace(&own.host_end(), &nft.host_end());
    let delete_guard = format!("delete table netdev quarantine-{}\n", nft.container_id);
    let in_pod = nsenter(&nft, &["nft", "-f", "-"]);
    let on_node = Program::new(["nft", "-f", "-"]);
    let nft_isolate = [on_node.clone().with_input(guard), in_pod.clone().with_input(awake)];
    let nft_release = [
        in_pod.with_input("delete table netdev quarantine\ndelete table inet quarantine\n"),
        on_node.with_input(delete_guard),
    ];
    let cases = [
        ("isolate, the command to its exit", "quarantine isolate", std::slice::from_ref(&isolate)),
        ("isolate, the command to its exit", WITH_PROGRAMS, std::slice::from_ref(&isolate_programs)),
        ("isolate, the command to its exit", NSENTER, &nsenter_isolate(&iptables)),
        ("isolate, the command to its exit", "nsenter, nft -f of the same rules", &nft_isolate),
        ("release, the command to its exit", "quarantine release", std::slice::from_ref(&release)),
        ("release, the command to its exit", WITH_PROGRAMS, std::slice::from_ref(&release_programs)),
        ("release, the command to its exit", NSENTER, &nsenter_release(&iptables)),
        ("release, the command to its exit", "nsenter, nft -f of the same rules", &nft_release),
    ];
    for _ in 0..effort.runs(60) {
        for (measure, subject, programs) in &cases {
            let mut sum = 0.0;
            for program in *programs {
                sum += program.milliseconds()?;
            }
            section.push(measure, subject, "ms", sum);
        }
    }

    let agent = node.agent()?;
    let mut rules = with_agent.rules()?;
    let events = with_agent.inside(|| Events::subscribe(SockProtocol::NetlinkNetFilter, NFNLGRP_NFTABLES))??;
    for _ in 0..effort.runs(100) {
        for (measure, is_isolation) in [("mark set to rules awake", true), ("mark removed to rules dormant", false)] {
            let mark = node.prepare_mark(&with_agent)?;
            events.drain(&mut vec![0; 65536], |_, _| {})?;
            let started = Instant::now();
            if is_isolation { mark.set() } else { mark.remove() }?;
            let heard = until_awake(&events, &mut rules, started, is_isolation)?;
            section.push(measure, "quarantine agent", "ms", heard.as_secs_f64() * 1e3);
            agent.wait_until_idle()?;
        }
    }
    drop(agent);
    wait_for("release", || Ok(!rules.are_awake()?))?;
    section.notes.push(
        "A command writes its mark durably (fsync), loads the rules on both sides and reads them back; \
         the others do none of that. The agent reads a mark that somebody else wrote."
            .to_owned(),
    );
    Ok(section)
}

pub(crate) const NFNLGRP_NFTABLES: u32 = 7;

/// How long after `started` it was heard that the rules are awake, or asleep.
pub(crate) fn until_awake(events: &Events, rules: &mut Rules, started: Instant, awake: bool) -> Outcome<Duration> {
    let mut buffer = vec![0; 65536];
    loop {
        wait_readable(events)?;
        let heard = started.elapsed();
        events.drain(&mut buffer, |_, _| {})?;
        if rules.are_awake()? == awake {
            return Ok(heard);
        }
    }
}

fn wait_readable(events: &Events) -> Outcome<()> {
    use nix::poll::{PollFd, PollFlags, poll};
    use std::os::fd::AsFd;
    let patience = u16::try_from(Duration::from_secs(10).as_millis())?;
    match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], patience)? {
        0 => Err("nothing was done for 10 s".into()),
        _ => Ok(()),
    }
}
