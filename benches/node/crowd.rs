//! A node that fills up: what is measured of one pod when 1, 100 and 1000 are there, and of all of them at once.

use std::time::{Duration, Instant};

use cni_quarantine::internals::Nft;
use serde_json::{Value, json};

use crate::isolation::{NSENTER, nsenter_isolate, nsenter_release};
use crate::node::{Agent, Node, Pod, wait_for};
use crate::report::Section;
use crate::stream::{Stream, now};
use crate::{Effort, Outcome};

/// The first number of the crowd, and that of the pods that come and go.
const FIRST: u32 = 1000;
const GUESTS: u32 = 900;

/// How many of them. Each comes and goes once with each size of the crowd: a pod that starts has a network namespace in which nothing
/// was deleted a moment ago. In one that is used again at once, nf_tables makes whoever comes next wait for an RCU grace period.
const ROUNDS: usize = 30;

/// Which of its sections are wanted.
pub(crate) struct Wanted {
    pub(crate) growth: bool,
    pub(crate) last_packet: bool,
    pub(crate) burst: bool,
}

pub(crate) fn measure(node: &Node, effort: &Effort, wanted: &Wanted) -> Outcome<Vec<Section>> {
    let mut growth = Section::new("growth", "Growth: sandboxes on the node, rules in the policy");
    let mut last_packet = Section::new("last-packet", "From the mark to the last packet that arrives");
    let mut burst = Section::new("burst", "Marks for all sandboxes of the node at once");
    let guests = node.pods(GUESTS..GUESTS + u32::try_from(effort.runs(ROUNDS))?)?;
    if wanted.growth {
        allow_rules(node, &guests, &mut growth)?;
    }
    let mut crowd: Vec<Pod> = Vec::new();
    for size in effort.crowd() {
        let have = u32::try_from(crowd.len())?;
        let more = node.pods(FIRST + have..FIRST + size)?;
        let before = kernel_memory()?;
        for pod in &more {
            node.plugin("ADD", pod, None).run()?;
        }
        if wanted.growth && more.len() > 100 {
            let each = (kernel_memory()? - before) / more.len() as f64;
            growth.push("kernel memory of a released pod", &named(*size), "KiB", each);
        }
        crowd.extend(more);
        let named = named(*size);
        if wanted.growth {
            comings_and_goings(node, &guests, &named, &mut growth)?;
        }
        if !wanted.last_packet && !wanted.burst {
            continue;
        }
        let agent = node.agent()?;
        if wanted.last_packet {
            last_packets(node, effort, &crowd[0], &named, &mut last_packet)?;
        }
        if wanted.burst && crowd.len() > 1 {
            all_at_once(node, effort, &agent, &crowd, &named, &mut burst)?;
        }
    }
    growth.notes.push(
        "Before each step it is waited until the kernel has freed what the step before deleted, and has written what it wrote; \
         whoever comes right behind it waits for that, up to 20 ms."
            .to_owned(),
    );
    last_packet.notes.push(
        "A sender in the pod sends a datagram about every 70 µs; the kernel's stamp of the last that arrives at the \
         node is compared with the moment before the mark was renamed into place (or the first command started)."
            .to_owned(),
    );
    Ok([(wanted.growth, growth), (wanted.last_packet, last_packet), (wanted.burst, burst)]
        .into_iter()
        .filter_map(|(is_wanted, section)| is_wanted.then_some(section))
        .collect())
}

fn named(size: u32) -> String {
    format!("{size} on the node")
}

/// What the kernel has allocated for no cache of a kind of its own, in KiB: that is where rules, chains and tables are, and not
/// what files and directories take.
fn kernel_memory() -> Outcome<f64> {
    let mut bytes = 0.0;
    for line in std::fs::read_to_string("/proc/slabinfo")?.lines().filter(|line| line.starts_with("kmalloc-")) {
        let mut words = line.split_whitespace().skip(1);
        let mut number = || words.next().ok_or("slabinfo is not as expected")?.parse::<f64>().map_err(|_| "no number");
        let (used, _, length) = (number()?, number()?, number()?);
        bytes += used * length;
    }
    Ok(bytes / 1024.0)
}

/// Waits for what the step before left to the kernel: whoever comes right behind it would wait for that in its stead. What was
/// deleted is freed after an RCU grace period, for which the close of any socket of nf_tables waits (`nft_rcv_nl_event`); and the
/// files of an ADD are in the journal of the file system that the next mark is to be kept in.
fn let_settle() -> Outcome<()> {
    drop(Nft::open()?);
    nix::unistd::sync();
    Ok(())
}

/// ADD, isolate, release, DEL of one pod more.
fn comings_and_goings(node: &Node, guests: &[Pod], named: &str, section: &mut Section) -> Outcome<()> {
    for guest in guests {
        let steps = [
            ("ADD", node.plugin("ADD", guest, None)),
            ("isolate", node.command(["isolate", &guest.container_id])),
            ("release", node.command(["release", &guest.container_id])),
            ("DEL", node.plugin("DEL", guest, None)),
        ];
        for (measure, program) in &steps {
            let_settle()?;
            section.push(measure, named, "ms", program.milliseconds()?);
        }
    }
    Ok(())
}

/// ADD and isolate with policies of different length.
fn allow_rules(node: &Node, guests: &[Pod], section: &mut Section) -> Outcome<()> {
    let policies = [1_u32, 16, 256].map(|count| {
        let allow: Vec<Value> = (0..count)
            .map(|rule| {
                json!({
                    "direction": "egress",
                    "peer": format!("10.20.{}.{}/32", rule / 250, 1 + rule % 250),
                    "protocol": "tcp",
                    "ports": [443],
                })
            })
            .collect();
        (format!("{count} allow rules"), json!({ "allow": allow }))
    });
    // Each policy has all guests in turn: the next one's was not the last one's.
    for (named, policy) in &policies {
        for guest in guests {
            let steps = [
                ("ADD, by rules", node.plugin("ADD", guest, Some(policy))),
                ("isolate, by rules", node.command(["isolate", &guest.container_id])),
                ("release, by rules", node.command(["release", &guest.container_id])),
                ("DEL, by rules", node.plugin("DEL", guest, Some(policy))),
            ];
            for (measure, program) in &steps {
                let_settle()?;
                section.push(measure, named, "ms", program.milliseconds()?);
            }
        }
    }
    Ok(())
}

/// The same pod is isolated by a mark and by the commands of others, in turn, while it sends.
fn last_packets(node: &Node, effort: &Effort, pod: &Pod, named: &str, section: &mut Section) -> Outcome<()> {
    let stream = Stream::start(pod)?;
    let (isolate, release) = (nsenter_isolate(pod), nsenter_release(pod));
    for _ in 0..effort.toggles() {
        stream.wait_until_it_flows()?;
        let mark = node.prepare_mark(pod)?;
        let start = now();
        mark.set()?;
        section.push(named, "quarantine agent", "ms", stream.last_arrival_after(start)?);
        let before = stream.count();
        mark.remove()?;
        wait_for("the release", || Ok(stream.count() > before))?;

        let start = now();
        for program in &isolate {
            program.run()?;
        }
        section.push(named, NSENTER, "ms", stream.last_arrival_after(start)?);
        for program in &release {
            program.run()?;
        }
    }
    Ok(())
}

/// A mark for each pod, as fast as they can be renamed into place.
fn all_at_once(
    node: &Node,
    effort: &Effort,
    agent: &Agent,
    crowd: &[Pod],
    named: &str,
    section: &mut Section,
) -> Outcome<()> {
    let mut rules = crowd.iter().map(Pod::rules).collect::<Outcome<Vec<_>>>()?;
    for round in 0..effort.bursts() {
        let marks = crowd.iter().map(|pod| node.prepare_mark(pod)).collect::<Outcome<Vec<_>>>()?;
        let started = Instant::now();
        marks.iter().try_for_each(|mark| mark.set())?;
        for rules in &mut rules {
            wait_for("the isolation of all", || rules.are_awake())?;
        }
        section.push(&format!("isolated, {named}"), "quarantine agent", "ms", started.elapsed().as_secs_f64() * 1e3);
        // What it does then is to let through what the policies do, and to read all of it back.
        let opened = (agent.wait_until_idle()? - started).as_secs_f64() * 1e3;
        section.push(&format!("isolated, holes open and read back, {named}"), "quarantine agent", "ms", opened);
        if round == 0 {
            at_rest(node, effort, agent, crowd, named, section)?;
        }
        let started = Instant::now();
        marks.iter().try_for_each(|mark| mark.remove())?;
        for rules in &mut rules {
            wait_for("the release of all", || Ok(!rules.are_awake()?))?;
        }
        section.push(&format!("released, {named}"), "quarantine agent", "ms", started.elapsed().as_secs_f64() * 1e3);
        agent.wait_until_idle()?;
    }
    Ok(())
}

/// What the agent takes while all are isolated and nothing happens, and what `status` says of them.
fn at_rest(
    node: &Node,
    effort: &Effort,
    agent: &Agent,
    crowd: &[Pod],
    named: &str,
    section: &mut Section,
) -> Outcome<()> {
    let status = node.command(["status", "-o", "json"]).output()?;
    let status: Value = serde_json::from_str(&status)?;
    let sandboxes = status["sandboxes"].as_array().ok_or("status has no sandboxes")?;
    let contained = sandboxes.iter().filter(|sandbox| sandbox["verdict"] == "contained").count();
    // Pods of other sections may be isolated beside them.
    if contained < crowd.len() {
        return Err(format!("status says `contained` of {contained} of {}", crowd.len()).into());
    }
    section.push(&format!("agent's memory, {named}, all isolated"), "quarantine agent", "MiB", agent.memory()?);
    agent.wait_until_idle()?;
    let (switches, cpu) = (agent.switches()?, agent.cpu()?);
    let rest = Duration::from_secs(effort.rest());
    std::thread::sleep(rest);
    let switches = agent.switches()? - switches;
    let busy = (agent.cpu()? - cpu).as_secs_f64() / rest.as_secs_f64();
    section.push(&format!("wake-ups in {} s, {named}", rest.as_secs()), "quarantine agent", "", switches as f64);
    section.push(&format!("CPU at rest, {named}"), "quarantine agent", "%", busy * 100.0);
    Ok(())
}
