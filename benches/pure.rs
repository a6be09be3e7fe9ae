//! What takes no system call: `cargo bench`. What users wait for is measured by `scripts/bench`.
#![allow(clippy::unwrap_used, reason = "what is unwrapped is written here")]

use cni_quarantine::internals::Batch;
use cni_quarantine::internals::NodeOnLink;
use cni_quarantine::internals::Table;
use cni_quarantine::internals::{Ebpf, HostGuard};
use cni_quarantine::internals::{EgressHook, GuardedInterface, pod_tables};
use cni_quarantine::internals::{PinnedInterface, Record};
use cni_quarantine::mark::Mark;
use cni_quarantine::names::{
    AttachmentId, ContainerId, IfName, Mac, NetnsPath, NetworkName, Pod, PodUid, Route, SandboxInterface,
};
use cni_quarantine::policy::Policy;
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

/// Lengths of allow-lists.
const RULES: [u32; 3] = [1, 16, 256];

fn mark(rules: u32) -> String {
    let allow: Vec<_> = (0..rules)
        .map(|rule| {
            format!(
                r#"{{"direction":"egress","peer":"10.20.{}.{}/32","protocol":"tcp","ports":[443]}}"#,
                rule / 250,
                1 + rule % 250
            )
        })
        .collect();
    format!(r#"{{"policy":{{"allow":[{}]}},"reason":"beacon","case":"IR-2041","actor":"alice"}}"#, allow.join(","))
}

fn policy(rules: u32) -> Policy {
    Mark::read(mark(rules).as_bytes()).unwrap().policy.unwrap()
}

fn interface() -> SandboxInterface {
    SandboxInterface {
        name: IfName::new("eth0").unwrap(),
        mac: Mac::parse("02:00:00:00:00:02"),
        addresses: vec!["10.77.0.2".parse().unwrap(), "fe80::2".parse().unwrap()],
        routes: vec![Route { destination: "0.0.0.0/0".parse().unwrap(), gateway: Some("10.77.0.1".parse().unwrap()) }],
    }
}

fn node() -> NodeOnLink {
    NodeOnLink {
        addresses: vec!["10.77.0.1".parse().unwrap(), "fe80::1".parse().unwrap()],
        mac: Mac::parse("02:00:00:00:00:01"),
        ..NodeOnLink::default()
    }
}

fn tables(policy: &Policy) -> Vec<Table> {
    let guarded = GuardedInterface { name: IfName::new("eth0").unwrap(), known: Some((interface(), node())) };
    pod_tables(policy, &[guarded], EgressHook::Netdev, true)
}

#[divan::bench(args = RULES)]
fn read_mark(bencher: Bencher<'_, '_>, rules: u32) {
    let mark = mark(rules);
    bencher.bench(|| Mark::read(black_box(mark.as_bytes())));
}

#[divan::bench(args = RULES)]
fn build_rules(bencher: Bencher<'_, '_>, rules: u32) {
    let policy = policy(rules);
    bencher.bench(|| tables(black_box(&policy)));
}

#[divan::bench(args = RULES)]
fn encode_batch(bencher: Bencher<'_, '_>, rules: u32) {
    let tables = tables(&policy(rules));
    bencher.bench(|| {
        let mut batch = Batch::default();
        black_box(&tables).iter().for_each(|table| batch.add_table(table));
        batch
    });
}

#[divan::bench(args = RULES)]
fn print_rules(bencher: Bencher<'_, '_>, rules: u32) {
    let tables = tables(&policy(rules));
    bencher.bench(|| black_box(&tables).iter().map(ToString::to_string).collect::<String>());
}

#[divan::bench]
fn read_record(bencher: Bencher<'_, '_>) {
    let record = Record {
        id: AttachmentId { container_id: ContainerId::new("c1").unwrap(), ifname: IfName::new("eth0").unwrap() },
        network: NetworkName::new("pods").unwrap(),
        netns: NetnsPath::new("/run/netns/x").unwrap(),
        netns_cookie: 4711,
        pod: Pod { uid: Some(PodUid::new("00000000-0000-4000-8000-000000000000").unwrap()), ..Pod::default() },
        policy: Policy::default(),
        host_guard: HostGuard::Auto,
        ebpf: Ebpf::Auto,
        interfaces: vec![PinnedInterface { interface: interface(), node: node(), host_end: None, led_outside: false }],
        lacks_interface: false,
        capture: true,
        adopted: false,
    };
    let written = record.to_json();
    bencher.bench(|| Record::read(black_box(written.as_bytes())));
}
