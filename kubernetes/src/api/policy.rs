//! What an isolated pod may still do, as an object says it.
//!
//! It is the policy of a mark, but for one thing: there `probes` is a truth value or an object, which the schema of an API
//! server cannot say, so the ports of probes and the cgroup that they come from have keys of their own.

use std::borrow::Cow;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use cni_quarantine::json::At;
use cni_quarantine::policy::{Allow, Direction, Policy, Ports, Probes, Protocol};

/// What is let through while isolated.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[x_kube(
    validation = Rule::new("!has(self.probePorts) || !has(self.probes) || self.probes")
        .message("probePorts are given, but probes is false"),
    validation = Rule::new("!has(self.probeCgroup) || !has(self.probes) || self.probes")
        .message("probeCgroup is given, but probes is false")
)]
#[serde(rename_all = "camelCase")]
pub struct PolicySpec {
    /// Whether the pod's containers reach each other on `lo`; true by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loopback: Option<bool>,
    /// Whether the node's own probes pass; true by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<bool>,
    /// The ports to which probes pass; every port by default.
    #[schemars(length(min = 1, max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_ports: Option<Vec<Port>>,
    /// The cgroup (version 2) of the node that probes come from, as `system.slice/kubelet.service`, or `kubelet` to have it found
    /// by the kubelet's process; where none is given, probes are what root's processes on the node open.
    #[schemars(length(min = 1, max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_cgroup: Option<String>,
    /// Flows that are let through besides.
    #[schemars(length(max = 128))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<AllowSpec>,
}

/// Flows between the pod and a peer, opened from the side that `direction` says.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AllowSpec {
    /// Who opens, seen from the pod.
    pub direction: DirectionSpec,
    /// The other side: an address or a CIDR, of either family.
    #[schemars(length(min = 2, max = 49))]
    #[x_kube(validation = Rule::new("isCIDR(self) || isIP(self)").message("an address or a CIDR is needed here"))]
    pub peer: String,
    /// The protocol.
    pub protocol: ProtocolSpec,
    /// The ports of the side that is opened to; every port by default.
    #[schemars(length(min = 1, max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<Port>>,
}

/// Seen from the pod.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum DirectionSpec {
    /// The peer opens.
    Ingress,
    /// The pod opens.
    Egress,
}

/// A protocol that has ports.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum ProtocolSpec {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port, or a range of them as "from-to".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    /// One.
    One(u16),
    /// What somebody wrote for several.
    Text(String),
}

impl Serialize for Port {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::One(port) => serializer.serialize_u16(*port),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

impl<'de> Deserialize<'de> for Port {
    // By way of a value: an untagged enum would not see a number, since numbers of any precision are on in serde_json.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self::Text(text)),
            value => match value.as_u64().and_then(|port| u16::try_from(port).ok()) {
                Some(port) => Ok(Self::One(port)),
                None => Err(serde::de::Error::custom(format!("{value} is no port"))),
            },
        }
    }
}

impl JsonSchema for Port {
    fn schema_name() -> Cow<'static, str> {
        "Port".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "description": "A port from 1 to 65535, or a range of them as \"from-to\".",
            // Each holds for the values that it can hold for. That a range does not run backwards is seen by the node.
            "minimum": 1,
            "maximum": 65535,
            "pattern": "^[1-9][0-9]{0,4}-[1-9][0-9]{0,4}$",
        })
    }
}

impl PolicySpec {
    /// The policy that lets nothing through.
    #[must_use]
    pub fn sealed() -> Self {
        Self { loopback: Some(false), probes: Some(false), ..Self::default() }
    }

    /// The policy of a mark.
    ///
    /// # Errors
    /// What is wrong, in words, where the plugin does not take it.
    pub fn understood(&self) -> Result<Policy, String> {
        let mut object = Map::new();
        let mut narrowed = Map::new();
        narrowed.extend(self.probe_ports.as_ref().map(|ports| ("ports".to_owned(), json!(ports))));
        narrowed.extend(self.probe_cgroup.as_ref().map(|cgroup| ("cgroup".to_owned(), json!(cgroup))));
        let probes = match (self.probes, narrowed.is_empty()) {
            (Some(false), true) => json!(false),
            (Some(false), false) => {
                let given = if self.probe_ports.is_some() { "probePorts are" } else { "probeCgroup is" };
                return Err(format!("{given} given, but probes is false"));
            }
            (_, true) => json!(true),
            (_, false) => Value::Object(narrowed),
        };
        object.insert("loopback".to_owned(), json!(self.loopback.unwrap_or(true)));
        object.insert("probes".to_owned(), probes);
        object.insert("allow".to_owned(), json!(self.allow));
        Policy::read(&At::new("policy", &Value::Object(object))).map_err(|error| error.to_string())
    }

    pub(super) fn understood_or_sealed(&self) -> Policy {
        self.understood().unwrap_or_else(|_| Policy::sealed())
    }
}

impl From<&Policy> for PolicySpec {
    fn from(policy: &Policy) -> Self {
        let (ports, prober) = match &policy.probes {
            Probes::Off => (None, None),
            Probes::On { ports, prober } => (ports.as_ref(), prober.text()),
        };
        Self {
            loopback: Some(policy.loopback),
            probes: Some(policy.probes != Probes::Off),
            probe_ports: ports.map(listed),
            probe_cgroup: prober,
            allow: policy.allow.iter().map(AllowSpec::from).collect(),
        }
    }
}

impl From<&Allow> for AllowSpec {
    fn from(allow: &Allow) -> Self {
        Self {
            direction: match allow.direction {
                Direction::Ingress => DirectionSpec::Ingress,
                Direction::Egress => DirectionSpec::Egress,
            },
            peer: allow.peer.to_string(),
            protocol: match allow.protocol {
                Protocol::Tcp => ProtocolSpec::Tcp,
                Protocol::Udp => ProtocolSpec::Udp,
            },
            ports: Some(listed(&allow.ports)),
        }
    }
}

fn listed(ports: &Ports) -> Vec<Port> {
    let port = |&(first, last): &(u16, u16)| {
        if first == last { Port::One(first) } else { Port::Text(format!("{first}-{last}")) }
    };
    ports.ranges().iter().map(port).collect()
}
