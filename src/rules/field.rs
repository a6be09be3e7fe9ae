//! The fields of a packet that rules look at: where each is, and what nft calls it.
//!
//! Pure, and no more of them than containment needs.

use super::ruleset::KeyType;

/// Where a payload field is counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Base {
    /// The Ethernet header.
    Link,
    /// The IP or ARP header.
    Network,
    /// The header behind it.
    Transport,
}

/// A field of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each variant is the nft name of the field; `text` spells it")]
pub enum Field {
    EtherDestination,
    EtherSource,
    EtherType,
    /// Hardware type, protocol type and both lengths of an ARP packet.
    ArpFormat,
    ArpOperation,
    ArpSenderEther,
    ArpSenderIp,
    ArpTargetEther,
    ArpTargetIp,
    IpProtocol,
    IpSource,
    IpDestination,
    /// The first eight bytes of an IPv6 header: version, class, flow label, length, next header, hop limit.
    Ip6Head,
    Ip6NextHeader,
    Ip6HopLimit,
    Ip6Source,
    Ip6Destination,
    SourcePort,
    DestinationPort,
    TcpFlags,
    Icmp6Type,
    /// A neighbour solicitation up to the target: type, code, checksum, what is reserved, and the target. No comparison of the
    /// kernel's takes as much, and a set does.
    Solicitation,
    /// The target address of neighbour discovery.
    NeighbourTarget,
    /// The option behind the target of a neighbour solicitation or advertisement.
    NeighbourOption,
}

/// How the values of a field are written.
#[derive(Clone, Copy)]
pub(super) enum Notation {
    Number,
    Hexadecimal,
    Mac,
    Ipv4,
    Ipv6,
    EtherType,
    Protocol,
    Operation,
    TcpFlags,
    Icmp6Type,
}

impl Field {
    /// Where the field is: base, offset and length in bytes.
    #[must_use]
    pub fn place(self) -> (Base, u32, u32) {
        match self {
            Self::EtherDestination => (Base::Link, 0, 6),
            Self::EtherSource => (Base::Link, 6, 6),
            Self::EtherType => (Base::Link, 12, 2),
            Self::ArpFormat => (Base::Network, 0, 6),
            Self::ArpOperation => (Base::Network, 6, 2),
            Self::ArpSenderEther => (Base::Network, 8, 6),
            Self::ArpSenderIp => (Base::Network, 14, 4),
            Self::ArpTargetEther => (Base::Network, 18, 6),
            Self::ArpTargetIp => (Base::Network, 24, 4),
            Self::IpProtocol => (Base::Network, 9, 1),
            Self::IpSource => (Base::Network, 12, 4),
            Self::IpDestination => (Base::Network, 16, 4),
            Self::Ip6Head => (Base::Network, 0, 8),
            Self::Ip6NextHeader => (Base::Network, 6, 1),
            Self::Ip6HopLimit => (Base::Network, 7, 1),
            Self::Ip6Source => (Base::Network, 8, 16),
            Self::Ip6Destination => (Base::Network, 24, 16),
            Self::SourcePort => (Base::Transport, 0, 2),
            Self::DestinationPort => (Base::Transport, 2, 2),
            Self::TcpFlags => (Base::Transport, 13, 1),
            Self::Icmp6Type => (Base::Transport, 0, 1),
            Self::Solicitation => (Base::Transport, 0, 24),
            Self::NeighbourTarget => (Base::Transport, 8, 16),
            Self::NeighbourOption => (Base::Transport, 24, 8),
        }
    }

    /// Of which type it is in the key of a set; `None` where it belongs in none.
    #[must_use]
    pub fn key_type(self) -> Option<KeyType> {
        match self {
            Self::EtherDestination | Self::EtherSource | Self::ArpSenderEther | Self::ArpTargetEther => {
                Some(KeyType::Ether)
            }
            Self::ArpSenderIp | Self::ArpTargetIp | Self::IpSource | Self::IpDestination => Some(KeyType::Ipv4),
            Self::Ip6Source | Self::Ip6Destination => Some(KeyType::Ipv6),
            Self::ArpOperation => Some(KeyType::Operation),
            Self::IpProtocol | Self::Ip6NextHeader => Some(KeyType::Protocol),
            Self::SourcePort | Self::DestinationPort => Some(KeyType::Port),
            Self::NeighbourTarget => Some(KeyType::Raw(16)),
            Self::NeighbourOption => Some(KeyType::Raw(8)),
            Self::Solicitation => Some(KeyType::Raw(24)),
            // By the first and the last nft tells what the rest of a rule is of.
            Self::EtherType
            | Self::ArpFormat
            | Self::Ip6Head
            | Self::Ip6HopLimit
            | Self::TcpFlags
            | Self::Icmp6Type => None,
        }
    }

    pub(super) fn text(self) -> (&'static str, Notation) {
        match self {
            Self::EtherDestination => ("ether daddr", Notation::Mac),
            Self::EtherSource => ("ether saddr", Notation::Mac),
            Self::EtherType => ("ether type", Notation::EtherType),
            Self::ArpFormat => ("@nh,0,48", Notation::Hexadecimal),
            Self::ArpOperation => ("arp operation", Notation::Operation),
            Self::ArpSenderEther => ("arp saddr ether", Notation::Mac),
            Self::ArpSenderIp => ("arp saddr ip", Notation::Ipv4),
            Self::ArpTargetEther => ("arp daddr ether", Notation::Mac),
            Self::ArpTargetIp => ("arp daddr ip", Notation::Ipv4),
            Self::IpProtocol => ("ip protocol", Notation::Protocol),
            Self::IpSource => ("ip saddr", Notation::Ipv4),
            Self::IpDestination => ("ip daddr", Notation::Ipv4),
            Self::Ip6Head => ("@nh,0,64", Notation::Hexadecimal),
            Self::Ip6NextHeader => ("ip6 nexthdr", Notation::Protocol),
            Self::Ip6HopLimit => ("ip6 hoplimit", Notation::Number),
            Self::Ip6Source => ("ip6 saddr", Notation::Ipv6),
            Self::Ip6Destination => ("ip6 daddr", Notation::Ipv6),
            Self::SourcePort => ("th sport", Notation::Number),
            Self::DestinationPort => ("th dport", Notation::Number),
            Self::TcpFlags => ("tcp flags", Notation::TcpFlags),
            Self::Icmp6Type => ("icmpv6 type", Notation::Icmp6Type),
            Self::Solicitation => ("@th,0,192", Notation::Hexadecimal),
            Self::NeighbourTarget => ("@th,64,128", Notation::Hexadecimal),
            Self::NeighbourOption => ("@th,192,64", Notation::Hexadecimal),
        }
    }
}
