//! Connections that were established when a sandbox was cut off, dropped where TCP takes it for a loss on the way.
//!
//! What the hook of a device drops, TCP takes for congestion in its own machine: it tries again every half a second, and after
//! `tcp_retries2` times (15) gives up, eight seconds after the program has written something (seen on 6.18). A drop by inet output has it
//! wait longer each time, as if the packet had been lost; no program is told, since TCP tells none. Nothing passes here that would
//! not pass otherwise, and what is not held is dropped at the device all the same.
//!
//! Pure. Which connections are held is found out by `node::patience`.

use std::net::IpAddr;

use super::ruleset::{Family, Field, Hook, KeyType, Meta, Rule, Set, Statement, Table, Test};
use crate::model::policy::Protocol;
use crate::rules::containment::{ATTEMPTS, attempt_key, no_bare_syn};

/// The most of each family.
pub const HELD_MAX: u32 = 4096;
/// Seconds after which a connection is not held any more.
const HELD_FOR: u32 = 30 * 86400;

/// A connection, seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The other end.
    pub remote: IpAddr,
    /// Its port.
    pub remote_port: u16,
    /// The pod's port.
    pub local_port: u16,
}

impl Flow {
    /// As the key of a set of its family: each field takes a multiple of four bytes.
    #[must_use]
    pub fn key(&self) -> Vec<u8> {
        let mut key = match self.remote {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        for port in [self.remote_port, self.local_port] {
            key.extend(port.to_be_bytes());
            key.extend([0; 2]);
        }
        key
    }
}

fn key(v6: bool) -> &'static [Field] {
    match v6 {
        false => &[Field::IpDestination, Field::DestinationPort, Field::SourcePort],
        true => &[Field::Ip6Destination, Field::DestinationPort, Field::SourcePort],
    }
}

/// The set of the connections of a family.
#[must_use]
pub fn held_set(v6: bool) -> Set {
    let address = if v6 { KeyType::Ipv6 } else { KeyType::Ipv4 };
    let name = if v6 { "held6" } else { "held4" };
    let key = vec![address, KeyType::Port, KeyType::Port];
    Set::dynamic(name.to_owned(), key, HELD_FOR, HELD_MAX)
}

/// Has the pod-side table of family inet hold the connections that are put into its sets.
pub fn hold_flows(table: &mut Table) {
    if table.family != Family::Inet {
        return;
    }
    for chain in table.chains.iter_mut().filter(|chain| chain.hook == Hook::Output) {
        let rules = [false, true].into_iter().flat_map(|v6| {
            let set = held_set(v6);
            let protocol = if v6 { Field::Ip6NextHeader } else { Field::IpProtocol };
            let held = vec![
                Statement::Meta(Meta::Nfproto { v6 }),
                Statement::Match(protocol, Test::Is([Protocol::Tcp.number()].into())),
                // One that opens is another connection by now.
                no_bare_syn(),
                Statement::Lookup(key(v6), set.name),
            ];
            let attempts = format!("{ATTEMPTS}{}", if v6 { 6 } else { 4 });
            let count = Statement::Update { key: attempt_key(v6), set: attempts, counted: true };
            let end = [Statement::Counter, Statement::Drop];
            [[held.clone(), vec![count]].concat(), [held, end.to_vec()].concat()].map(Rule::new)
        });
        chain.rules.splice(0..0, rules);
    }
    table.sets.extend([held_set(false), held_set(true)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::containment::{EgressHook, pod_tables};

    #[test]
    fn a_held_connection_is_counted_and_dropped_before_anything_is_let_through() {
        let mut tables = pod_tables(&Default::default(), &[], EgressHook::Netdev, false);
        let before = tables.clone();
        tables.iter_mut().for_each(hold_flows);
        assert_eq!(tables[0], before[0]);
        let chain = |tables: &[Table]| tables[1].chains[1].clone();
        let text: Vec<_> = chain(&tables).rules.iter().map(ToString::to_string).collect();
        let held = "tcp flags & (fin | syn | rst | ack) != syn ip daddr . th dport . th sport @held4";
        assert_eq!(
            text[..2],
            [
                format!(
                    "meta nfproto ipv4 ip protocol tcp {held} update @attempts4 {{ ip protocol . ip daddr . th dport counter }}"
                ),
                format!("meta nfproto ipv4 ip protocol tcp {held} counter drop"),
            ]
        );
        assert_eq!(chain(&tables).rules[4..], chain(&before).rules);
    }

    #[test]
    fn a_key_is_as_long_as_the_set_says() {
        for (remote, length) in [("10.0.0.1", 12), ("fd00::1", 24)] {
            let flow = Flow { remote: remote.parse().unwrap(), remote_port: 443, local_port: 40_000 };
            assert_eq!(flow.key().len(), length);
            assert_eq!(flow.key()[length - 8..], [1, 187, 0, 0, 0x9c, 0x40, 0, 0]);
        }
    }
}
