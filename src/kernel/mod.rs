//! The kernel, as this program asks it: network namespaces, netlink sockets, links and routes, nf_tables, cgroups, sockets, tracked
//! flows.
//!
//! It knows how to ask, not what for: no policy, mark or record comes down here.

pub mod bpf;
pub mod cgroup;
pub mod conntrack;
pub mod netlink;
pub mod netns;
pub mod nflog;
pub mod nft;
pub mod rtnetlink;
pub mod sock_diag;
