//! A chained CNI plugin that cuts a compromised pod off the network at once, and keeps the scene.
//!
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
