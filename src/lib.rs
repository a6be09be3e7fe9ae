//! A chained CNI plugin that cuts a compromised pod off the network at once, and keeps the scene.
//!
//! One binary, three faces: the plugin that a container runtime calls, the agent that watches the state directory, and
//! the commands of a person or a script. All of them come together in `enforce`: read the marks of one sandbox, bring
//! the kernel to them under the sandbox's lock, read the kernel back, say what is so.
//!
//! # Codemap
//!
//! Imports point down this list. What is marked with a * is pure: values in, values out, nothing opened or asked.
//!
//! | | |
//! | --- | --- |
//! | [`plugin`], [`cli`], [`agent`], [`install`] | the faces, and how the plugin gets onto a node |
//! | [`status`]* | what `status` and `list` say, for people and as JSON |
//! | [`enforce`] | marks to kernel for one sandbox, and the audit line about it |
//! | [`sandbox`] | one sandbox: survey, apply on both sides, read back, verdict |
//! | [`state`] | the state directory: marks, records, locks |
//! | [`nft`], [`link`] | nf_tables and rtnetlink, in one network namespace |
//! | [`netlink`], [`netns`] | a socket and its messages; network namespaces |
//! | [`record`]* | what ADD writes down of an attachment |
//! | [`containment`]* | a policy, compiled to tables, for each place where packets are met |
//! | [`ruleset`]* | tables, chains, rules as data, and as nft text |
//! | [`config`]*, [`cni`]* | the conflist entry; the CNI protocol |
//! | [`policy`]* | what is still let through, and which mark decides |
//! | [`audit`]*, [`logging`] | a log line that nothing can forge; where it goes |
//! | [`attachment`]*, [`json`]* | names, each checked once; strict reading |
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

pub mod agent;
pub mod attachment;
pub mod audit;
pub mod cli;
pub mod cni;
pub mod config;
pub mod containment;
pub mod enforce;
pub mod install;
pub mod json;
pub mod link;
pub mod logging;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod plugin;
pub mod policy;
pub mod record;
pub mod ruleset;
pub mod sandbox;
pub mod state;
pub mod status;
pub mod verdict;
