//! Random walks: operators, root in the pod, the node and the agent do what they can, in any order, and the verdict
//! must never be better than what arrives.
//!
//! After each step packets are sent both ways. If any arrives, `status` is asked and they are sent again: what says
//! `contained` must be so. A walk is a list of steps on a node of its own. One that breaks the rule is made as short as it can be and
//! printed; it goes into `seeds.txt`, which is walked first. `WALK_STEPS` says how many steps are taken (10,000),
//! `WALK_SEED` where the walks begin (1).

mod steps;
mod traffic;
mod world;

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::Value;

use steps::{STEPS, Step};
use world::{Arrivals, Network, World};

/// Steps on one node.
const WALK: usize = 50;
/// Every this many steps the verdict is counted, whatever arrived.
const COUNTED: usize = 10;
/// How often a walk is taken again to make it shorter.
const ATTEMPTS: usize = 120;
const SEEDS: &str = include_str!("seeds.txt");

/// A list of steps, and the network that they are taken on.
#[derive(Clone)]
struct Walk {
    network: Network,
    steps: Vec<&'static Step>,
}

impl Walk {
    /// That of one number. Which steps it has changes when steps are added: what is kept is the list itself.
    fn random(seed: u64) -> Self {
        let mut numbers = Numbers(seed);
        let network = if numbers.below(3) == 0 { Network::Routed } else { Network::Bridged };
        let total = STEPS.iter().map(|step| step.weight).sum();
        let steps = (0..WALK).map(|_| {
            let mut left = numbers.below(total);
            STEPS
                .iter()
                .find(|step| {
                    let is_it = left < step.weight;
                    left = left.saturating_sub(step.weight);
                    is_it
                })
                .unwrap()
        });
        Self { network, steps: steps.collect() }
    }

    /// Reads what is printed of one.
    fn read(line: &str) -> Self {
        let (network, steps) = line.split_once(": ").unwrap_or_else(|| panic!("no walk: {line:?}"));
        let network = [Network::Bridged, Network::Routed].into_iter().find(|one| one.word() == network);
        Self {
            network: network.unwrap_or_else(|| panic!("no network: {line:?}")),
            steps: steps.split_whitespace().map(Step::named).collect(),
        }
    }

    fn take(&self, claim: Claim, count: &Mutex<Count>) -> Option<Lie> {
        let mut world = World::new(self.network);
        for (number, step) in self.steps.iter().enumerate() {
            let _panic = SaidOnPanic { walk: self, at: number };
            step.take(&mut world);
            let arrivals = world.probe(number);
            let has_arrived = arrivals.iter().any(|(_, arrived)| *arrived != Arrivals::default());
            let is_counted = number % COUNTED == COUNTED - 1;
            // Where nothing arrives no verdict is too good, and without a mark none is claimed.
            if !is_counted && claim == Claim::OfStatus && !(has_arrived && world.has_marks()) {
                continue;
            }
            let status = world.status();
            let claims = |id: &String| claim.of(&status, id) == "contained";
            if is_counted {
                let mut count = count.lock().unwrap();
                arrivals.iter().for_each(|(id, arrived)| count.add(Claim::OfStatus.of(&status, id), *arrived));
            }
            if has_arrived && arrivals.iter().any(|(id, _)| claims(id)) {
                // What came before it was said may have been stopped since, by the agent.
                let again = world.probe(number);
                let lie = again.into_iter().find(|(id, arrived)| claims(id) && *arrived != Arrivals::default());
                if let Some((id, arrived)) = lie {
                    return Some(Lie { at: number, id, arrived, status });
                }
            }
        }
        None
    }

    /// A walk with fewer steps that breaks the rule too.
    fn shortened(&self, found: &Lie, claim: Claim) -> (Self, String) {
        let mut shortest = Self { network: self.network, steps: self.steps[..=found.at].to_vec() };
        let mut lie = found.to_string();
        let mut attempts = 0;
        let mut length = shortest.steps.len() / 2;
        while length > 0 {
            let mut start = 0;
            while start < shortest.steps.len() && attempts < ATTEMPTS {
                let mut shorter = shortest.clone();
                shorter.steps.drain(start..shorter.steps.len().min(start + length));
                attempts += 1;
                match shorter.take(claim, &Mutex::default()) {
                    Some(other) => {
                        shorter.steps.truncate(other.at + 1);
                        shortest = shorter;
                        lie = other.to_string();
                    }
                    None => start += length,
                }
            }
            length /= 2;
        }
        (shortest, lie)
    }
}

impl fmt::Display for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.network.word())?;
        self.steps.iter().try_for_each(|step| write!(f, " {}", step.name))
    }
}

/// Says which walk it was that panicked, and where.
struct SaidOnPanic<'a> {
    walk: &'a Walk,
    at: usize,
}

impl Drop for SaidOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let steps = self.walk.steps[..=self.at].to_vec();
            let walk = Walk { steps, ..*self.walk };
            // In one piece, beside those of other threads.
            let text = format!("the panic was at the last step of this walk:\n{walk}\n");
            eprint!("{text}");
        }
    }
}

/// Whose word is taken for the verdict.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Claim {
    OfStatus,
    /// Of somebody who always says that all is well: the control.
    Contained,
}

impl Claim {
    fn of<'a>(self, status: &'a Value, id: &str) -> &'a str {
        if self == Self::Contained {
            return "contained";
        }
        let sandboxes = status["sandboxes"].as_array();
        let of_it = sandboxes.into_iter().flatten().find(|sandbox| sandbox["containerID"] == id);
        of_it.and_then(|sandbox| sandbox["verdict"].as_str()).unwrap_or("nothing")
    }
}

/// What arrived although the verdict was `contained`.
struct Lie {
    at: usize,
    id: String,
    arrived: Arrivals,
    status: Value,
}

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {} after step {}, when status said:\n{:#}", self.arrived, self.id, self.at, self.status)
    }
}

/// What was seen, to be sure that something was.
#[derive(Debug, Default)]
struct Count {
    looks: u64,
    contained: u64,
    partial: u64,
    open: u64,
    arrived_out: u64,
    arrived_in: u64,
}

impl Count {
    fn add(&mut self, verdict: &str, arrived: Arrivals) {
        self.looks += 1;
        self.contained += u64::from(verdict == "contained");
        self.partial += u64::from(verdict == "partial");
        self.open += u64::from(verdict == "open");
        self.arrived_out += u64::from(arrived.out > 0);
        self.arrived_in += u64::from(arrived.into > 0);
    }
}

/// SplitMix64: small, and the same everywhere.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: no number")))
}

/// Gives each of these to a thread that stays on a CPU of its own, until one finds something; what was found.
fn on_each_cpu<T: Send>(next: impl Fn() -> Option<Walk> + Sync, work: impl Fn(Walk) -> Option<T> + Sync) -> Vec<T> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let cpus = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap());
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        // A step waits for the kernel half of its time: a second thread uses that.
        for cpu in cpus.flat_map(|cpu| [cpu; 2]) {
            let (next, work, found) = (&next, &work, &found);
            scope.spawn(move || {
                let mut only = CpuSet::new();
                only.set(cpu).unwrap();
                sched_setaffinity(Pid::from_raw(0), &only).unwrap();
                while let Some(walk) = next() {
                    if let Some(result) = work(walk) {
                        found.lock().unwrap().push(result);
                    }
                }
            });
        }
    });
    found.into_inner().unwrap()
}

/// Takes random walks until `steps` are done or one breaks the rule; returns that one, shortened.
fn random_walks(steps: u64, seed: u64, claim: Claim) -> (Option<String>, Count) {
    let count = Mutex::<Count>::default();
    let next = AtomicU64::new(0);
    // Seeds that are close have no walk in common.
    let first = Numbers(seed).below(u64::MAX);
    let is_broken = AtomicU64::new(0);
    let broken = on_each_cpu(
        || {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let is_over = number * WALK as u64 >= steps || is_broken.load(Ordering::Relaxed) > 0;
            (!is_over).then(|| Walk::random(first.wrapping_add(number)))
        },
        |walk| {
            let lie = walk.take(claim, &count)?;
            is_broken.store(1, Ordering::Relaxed);
            let (shortest, shortest_lie) = walk.shortened(&lie, claim);
            Some(format!("{lie}\nin {walk}\n\nmade shorter: {shortest_lie}\nfor seeds.txt:\n{shortest}"))
        },
    );
    (broken.into_iter().next(), count.into_inner().unwrap())
}

#[test]
fn no_verdict_is_better_than_what_arrives() {
    let (steps, seed) = (setting("WALK_STEPS", 10_000), setting("WALK_SEED", 1));
    let (broken, count) = random_walks(steps, seed, Claim::OfStatus);
    if let Some(broken) = broken {
        panic!("WALK_SEED={seed}: a verdict was better than what arrived: {broken}");
    }
    eprintln!("{count:?}");
    // Walks on which nothing is ever contained, or nothing ever arrives, would show nothing.
    let Count { looks, contained, partial, open, arrived_out, arrived_in } = count;
    for (what, times, share) in [
        ("contained", contained, 5),
        ("partial", partial, 50),
        ("open", open, 10),
        ("arrivals out", arrived_out, 20),
        ("arrivals in", arrived_in, 20),
    ] {
        assert!(times * share >= looks, "only {times} of {looks} looks saw this: {what}");
    }
}

#[test]
fn walks_that_found_a_fault_once_find_none() {
    let walks: Vec<Walk> =
        SEEDS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(Walk::read).collect();
    let next = AtomicUsize::new(0);
    let broken = on_each_cpu(
        || walks.get(next.fetch_add(1, Ordering::Relaxed)).cloned(),
        |walk| walk.take(Claim::OfStatus, &Mutex::default()).map(|lie| format!("{walk}\n{lie}")),
    );
    assert!(broken.is_empty(), "{} of {} find one again:\n{}", broken.len(), walks.len(), broken.join("\n\n"));
}

/// The control: walks find somebody who lies. Not each of them: in one nothing arrives but before an agent that is being
/// started has come to it, so that which walks do depends on how fast that is.
#[test]
fn who_always_says_contained_is_found_out() {
    let steps = 20 * WALK as u64;
    let (broken, _) = random_walks(steps, 1, Claim::Contained);
    assert!(broken.is_some(), "in {steps} steps nothing arrived");
}
