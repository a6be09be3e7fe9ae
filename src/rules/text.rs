//! Tables as nft text: what `--dry-run` prints, and what the snapshots in `testdata/rulesets/` hold.

use std::fmt::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::model::names::Mac;

use super::branches::protocol_name;
use super::ruleset::*;
use super::value::prefix_length;

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Netdev => "netdev",
        })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {} {{", self.family, Word(&self.name))?;
        if self.dormant {
            writeln!(f, "\tflags dormant")?;
        }
        for set in &self.sets {
            let key: Vec<_> = set.key.iter().map(|field| field.as_str()).collect();
            writeln!(f, "\tset {} {{", set.name)?;
            writeln!(f, "\t\ttype {}", key.join(" . "))?;
            match &set.content {
                Content::Dynamic { timeout, size } => {
                    writeln!(f, "\t\tsize {size}")?;
                    writeln!(f, "\t\tflags dynamic,timeout")?;
                    writeln!(f, "\t\ttimeout {timeout}s")?;
                }
                Content::Fixed { elements, size } => {
                    if set.has_ranges() {
                        writeln!(f, "\t\tflags interval")?;
                    }
                    if let Some(size) = size {
                        writeln!(f, "\t\tsize {size}")?;
                    }
                    for (index, ranges) in elements.iter().enumerate() {
                        let before = if index == 0 { "elements = {" } else { "            " };
                        let after = if index + 1 == elements.len() { " }" } else { "," };
                        writeln!(f, "\t\t{before} {}{after}", Fields(&set.key, ranges))?;
                    }
                }
            }
            writeln!(f, "\t}}")?;
        }
        for chain in self.all_chains() {
            writeln!(f, "\tchain {} {{", Word(chain.name))?;
            if let Some(hook) = chain.hook {
                write_hook(f, hook)?;
            }
            for rule in chain.rules {
                writeln!(f, "\t\t{rule}")?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

fn write_hook(f: &mut fmt::Formatter<'_>, at: &Hook) -> fmt::Result {
    let (hook, device) = match at {
        Hook::Ingress(device) => ("ingress", Some(device)),
        Hook::Egress(device) => ("egress", Some(device)),
        Hook::Input => ("input", None),
        Hook::Output | Hook::NodeOutput => ("output", None),
        Hook::Forward => ("forward", None),
    };
    write!(f, "\t\ttype filter hook {hook}")?;
    if let Some(device) = device {
        write!(f, " device {}", Quoted(&device.to_string()))?;
    }
    let policy = if at.drops() { "drop" } else { "accept" };
    writeln!(f, " priority {}; policy {policy};", at.priority())
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, statement) in self.statements.iter().enumerate() {
            if index > 0 {
                f.write_char(' ')?;
            }
            write!(f, "{statement}")?;
        }
        match self.comment {
            Some(comment) => write!(f, " comment {}", Quoted(comment)),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Match(field, test) => {
                let (name, notation) = field.text();
                let value = |bytes| Written(notation, bytes);
                match test {
                    Test::Is(bytes) => write!(f, "{name} {}", value(bytes)),
                    Test::Not(bytes) => write!(f, "{name} != {}", value(bytes)),
                    Test::Range(first, last) => match notation {
                        // nft reads no range of words.
                        Notation::Operation => {
                            let number = |bytes| Written(Notation::Number, bytes);
                            write!(f, "{name} {}-{}", number(first), number(last))
                        }
                        _ => write!(f, "{name} {}-{}", value(first), value(last)),
                    },
                    Test::Masked(mask, bytes) => match (notation, prefix_length(mask)) {
                        (Notation::Ipv4 | Notation::Ipv6, Some(length)) => {
                            write!(f, "{name} {}/{length}", value(bytes))
                        }
                        _ => write!(f, "{name} & {} == {}", value(mask), value(bytes)),
                    },
                    Test::NotMasked(mask, bytes) => write!(f, "{name} & {} != {}", value(mask), value(bytes)),
                }
            }
            Self::Meta(meta) => write!(f, "{meta}"),
            Self::OneOf { key, elements } => {
                let types: Vec<_> = key.iter().filter_map(|field| field.key_type()).collect();
                let elements: Vec<_> = elements.iter().map(|element| Fields(&types, element).to_string()).collect();
                write!(f, "{} {{ {} }}", Key(key), elements.join(", "))
            }
            Self::Lookup(key, set) => write!(f, "{} @{set}", Key(key)),
            Self::Update { key, set, counted } => {
                write!(f, "update @{set} {{ {}{} }}", Key(key), if *counted { " counter" } else { "" })
            }
            Self::Report(Report { group, length, per_second, burst, prefix }) => write!(
                f,
                "limit rate {per_second}/second burst {burst} packets log prefix {} group {group} snaplen {length}",
                Quoted(prefix)
            ),
            Self::Label(bit) => write!(f, "meta secmark set meta secmark | {bit}"),
            Self::Labelled(bit) => write!(f, "meta secmark & {bit} == {bit}"),
            Self::Counter => f.write_str("counter"),
            Self::Jump(branch) => write!(f, "jump {}", Word(branch)),
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
        }
    }
}

impl fmt::Display for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(length) => write!(f, "meta length {length}"),
            Self::Iifname(name) => write!(f, "iifname {}", Quoted(&name.to_string())),
            Self::Oifname(name) => write!(f, "oifname {}", Quoted(&name.to_string())),
            Self::Skuid(user) => write!(f, "meta skuid {user}"),
            Self::Protocol(ether_type) => write!(f, "meta protocol {}", protocol_name(*ether_type)),
            Self::HasUser => write!(f, "meta skuid != {}", u32::MAX),
            Self::Cgroup(cgroup) => {
                write!(f, "socket cgroupv2 level {} {}", cgroup.path.level(), Quoted(cgroup.path.as_str()))
            }
            Self::ForThisHost => f.write_str("meta pkttype host"),
            Self::Nfproto { v6 } => write!(f, "meta nfproto {}", if *v6 { "ipv6" } else { "ipv4" }),
        }
    }
}

/// The fields of a key, as nft writes them.
struct Key<'a>(&'a [Field]);

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|field| field.text().0).collect();
        f.write_str(&names.join(" . "))
    }
}

/// An element as nft writes it.
struct Fields<'a>(&'a [KeyType], &'a Ranges);

impl fmt::Display for Fields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(key, Ranges(ranges)) = self;
        for (index, (field, (first, last))) in key.iter().zip(ranges).enumerate() {
            let value = |bytes| Written(field.notation(), bytes);
            f.write_str(if index == 0 { "" } else { " . " })?;
            let mask: Vec<u8> = first.iter().zip(&**last).map(|(first, last)| !(first ^ last)).collect();
            match prefix_length(&mask) {
                _ if first == last => write!(f, "{}", value(first))?,
                Some(length) if matches!(field, KeyType::Ipv4 | KeyType::Ipv6) && is_network(first, &mask) => {
                    write!(f, "{}/{length}", value(first))?;
                }
                _ => write!(f, "{}-{}", value(first), value(last))?,
            }
        }
        Ok(())
    }
}

/// A value in the notation of its field.
struct Written<'a>(Notation, &'a [u8]);

impl fmt::Display for Written<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(notation, bytes) = *self;
        match (notation, bytes) {
            (Notation::Mac, &[a, b, c, d, e, g]) => write!(f, "{}", Mac([a, b, c, d, e, g])),
            (Notation::Ipv4, &[a, b, c, d]) => write!(f, "{}", Ipv4Addr::new(a, b, c, d)),
            (Notation::Ipv6, bytes) if bytes.len() == 16 => {
                let mut address = [0; 16];
                address.copy_from_slice(bytes);
                write!(f, "{}", Ipv6Addr::from(address))
            }
            (Notation::EtherType, [0x08, 0x00]) => f.write_str("ip"),
            (Notation::EtherType, [0x08, 0x06]) => f.write_str("arp"),
            (Notation::EtherType, [0x86, 0xdd]) => f.write_str("ip6"),
            (Notation::Protocol, [6]) => f.write_str("tcp"),
            (Notation::Protocol, [17]) => f.write_str("udp"),
            (Notation::Protocol, [58]) => f.write_str("ipv6-icmp"),
            (Notation::Protocol, [132]) => f.write_str("sctp"),
            (Notation::Operation, [0, 1]) => f.write_str("request"),
            (Notation::Operation, [0, 2]) => f.write_str("reply"),
            (Notation::TcpFlags, &[TCP_SYN]) => f.write_str("syn"),
            (Notation::TcpFlags, &[TCP_RST]) => f.write_str("rst"),
            (Notation::TcpFlags, &[TCP_ACK]) => f.write_str("ack"),
            (Notation::TcpFlags, &[TCP_FIN_SYN_RST_ACK]) => f.write_str("(fin | syn | rst | ack)"),
            (Notation::Icmp6Type, [135]) => f.write_str("nd-neighbor-solicit"),
            (Notation::Icmp6Type, [136]) => f.write_str("nd-neighbor-advert"),
            (Notation::Number, bytes) if bytes.len() <= 8 => {
                write!(f, "{}", bytes.iter().fold(0_u64, |number, &byte| number << 8 | u64::from(byte)))
            }
            (_, bytes) => {
                f.write_str("0x")?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

/// Whether an address has no bit where the mask has none.
fn is_network(address: &[u8], mask: &[u8]) -> bool {
    address.iter().zip(mask).all(|(address, mask)| address & !mask == 0)
}

/// A string in quotes. The kernel lets an interface be called almost anything; nft has no escape for a quote, so
/// what could end the string is replaced.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let safe: String = self.0.chars().map(|c| if c == '"' || c.is_control() { '?' } else { c }).collect();
        write!(f, "\"{safe}\"")
    }
}

/// The name of a table or chain: bare where nft reads it bare, else in quotes.
struct Word<'a>(&'a str);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bare = self.0.starts_with(|first: char| first.is_ascii_alphabetic())
            && self.0.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte));
        if bare { f.write_str(self.0) } else { write!(f, "{}", Quoted(self.0)) }
    }
}
