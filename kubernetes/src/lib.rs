//! Kubernetes as the control plane of quarantine: one more writer of marks, and what the kernel says, shown in the API.
//!
//! | | |
//! | --- | --- |
//! | [`api`] | `PodQuarantine`, as Rust types; the definition in `conf/kubernetes/` is generated from them |
//! | [`node`] | on each node: objects become marks, what is read back becomes their status |
//! | [`keep`] | on each node: the plugin's entry in the network configuration, whoever rewrites that |
//! | [`controller`] | one in the cluster: takes isolated pods out of their Services and from their owners |
//! | [`kubectl`] | `kubectl quarantine` |
//! | [`metrics`] | what a node counts |
//! | [`sandboxed`] | under which UID a pod goes on its node |
//! | [`uninstall`] | takes the plugin off every node |
//!
//! The plugin knows nothing of this crate. This crate knows of the plugin its state directory, what may be claimed of a sandbox,
//! and the function that applies marks: the doors `state`, `apply`, `status`, and the values that these speak in.

// The derive of schemas emits copies of the types, which nothing can reach.
#![allow(unreachable_pub)]

pub mod api;
pub mod controller;
pub mod keep;
pub mod kubectl;
pub mod metrics;
pub mod node;
pub mod sandboxed;
pub mod uninstall;
pub mod watching;
