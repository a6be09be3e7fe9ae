//! The integration suite: one crate, each test in network namespaces of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

// What it offers is used module by module.
mod adopt;
mod agent;
mod attacks;
mod capture;
mod cnitool;
mod commands;
mod evidence;
mod host_network;
mod install;
#[allow(dead_code, unused_imports)]
mod lab;
mod patience;
mod protocol;
mod report;
mod rulesets;
mod runtimes;
mod state;
mod toolchain;
mod walk;
