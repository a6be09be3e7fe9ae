//! What is claimed of the cluster parts, on a real cluster of two nodes. Run by `scripts/test-cluster`, which brings it up and has
//! the tests run one after the other, in the network of its API server: from there every pod can be reached.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod absence;
mod access;
mod experiment;
mod host_network;
mod installing;
mod killed;
mod lab;
mod measure;
mod node_side;
mod schema;
mod workloads;
