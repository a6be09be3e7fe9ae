//! An agent that is killed at any moment, over and over, while marks come and go: nobody who stays marked gets a packet
//! out meanwhile, and the next agent finds everything.

use std::fs;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Agent, PATIENCE, added_as, await_tables};
use crate::lab::{Node, Pod, Tables, eventually, rules};

const KILLS: usize = 100;
/// Now and then the storm pauses, and what the next agent makes of it is compared with the marks.
const LOOK_EVERY: usize = 20;

/// Small numbers that differ from run to run; a failure names the seed.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
        Self(u64::from(nanoseconds) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Datagrams from a pod to the node all the time, and who counts them.
struct Stream {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    receiver: UdpSocket,
}

impl Stream {
    fn start(node: &Node, pod: &Pod) -> Self {
        let receiver = node.netns.run(|| UdpSocket::bind((pod.gateway(), 0))).unwrap();
        receiver.set_nonblocking(true).unwrap();
        let sender = pod.netns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        let (sent, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (sent.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let _ = sender.send(b"x");
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        Self { sent, stop, thread: Some(thread), receiver }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// How many arrived since the last call.
    fn arrived(&self) -> usize {
        std::iter::from_fn(|| self.receiver.recv(&mut [0; 8]).ok()).count()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Writes and removes these marks in random order until it is stopped.
struct MarkStorm {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MarkStorm {
    fn start(marks: Vec<PathBuf>, mut random: Random) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let contents =
            ["", r#"{"policy": {"probes": false}}"#, "garbage", r#"{"policy": {"probes": {"ports": [80]}}}"#];
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let mark = &marks[random.below(marks.len() as u64) as usize];
                if random.below(2) == 0 {
                    let _ = fs::remove_file(mark);
                } else {
                    fs::write(mark, contents[random.below(4) as usize]).unwrap();
                }
                std::thread::sleep(Duration::from_micros(random.below(3000)));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for MarkStorm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn killed_a_hundred_times_under_a_storm_of_marks() {
    let mut random = Random::new();
    let seed = random.0;
    let node = Node::new();
    // This one stays isolated by one mark, while others of its marks come and go.
    let prisoner = added_as(&node, "uid-prisoner");
    let others: Vec<_> = (0..6).map(|number| added_as(&node, &format!("uid-{number}"))).collect();
    for pod in others.iter().chain([&prisoner]) {
        assert!(pod.reaches_node(&node), "the control");
    }
    let stream = Stream::start(&node, &prisoner);
    assert!(eventually(PATIENCE, || stream.arrived() > 0), "the control: the stream arrives");
    let agent = Agent::on(&node);
    node.mark("uid-prisoner", "");
    await_tables(&prisoner, Tables::Isolated, "before the storm");
    let whole = rules(&prisoner.netns);
    agent.kill();
    stream.arrived();

    // Name marks would hold for all of them.
    let marks: Vec<_> = others.iter().chain([&prisoner]).map(|pod| node.mark_path(&pod.id)).collect();
    for round in (LOOK_EVERY..=KILLS).step_by(LOOK_EVERY) {
        let storm = MarkStorm::start(marks.clone(), Random(random.0));
        for _ in 0..LOOK_EVERY {
            let agent = Agent::spawn(&node.netns, node.state_dir(), &[]);
            // Now and then before it has even begun, now and then after it has read everything.
            std::thread::sleep(Duration::from_micros(random.below(60_000)));
            agent.kill();
        }
        drop(storm);
        let _ = fs::remove_file(node.mark_path(&prisoner.id));
        let _agent = Agent::on(&node);
        for pod in &others {
            let is_marked = node.mark_path(&pod.id).exists();
            await_tables(
                pod,
                if is_marked { Tables::Isolated } else { Tables::Released },
                &format!("after the storm, seed {seed}"),
            );
        }
        assert!(super::await_kernel(|| rules(&prisoner.netns) == whole), "{:#?}", rules(&prisoner.netns));
        let (sent, arrived) = (stream.sent(), stream.arrived());
        assert_eq!(arrived, 0, "of {sent} from an isolated pod, by kill {round}, seed {seed}");
    }
    for pod in &others {
        let is_marked = node.mark_path(&pod.id).exists();
        assert!(if is_marked { pod.is_cut_off_from(&node) } else { pod.reaches_node(&node) }, "{}", pod.id);
    }
    let _agent = Agent::on(&node);
    fs::remove_file(node.mark_path("uid-prisoner")).unwrap();
    await_tables(&prisoner, Tables::Released, "released");
    assert!(eventually(PATIENCE, || stream.arrived() > 0), "the control: it arrives again");
}

/// What was marked, and released, while no agent ran.
#[test]
fn the_next_agent_finds_what_it_missed() {
    let node = Node::new();
    let (marked, released, damaged) = (added_as(&node, "uid-1"), added_as(&node, "uid-2"), added_as(&node, "uid-3"));
    let agent = Agent::on(&node);
    for uid in ["uid-2", "uid-3"] {
        node.mark(uid, "");
    }
    await_tables(&released, Tables::Isolated, "before");
    await_tables(&damaged, Tables::Isolated, "before");
    let whole = rules(&damaged.netns);
    agent.kill();
    assert_eq!(released.tables(), Tables::Isolated, "it outlives the agent");
    node.mark("uid-1", "");
    fs::remove_file(node.mark_path("uid-2")).unwrap();
    damaged.netns.sh("nft flush ruleset");
    let _agent = Agent::on(&node);
    await_tables(&marked, Tables::Isolated, "marked meanwhile");
    await_tables(&released, Tables::Released, "released meanwhile");
    assert!(super::await_kernel(|| rules(&damaged.netns) == whole), "{:#?}", rules(&damaged.netns));
}
