//! What everything else speaks of: names, policies, marks, records, verdicts. Pure: nothing here opens or asks anything.

pub mod attempt;
pub mod audit;
pub mod cgroup;
pub mod difference;
pub mod direction;
pub mod escaped;
pub mod fault;
pub mod fingerprint;
pub mod host_pod;
pub mod json;
pub mod mark;
pub mod mounts;
pub mod names;
pub mod patience;
pub mod policy;
mod policy_in_file;
mod ports;
pub mod probes;
pub mod record;
pub mod records;
pub mod subject;
pub mod verdict;
