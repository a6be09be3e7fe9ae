//! Who of the node's own processes sends to isolated pods, told where it can be.
//!
//! The host guard meets packets at a device, where no rule can ask for the cgroup of a socket, and where a frame of a packet socket
//! looks like the stack's own. So a chain on the node's output asks, and puts a bit on what passes it; the guard asks for that bit.
//! It stands in `skb->secmark`: no socket can set that, a packet keeps it through a bridge, and it never leaves the machine. What
//! never came by the node's output, as a frame of a packet socket does not, never has it.
//!
//! The bit is of the cgroup as the policy names it, not of what that is now: a kubelet that was started anew is in another cgroup of
//! the same name, and only this one chain has to be changed for all sandboxes.
//!
//! Nothing is dropped here. Pure; how a cgroup is found is the business of `kernel::cgroup`.

use crate::model::cgroup::Cgroup;
use crate::model::fingerprint::fingerprint;
use crate::model::probes::Prober;
use crate::rules::ruleset::{Chain, Family, Hook, Meta, Rule, Statement, Table};

/// What the names of these tables begin with.
pub const SENDERS: &str = "quarantine-probes-";

/// The bit of what a prober sends. Two that a node's policies name may have the same, one time in 32: then each counts for the other.
#[must_use]
pub fn label(prober: &Prober) -> u32 {
    1 << (number(prober) % u32::BITS)
}

fn number(prober: &Prober) -> u32 {
    fingerprint(&prober.text().unwrap_or_default()) as u32
}

/// The table that puts the bit on what a prober sends; on all that root's sockets send, where its cgroup cannot be told.
#[must_use]
pub fn sender_table(prober: &Prober, cgroup: Option<&Cgroup>) -> Table {
    let label = || Statement::Label(label(prober));
    let theirs = cgroup.map_or(Meta::Skuid(0), |cgroup| Meta::Cgroup(cgroup.clone()));
    let rules = vec![
        Rule::new(vec![Statement::Meta(theirs), label(), Statement::Accept]).comment("probes"),
        Rule::new(vec![Statement::Meta(Meta::HasUser), Statement::Accept]).comment("another process's"),
        // The guard lets these pass only in a flow that is open.
        Rule::new(vec![label()]).comment("the kernel's own, as the last of a probe's connection are"),
    ];
    let chains = vec![Chain { name: "output".to_owned(), hook: Hook::NodeOutput, rules }];
    let name = format!("{SENDERS}{:08x}", number(prober));
    Table { family: Family::Inet, name, dormant: false, sets: Vec::new(), branches: Vec::new(), chains }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cgroup::CgroupPath;

    #[test]
    fn the_bit_is_of_the_name_and_not_of_the_cgroup() {
        let path = CgroupPath::new("system.slice/kubelet.service").unwrap();
        let prober = Prober::Cgroup(path.clone());
        let table = |id| sender_table(&prober, Some(&Cgroup { path: path.clone(), id }));
        assert_eq!(table(7).name, table(8).name);
        let rules = |table: Table| -> Vec<_> { table.chains[0].rules.iter().map(ToString::to_string).collect() };
        assert_eq!(rules(table(7)), rules(table(8)));
        assert_ne!(table(7), table(8));
        assert_eq!(
            rules(table(7)),
            [
                format!(
                    "socket cgroupv2 level 2 \"system.slice/kubelet.service\" meta secmark set meta secmark | {bit} accept comment \"probes\"",
                    bit = label(&prober)
                ),
                "meta skuid != 4294967295 accept comment \"another process's\"".to_owned(),
                format!(
                    "meta secmark set meta secmark | {bit} comment \"the kernel's own, as the last of a probe's connection are\"",
                    bit = label(&prober)
                ),
            ]
        );
        let untold = sender_table(&prober, None);
        assert_eq!(rules(untold)[1..], rules(table(7))[1..]);
        assert_eq!(label(&prober).count_ones(), 1);
        assert_ne!(sender_table(&Prober::Kubelet, None).name, table(7).name);
    }
}
