//! A chained CNI plugin that cuts a compromised pod off the network at once, and keeps the scene.
//!
//! One binary, three faces: the plugin that a container runtime calls, the agent that watches the state directory, and
//! the commands of a person or a script. All of them come together in [`node::enforce`]: read the marks of one sandbox, bring
//! the kernel to them under the sandbox's lock, read the kernel back, say what is so.
//!
//! # Codemap
//!
//! The folders are the layers, and imports point down this list. `model` and `rules` are pure: values in, values out,
//! nothing opened or asked.
//!
//! | | |
//! | --- | --- |
//! | [`plugin`], [`cli`], [`agent`], [`install`] | the faces, and how the plugin gets onto a node |
//! | [`report`] | all of that as one page, for people |
//! | [`adopt`] | pods that were made without the plugin: their records, from libcni's cache or their runtime |
//! | [`evidence`] | what a pod was doing when it was cut off, collected by a process of its own |
//! | [`metrics`] | numbers as `OpenMetrics` text, and who answers a scraper |
//! | [`status`] | what `status` and `list` say, for people and as JSON; [`status::read`] reads it back from the kernel |
//! | [`capture`] | what an isolated pod tries: packets that were dropped, kept and read again |
//! | [`node`] | the state directory; a sandbox on its two sides; `enforce`, which brings them together; pods with hostNetwork; the log |
//! | [`kernel`] | network namespaces, netlink, rtnetlink, nf_tables: how the kernel is asked, not what for |
//! | [`rules`] | a policy, compiled to tables and chains; these as nft text |
//! | [`model`] | names, policies, marks, records, verdicts; a log line that nothing can forge |
//!
//! # Invariants
//!
//! - **Nothing in the pod is believed.** Addresses, routes and the host's end of each interface are written down at
//!   ADD, before the pod's containers start. What may pass is decided by that and by what the host says, not by what
//!   is found in the pod later.
//! - **What goes wrong in the pod does not keep the host guard from standing.** It comes first when a sandbox is
//!   isolated and goes last when it is released; each side stops everything by itself, so there is no half state.
//! - **In doubt it isolates.** A mark that cannot be understood seals; marks that cannot be listed release nobody.
//! - **The record first, then the marks** in ADD: whoever handles a mark finds the record, or ADD finds the mark.
//!   Everything that applies holds the sandbox's lock, and reads what is wanted under it.
//! - **An awake table is never without its drops.** It is changed in place in one batch, and each base chain ends in an
//!   explicit drop, because a policy alone does not hold while a table is replaced.
//! - **No conntrack.** A flow is known only if an allowed packet opened it while this policy isolated the sandbox.
//! - **A claim is read back from the kernel**, never remembered from what was sent.
//! - A released sandbox has no hook registered: its tables are dormant.
//! - The plugin never acts in the host's own network namespace as a pod's, runs no other program, and writes nothing
//!   but its one JSON document to standard output.

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "documentation is built with the private items; the map is of them"
)]

mod adopt;
mod agent;
mod capture;
mod cli;
mod evidence;
#[cfg(any(test, fuzzing))]
mod fuzzing;
mod install;
mod kernel;
pub mod metrics;
mod model;
mod node;
mod plugin;
mod report;
mod rules;
pub mod status;

pub use model::{audit, fault, json, mark, names, policy, subject, verdict};
pub use node::{logging, state};

/// Bringing the kernel to the marks of a sandbox, by its name, for whoever writes marks and wants to know what became of them.
pub mod apply {
    pub use crate::node::enforce::{CUT_AT_ONCE, EnforceError, apply_locked, cut_off_marked};
    pub use crate::node::sandbox::{Before, NodeScan, Scan, Side};
    pub use crate::node::workers::on_each;
}

/// Pods with hostNetwork, for the same: they have no record, and are known by their UIDs.
pub mod host_pods {
    pub use crate::node::host_pod::{
        Asked, HostEnforced, HostNode, HostPodError, HostReport, Outcome, candidates, desired, sync_one,
    };
}

/// Having the evidence of a sandbox collected, for whoever cuts it off by [`apply`].
pub mod collecting {
    pub use crate::evidence::{Collectors, is_wanted};
}

/// Which pods of the node have no record, since they were made without the plugin.
pub mod adopting {
    pub use crate::adopt::{AdoptError, Places, uncovered_pods};
}

/// The two faces that `main` chooses from: the command line, and the plugin that a runtime calls.
pub mod faces {
    pub use crate::cli::run;
    pub use crate::plugin::{about, serve, write_answer};
}

/// For this package's own benches and tests, which look behind the door. Nothing here is stable.
#[doc(hidden)]
pub mod internals {
    #[cfg(fuzzing)]
    pub use crate::fuzzing::run as run_fuzz_target;
    pub use crate::install::{
        Entry, InstallError, InstallOptions, Layout, MARK, Plan, UninstallOptions, plan_install, plan_uninstall,
    };
    pub use crate::kernel::netlink::{Events, Socket, append_message};
    pub use crate::kernel::netns::Netns;
    pub use crate::kernel::nflog::{Hook, Nflog};
    pub use crate::kernel::nft::{Batch, Nft};
    pub use crate::model::record::{Ebpf, HostGuard, NodeOnLink, PinnedInterface, Record};
    pub use crate::rules::containment::{EgressHook, GuardedInterface, pod_tables};
    pub use crate::rules::ruleset::{Family, Table};
}
