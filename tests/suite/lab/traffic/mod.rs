//! Traffic: what attackers send, and what witnesses on the other side see of it.

pub(crate) mod battery;
pub(crate) mod bpf;
pub(crate) mod exchange;
pub(crate) mod flood;
pub(crate) mod observe;
pub(crate) mod packet;
pub(crate) mod server;
pub(crate) mod sockets;
pub(crate) mod stack;
pub(crate) mod stream;
pub(crate) mod xdp;
