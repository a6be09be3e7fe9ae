//! A policy as this program writes it to itself, in the record of an attachment: read and written at each pod's start and end, without
//! a tree of values in between. How a person's is read, with errors that say where, is the business of `policy`.
//!
//! Pure. Both are one form: what is taken here means what it means there.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::model::json::At;
use crate::model::policy::{Allow, Direction, Policy, Ports, Probes, Protocol, parse_peer};

impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut policy = serializer.serialize_struct("Policy", 3)?;
        policy.serialize_field("loopback", &self.loopback)?;
        policy.serialize_field("probes", &self.probes.to_json())?;
        policy.serialize_field("allow", &self.allow)?;
        policy.end()
    }
}

impl Serialize for Allow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut allow = serializer.serialize_struct("Allow", 4)?;
        allow.serialize_field("direction", self.direction.as_str())?;
        allow.serialize_field("peer", &self.peer)?;
        allow.serialize_field("protocol", self.protocol.as_str())?;
        allow.serialize_field("ports", &self.ports)?;
        allow.end()
    }
}

impl Serialize for Ports {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(untagged)]
        enum Range {
            One(u16),
            Several(String),
        }
        serializer.collect_seq(self.ranges().iter().map(|&(first, last)| match first == last {
            true => Range::One(first),
            false => Range::Several(format!("{first}-{last}")),
        }))
    }
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
    #[serde(default, deserialize_with = "there")]
    ports: Option<Value>,
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
            ports: match &file.ports {
                None => Ports::any(),
                Some(ports) => Ports::read(&At::new("policy.allow.ports", ports)).map_err(D::Error::custom)?,
            },
        })
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
            let text = serde_json::to_string(&policy).unwrap();
            prop_assert_eq!(&text, &policy.to_json().to_string());
            prop_assert_eq!(both(&text), (Some(policy.clone()), Some(policy)));
        }
    }
}
