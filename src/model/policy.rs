//! What is still let through while a sandbox is isolated, and which mark decides it.
//!
//! Pure: text and values in, decisions out. How a policy becomes nftables rules is the business of `ruleset`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

pub use crate::model::cgroup::CgroupPath;
use crate::model::json::{At, Unexpected};
use crate::model::policy_in_file::write_network;
pub use crate::model::ports::{Ports, parse_range};
pub use crate::model::probes::{Prober, Probes};

/// What is let through while isolated. Everything else is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Policy {
    /// Whether the containers of the pod reach each other on `lo`.
    pub loopback: bool,
    /// The node's own probes.
    pub probes: Probes,
    /// Flows that are let through besides.
    pub allow: Vec<Allow>,
}

/// Flows of one protocol between the pod and a peer, opened from the side that `direction` says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Allow {
    /// Who opens.
    pub direction: Direction,
    /// The other side.
    pub peer: IpNetwork,
    /// The protocol.
    pub protocol: Protocol,
    /// The ports of the side that is opened to.
    pub ports: Ports,
}

/// Seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// The peer opens.
    Ingress,
    /// The pod opens.
    Egress,
}

/// A transport protocol that has ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Default for Policy {
    /// `lo` and the node's probes: what keeps the scene alive.
    fn default() -> Self {
        Self { loopback: true, probes: Probes::any(), allow: Vec::new() }
    }
}

impl Policy {
    /// The policy that lets nothing through, not even `lo` or probes.
    #[must_use]
    pub fn sealed() -> Self {
        Self { loopback: false, probes: Probes::Off, allow: Vec::new() }
    }

    /// Whether nothing at all is let through.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        *self == Self::sealed()
    }

    /// Whether the pod may open flows to this port.
    #[must_use]
    pub fn allows_egress(&self, protocol: u8, address: IpAddr, port: u16) -> bool {
        self.allow.iter().any(|allow| {
            allow.direction == Direction::Egress
                && allow.protocol.number() == protocol
                && allow.peer.contains(address)
                && allow.ports.contains(port)
        })
    }

    /// Reads the `policy` object of a conflist entry or a mark. What it does not say has its default.
    ///
    /// # Errors
    /// At the first unknown key or value that is not allowed.
    pub fn read(at: &At<'_>) -> Result<Self, Unexpected> {
        at.object_of(&["loopback", "probes", "allow"])?;
        let mut policy = Self::default();
        if let Some(loopback) = at.get("loopback")? {
            policy.loopback = loopback.truth()?;
        }
        if let Some(probes) = at.get("probes")? {
            policy.probes = Probes::read(&probes)?;
        }
        if let Some(allow) = at.get("allow")? {
            policy.allow = allow.list()?.iter().map(Allow::read).collect::<Result<_, _>>()?;
        }
        Ok(policy)
    }

    /// The policy as `read` reads it, with every key.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "loopback": self.loopback,
            "probes": self.probes.to_json(),
            "allow": self.allow.iter().map(Allow::to_json).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Policy {
    /// One word or a few, for tables and log lines.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_sealed() {
            return f.write_str("sealed");
        }
        let mut joint = "";
        if self.loopback {
            f.write_str("loopback")?;
            joint = "+";
        }
        if self.probes != Probes::Off {
            write!(f, "{joint}{}", self.probes)?;
            joint = "+";
        }
        for allow in &self.allow {
            write!(f, "{joint}{allow}")?;
            joint = "+";
        }
        Ok(())
    }
}

impl Allow {
    fn read(at: &At<'_>) -> Result<Self, Unexpected> {
        at.object_of(&["direction", "peer", "protocol", "ports"])?;
        let direction = at.required("direction")?;
        let peer = at.required("peer")?;
        let protocol = at.required("protocol")?;
        Ok(Self {
            direction: Direction::parse(direction.text()?)
                .ok_or_else(|| direction.unexpected("\"ingress\" or \"egress\""))?,
            peer: parse_peer(peer.text()?)
                .ok_or_else(|| peer.unexpected("an IPv4 or IPv6 CIDR, as \"10.20.0.5/32\" or \"fd00:20::/64\""))?,
            protocol: Protocol::parse(protocol.text()?).ok_or_else(|| protocol.unexpected("\"tcp\" or \"udp\""))?,
            ports: at.get("ports")?.map_or_else(|| Ok(Ports::any()), |ports| Ports::read(&ports))?,
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "direction": self.direction.as_str(),
            "peer": self.peer.to_string(),
            "protocol": self.protocol.as_str(),
            "ports": self.ports.to_json(),
        })
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(64);
        text.push_str(self.direction.as_str());
        text.push(':');
        write_network(&mut text, self.peer);
        text.push(':');
        text.push_str(self.protocol.as_str());
        write!(f, "{text}:{}", self.ports)
    }
}

impl FromStr for Allow {
    type Err = String;

    /// Reads what `Display` writes: `egress:10.20.0.5/32:tcp:443`. IPv6 peers have colons of their own, and may stand in
    /// brackets; without ports it is every port.
    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "DIRECTION:PEER:PROTOCOL[:PORTS], as \"egress:10.20.0.5/32:tcp:443,8000-8100\"";
        let (direction, rest) = text.split_once(':').ok_or_else(|| format!("the form is {FORM}"))?;
        let direction = Direction::parse(direction)
            .ok_or_else(|| format!("{direction:?} is no direction, \"ingress\" or \"egress\"; the form is {FORM}"))?;
        let (before, last) = rest.rsplit_once(':').ok_or_else(|| format!("the form is {FORM}"))?;
        let (peer, protocol, ports) = match Protocol::parse(last) {
            Some(protocol) => (before, protocol, Ports::any()),
            None => {
                let (peer, protocol) = before.rsplit_once(':').ok_or_else(|| format!("the form is {FORM}"))?;
                let protocol = Protocol::parse(protocol)
                    .ok_or_else(|| format!("{protocol:?} is no protocol, \"tcp\" or \"udp\"; the form is {FORM}"))?;
                let ranges: Option<Vec<_>> = last.split(',').map(parse_range).collect();
                let ports = ranges
                    .and_then(Ports::new)
                    .ok_or_else(|| format!("{last:?} are no ports from 1 to 65535; the form is {FORM}"))?;
                (peer, protocol, ports)
            }
        };
        let peer = parse_peer(&peer.replace(['[', ']'], ""))
            .ok_or_else(|| format!("{peer:?} is no address or CIDR; the form is {FORM}"))?;
        Ok(Self { direction, peer, protocol, ports })
    }
}

/// Reads a CIDR, or one address. Bits behind the prefix are dropped, as every router does.
#[must_use]
pub fn parse_peer(text: &str) -> Option<IpNetwork> {
    let network: IpNetwork = text.parse().ok()?;
    IpNetwork::new(network.network(), network.prefix()).ok()
}

impl Direction {
    /// As the policy writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// Reads what `as_str` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Ingress, Self::Egress].into_iter().find(|direction| direction.as_str() == text)
    }
}

impl Protocol {
    /// As the policy writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// Reads what `as_str` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp].into_iter().find(|protocol| protocol.as_str() == text)
    }

    /// Its number in an IP header.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Policy, String> {
        let value: Value = serde_json::from_str(text).unwrap();
        Policy::read(&At::new("policy", &value)).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_policy_is_the_default() {
        assert_eq!(read("{}"), Ok(Policy::default()));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let policy = read(
            r#"{"loopback": false, "probes": {"ports": [8080, "9000-9010", 9011]},
                "allow": [{"direction": "egress", "peer": "10.20.0.5", "protocol": "tcp", "ports": [443]},
                          {"direction": "ingress", "peer": "fd00::1/64", "protocol": "udp"}]}"#,
        )
        .unwrap();
        assert_eq!(
            policy.to_string(),
            "probes:8080,9000-9011+egress:10.20.0.5/32:tcp:443+ingress:fd00::/64:udp:1-65535"
        );
        assert_eq!(read(&policy.to_json().to_string()), Ok(policy));
    }

    #[test]
    fn errors_name_key_value_and_what_is_allowed() {
        for (text, key, value) in [
            (r#"{"loopbak": true}"#, "policy.loopbak", "true"),
            (r#"{"loopback": 1}"#, "policy.loopback", "1"),
            (r#"{"probes": "yes"}"#, "policy.probes", "\"yes\""),
            (r#"{"probes": {"port": 1}}"#, "policy.probes.port", "1"),
            (r#"{"probes": {}}"#, "policy.probes", "{}"),
            (r#"{"probes": {"ports": []}}"#, "policy.probes.ports", "[]"),
            (r#"{"probes": {"ports": [0]}}"#, "policy.probes.ports[0]", "0"),
            (r#"{"probes": {"ports": [65536]}}"#, "policy.probes.ports[0]", "65536"),
            (r#"{"probes": {"ports": [1.5]}}"#, "policy.probes.ports[0]", "1.5"),
            (r#"{"probes": {"ports": ["9-8"]}}"#, "policy.probes.ports[0]", "\"9-8\""),
            (r#"{"probes": {"ports": ["+1"]}}"#, "policy.probes.ports[0]", "\"+1\""),
            (r#"{"allow": {}}"#, "policy.allow", "{}"),
            (r#"{"allow": [{"peer": "10.0.0.0/8", "protocol": "tcp"}]}"#, "policy.allow[0]", "direction"),
            (
                r#"{"allow": [{"direction": "out", "peer": "10.0.0.0/8", "protocol": "tcp"}]}"#,
                "policy.allow[0].direction",
                "\"out\"",
            ),
            (
                r#"{"allow": [{"direction": "egress", "peer": "10.0.0.0/33", "protocol": "tcp"}]}"#,
                "policy.allow[0].peer",
                "\"10.0.0.0/33\"",
            ),
            (
                r#"{"allow": [{"direction": "egress", "peer": "10.0.0.0/8", "protocol": "icmp"}]}"#,
                "policy.allow[0].protocol",
                "\"icmp\"",
            ),
            (
                r#"{"allow": [{"direction": "egress", "peer": "10.0.0.0/8", "protocol": "tcp", "port": 443}]}"#,
                "policy.allow[0].port",
                "443",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(&format!("{key}: ")) && error.contains(value), "{text}: {error}");
        }
    }

    #[test]
    fn an_allowed_flow_is_read_as_it_is_written() {
        for (text, written) in [
            ("egress:10.20.0.5/32:tcp:443", "egress:10.20.0.5/32:tcp:443"),
            ("egress:10.20.0.5:tcp:443,80,81", "egress:10.20.0.5/32:tcp:80-81,443"),
            ("ingress:fd00:20::/64:udp:53", "ingress:fd00:20::/64:udp:53"),
            ("ingress:[fd00:20::7]:tcp:8000-8010", "ingress:fd00:20::7/128:tcp:8000-8010"),
            ("ingress:[fd00::]/16:tcp", "ingress:fd00::/16:tcp:1-65535"),
            ("egress:::/0:udp", "egress:::/0:udp:1-65535"),
        ] {
            let allow: Allow = text.parse().unwrap();
            assert_eq!(allow.to_string(), written);
            assert_eq!(written.parse(), Ok(allow));
        }
        for (text, what) in [
            ("", "the form"),
            ("egress", "the form"),
            ("egress:10.0.0.1", "the form"),
            ("out:10.0.0.1:tcp:1", "\"out\" is no direction"),
            ("egress:10.0.0.1:icmp:1", "\"icmp\" is no protocol"),
            ("egress:10.0.0.1:443", "the form"),
            ("egress:10.0.0.1:tcp:0", "\"0\" are no ports"),
            ("egress:10.0.0.1:tcp:", "\"\" are no ports"),
            ("egress:10.0.0.1:tcp:+1", "are no ports"),
            ("egress:10.0.0.300:tcp:1", "\"10.0.0.300\" is no address"),
            ("egress:web:tcp:1", "\"web\" is no address"),
        ] {
            let error = text.parse::<Allow>().unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
