//! What a policy becomes for a pod in the node's own network namespace: a chain for what its sockets receive, and one for what they
//! send, each of which is made a program on the pod's cgroup.
//!
//! The addresses there are the node's, so none is bound to the pod; whose socket it is, is what the cgroup says. There are no frames
//! either. `lo` is the node's, and everybody's: what the policy says of the pod's own does not hold for it.

use crate::model::policy::{Allow, Direction, Policy, Ports, Probes, Protocol};
use crate::rules::ruleset::{Chain, Field, Hook, Meta, Rule, Set, Statement};

use super::words::*;
use super::{FlowSets, Place, attempt_sets, chain, packet_attempt_rules};

/// The chains for a pod in the node's network namespace, and the sets that they use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPodChains {
    /// What its sockets receive.
    pub inbound: Chain,
    /// What they send.
    pub outbound: Chain,
    /// What both remember.
    pub sets: Vec<Set>,
}

/// What a policy becomes. Probes pass only where it can be told who they are from.
#[must_use]
pub fn host_pod_chains(policy: &Policy, tells_probes: bool) -> HostPodChains {
    let flows = FlowSets::of(policy);
    let (mut inbound, mut outbound) = (Vec::new(), Vec::new());
    for v6 in [false, true] {
        if tells_probes {
            // No map of flows is ever full, so the second is not needed.
            let [set, _] = flows.probes(v6);
            probe_rules(&policy.probes, v6, &set, &mut inbound, &mut outbound);
        }
        for allow in policy.allow.iter().filter(|allow| allow.peer.is_ipv6() == v6) {
            allow_rules(allow, &flows.allowed(v6), &mut inbound, &mut outbound);
        }
    }
    outbound.extend(packet_attempt_rules(Place::Host));
    let mut sets = flows.sets();
    sets.extend(attempt_sets());
    HostPodChains {
        inbound: chain("received".to_owned(), Hook::Input, inbound),
        outbound: chain("sent".to_owned(), Hook::Output, outbound),
        sets,
    }
}

/// TCP connections that the node's own process opens.
fn probe_rules(probes: &Probes, v6: bool, set: &str, inbound: &mut Vec<Rule>, outbound: &mut Vec<Rule>) {
    let any = Ports::any();
    let Probes::On { ports, .. } = probes else { return };
    let ports = ports.as_ref().unwrap_or(&any);
    let flow = |key: &'static [Field]| {
        let mut statements = vec![ether_type(v6)];
        statements.extend(of_flow(v6, Protocol::Tcp));
        statements.push(Statement::Lookup(key, set.to_owned()));
        statements
    };
    let mut statements = flow(inbound_key(v6));
    statements.extend(open_flow(inbound_key(v6), set));
    inbound.push(Rule::new(statements).comment("probe's flow"));
    // Only the node keeps it open: the pod's own packets do not refresh it.
    let mut statements = flow(outbound_key(v6));
    statements.push(Statement::Accept);
    outbound.push(Rule::new(statements).comment("probe's flow"));
    for &range in ports.ranges() {
        let mut statements = vec![ether_type(v6)];
        statements.extend(opening(v6, Protocol::Tcp, range));
        statements.push(Statement::Meta(Meta::Skuid(0)));
        statements.extend(open_flow(inbound_key(v6), set));
        inbound.push(Rule::new(statements).comment("probe"));
    }
}

fn allow_rules(allow: &Allow, set: &str, inbound: &mut Vec<Rule>, outbound: &mut Vec<Rule>) {
    let Allow { direction, peer, protocol, ports } = allow;
    let v6 = peer.is_ipv6();
    let flow = |ends: Option<Statement>, key| {
        let mut statements = vec![ether_type(v6)];
        statements.extend(ends);
        statements.extend(of_flow(v6, *protocol));
        statements.push(Statement::Lookup(key, set.to_owned()));
        statements.extend(open_flow(key, set));
        Rule::new(statements).comment("allowed flow")
    };
    push_new(inbound, flow(from_peer(*peer), inbound_key(v6)));
    push_new(outbound, flow(to_peer(*peer), outbound_key(v6)));
    for &range in ports.ranges() {
        let (ends, key, rules) = match direction {
            Direction::Egress => (to_peer(*peer), outbound_key(v6), &mut *outbound),
            Direction::Ingress => (from_peer(*peer), inbound_key(v6), &mut *inbound),
        };
        let mut statements = vec![ether_type(v6)];
        statements.extend(ends);
        statements.extend(opening(v6, *protocol, range));
        statements.extend(open_flow(key, set));
        rules.push(Rule::new(statements).comment("allowed"));
    }
}
