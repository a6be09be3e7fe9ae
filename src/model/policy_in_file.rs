//! A policy as text, read and written without a tree of values in between: what a runtime gives at each pod's start, and what this
//! program writes to itself in the record of an attachment. How a person's is read, with errors that say where, is the business of
//! `policy`.
//!
//! Pure. Both are one form: what is taken here means what it means there. Not all that is taken there is taken here (a key that is
//! said twice is not), so whoever reads what a person wrote and fails here reads it there.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::marker::PhantomData;

use ipnetwork::IpNetwork;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::model::json::At;
use crate::model::policy::{Allow, Direction, Policy, Ports, Probes, Protocol, parse_peer, parse_range};

/// No entry of an allow-list with one port is longer, but for some of IPv6.
const ENTRY_EXPECTED: usize = 96;

impl Policy {
    /// The text of `to_json`.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }

    /// Appends it.
    pub(super) fn write(&self, text: &mut String) {
        text.reserve(ENTRY_EXPECTED * (1 + self.allow.len()));
        let loopback = if self.loopback { "true" } else { "false" };
        let _ = write!(text, "{{\"loopback\":{loopback},\"probes\":{},\"allow\":[", self.probes.to_json());
        for (index, allow) in self.allow.iter().enumerate() {
            text.push_str(if index == 0 { "" } else { "," });
            allow.write(text);
        }
        text.push_str("]}");
    }
}

impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl Allow {
    /// By hand: the machinery of formatting takes ten times as long, and a policy has hundreds.
    fn write(&self, text: &mut String) {
        text.push_str("{\"direction\":\"");
        text.push_str(self.direction.as_str());
        text.push_str("\",\"peer\":\"");
        write_network(text, self.peer);
        text.push_str("\",\"protocol\":\"");
        text.push_str(self.protocol.as_str());
        text.push_str("\",\"ports\":[");
        for (index, &(first, last)) in self.ports.ranges().iter().enumerate() {
            text.push_str(if index == 0 { "" } else { "," });
            if first == last {
                write_number(text, first);
            } else {
                let _ = write!(text, "\"{first}-{last}\"");
            }
        }
        text.push_str("]}");
    }
}

/// Appends what formatting it would.
pub(super) fn write_network(text: &mut String, network: IpNetwork) {
    match network {
        IpNetwork::V4(v4) => {
            let [first, others @ ..] = v4.ip().octets();
            write_number(text, first.into());
            for octet in others {
                text.push('.');
                write_number(text, octet.into());
            }
        }
        IpNetwork::V6(v6) => drop(write!(text, "{}", v6.ip())),
    }
    text.push('/');
    write_number(text, network.prefix().into());
}

fn write_number(text: &mut String, number: u16) {
    if number >= 10 {
        write_number(text, number / 10);
    }
    text.push(char::from(b'0' + (number % 10) as u8));
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyInFile {
    #[serde(default = "yes")]
    loopback: bool,
    #[serde(default, deserialize_with = "there")]
    probes: Option<Value>,
    #[serde(default)]
    allow: Vec<Allow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AllowInFile<'a> {
    #[serde(borrow)]
    direction: Cow<'a, str>,
    #[serde(borrow)]
    peer: Cow<'a, str>,
    #[serde(borrow)]
    protocol: Cow<'a, str>,
    #[serde(default = "Ports::any")]
    ports: Ports,
}

fn yes() -> bool {
    true
}

/// `null` is there, too, and then not allowed.
fn there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// A structure from an object: serde takes a list of its values for it, too.
struct FromObject<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for FromObject<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(entries))
    }
}

impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let file: PolicyInFile = deserializer.deserialize_map(FromObject(PhantomData))?;
        Ok(Self {
            loopback: file.loopback,
            probes: match &file.probes {
                None => Self::default().probes,
                Some(probes) => Probes::read(&At::new("policy.probes", probes)).map_err(D::Error::custom)?,
            },
            allow: file.allow,
        })
    }
}

impl<'de> Deserialize<'de> for Allow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let file: AllowInFile<'_> = deserializer.deserialize_map(FromObject(PhantomData))?;
        let not_one = |what: &str, text: &str| D::Error::custom(format!("policy.allow: {text:?} is no {what}"));
        Ok(Self {
            direction: Direction::parse(&file.direction).ok_or_else(|| not_one("direction", &file.direction))?,
            peer: parse_peer(&file.peer).ok_or_else(|| not_one("address or CIDR", &file.peer))?,
            protocol: Protocol::parse(&file.protocol).ok_or_else(|| not_one("protocol", &file.protocol))?,
            ports: file.ports,
        })
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(PortList)
    }
}

struct PortList;

impl<'de> Visitor<'de> for PortList {
    type Value = Ports;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of ports")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Ports, A::Error> {
        let mut next = || list.next_element().map(|next| next.map(|PortRange(first, last)| (first, last)));
        let first = next()?;
        let mut others = Vec::new();
        while let Some(other) = next()? {
            others.push(other);
        }
        let ports = Ports::new(first.into_iter().chain(others));
        ports.ok_or_else(|| A::Error::custom("ports are from 1 to 65535, and one at least"))
    }
}

/// The first and the last of a range of ports.
struct PortRange(u16, u16);

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PortOrRange)
    }
}

struct PortOrRange;

impl Visitor<'_> for PortOrRange {
    type Value = PortRange;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a port, or a range of them as \"from-to\"")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<PortRange, E> {
        let port = u16::try_from(number).map_err(E::custom)?;
        Ok(PortRange(port, port))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<PortRange, E> {
        let (first, last) = parse_range(text).ok_or_else(|| E::custom(format!("{text:?} is no range of ports")))?;
        Ok(PortRange(first, last))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn both(text: &str) -> (Option<Policy>, Option<Policy>) {
        let value: Option<Value> = serde_json::from_str(text).ok();
        let by_hand = value.and_then(|value| Policy::read(&At::new("policy", &value)).ok());
        (serde_json::from_str(text).ok(), by_hand)
    }

    #[test]
    fn what_is_taken_here_means_what_it_means_to_a_person() {
        for text in [
            "{}",
            "null",
            "[]",
            r#"{"allow": [["egress", "10.0.0.1", "tcp"]]}"#,
            r#"{"loopback": false, "probes": {"ports": [8080, "9000-9010", 9011]}}"#,
            r#"{"probes": null}"#,
            r#"{"probes": {"cgroup": "kubelet"}}"#,
            r#"{"loopback": null}"#,
            r#"{"loopbak": true}"#,
            r#"{"allow": null}"#,
            r#"{"allow": [{"direction": "egress", "peer": "10.0.0.1", "protocol": "tcp"}]}"#,
            r#"{"allow": [{"direction": "egress", "peer": "10.0.0.1/8", "protocol": "udp", "ports": [1, "5-6", 2]}]}"#,
            r#"{"allow": [{"direction": "ingress", "peer": "fd00::\u0031/64", "protocol": "udp", "ports": [1]}]}"#,
            r#"{"allow": [{"direction": "egress", "peer": "10.0.0.1", "protocol": "tcp", "ports": []}]}"#,
            r#"{"allow": [{"direction": "egress", "peer": "10.0.0.1", "protocol": "tcp", "ports": null}]}"#,
            r#"{"allow": [{"direction": "egress", "peer": "10.0.0.1", "protocol": "tcp", "ports": [0]}]}"#,
            r#"{"allow": [{"direction": "egress", "peer": "10.0.0.1", "protocol": "tcp", "port": [1]}]}"#,
            r#"{"allow": [{"direction": "out", "peer": "10.0.0.1", "protocol": "tcp"}]}"#,
            r#"{"allow": [{"direction": "egress", "peer": "web", "protocol": "tcp"}]}"#,
            r#"{"allow": [{"direction": "egress", "peer": "10.0.0.1"}]}"#,
        ] {
            let (here, by_hand) = both(text);
            assert_eq!(here, by_hand, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_a_person_would_write(
            loopback: bool,
            peers in prop::collection::vec((any::<std::net::IpAddr>(), any::<bool>(), 1_u16..60000, 0_u16..3), 0..5),
        ) {
            let allow = peers.into_iter().filter_map(|(peer, is_egress, port, more)| Some(Allow {
                direction: if is_egress { Direction::Egress } else { Direction::Ingress },
                peer: parse_peer(&peer.to_string())?,
                protocol: if is_egress { Protocol::Udp } else { Protocol::Tcp },
                ports: Ports::new([(port, port + more), (65000, 65000)])?,
            }));
            let policy = Policy { loopback, allow: allow.collect(), ..Policy::default() };
            let text = policy.to_text();
            prop_assert_eq!(&text, &policy.to_json().to_string());
            prop_assert_eq!(both(&text), (Some(policy.clone()), Some(policy)));
        }
    }
}
