//! What an attempt was made with. Pure.

use std::fmt;

/// What an attempt was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttemptProtocol {
    /// A question for a neighbour's Ethernet address.
    Arp,
    /// An IP protocol, by its number.
    Ip(u8),
}

impl fmt::Display for AttemptProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Ip(number) = self else { return f.write_str("arp") };
        match number {
            1 => f.write_str("icmp"),
            2 => f.write_str("igmp"),
            6 => f.write_str("tcp"),
            17 => f.write_str("udp"),
            33 => f.write_str("dccp"),
            41 => f.write_str("ipv6"),
            47 => f.write_str("gre"),
            50 => f.write_str("esp"),
            51 => f.write_str("ah"),
            58 => f.write_str("icmpv6"),
            132 => f.write_str("sctp"),
            136 => f.write_str("udplite"),
            number => write!(f, "{number}"),
        }
    }
}
