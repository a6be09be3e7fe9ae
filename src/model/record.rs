//! What ADD writes down of an attachment, and its form in `attachments/<container ID>/<ifname>.json`.
//!
//! Pure. A record holds all that is needed to isolate the sandbox later without asking anything inside it: whoever is
//! root in the pod by then could answer falsely.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};

use crate::model::json::{At, Unexpected};
use crate::model::names::{
    AttachmentId, ContainerId, IfName, Mac, NetnsPath, NetworkName, Pod, PodName, PodUid, Route, SandboxInterface,
};
use crate::model::policy::Policy;

/// An attachment as its ADD left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Which attachment.
    pub id: AttachmentId,
    /// The network that it is of.
    pub network: NetworkName,
    /// Where the sandbox's netns was.
    pub netns: NetnsPath,
    /// What that netns is, since another may stand at the same path later.
    pub netns_cookie: u64,
    /// The pod.
    pub pod: Pod,
    /// The policy of the conflist.
    pub policy: Policy,
    /// What the conflist asked of the host guard.
    pub host_guard: HostGuard,
    /// The interfaces that were there.
    pub interfaces: Vec<PinnedInterface>,
}

/// An interface of a sandbox as its ADD found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedInterface {
    /// What it was in the sandbox.
    pub interface: SandboxInterface,
    /// What the node looked like from it.
    pub node: NodeOnLink,
    /// Its other end, where that was on the host. It stays there, wherever root in the pod moves the pod's end.
    pub host_end: Option<HostEnd>,
}

/// An interface on the host. Nobody can change its index; but once it is deleted another may have it: an interface that is
/// moved to the node keeps the index that it had in its pod's netns, if none there has it, and main plugins make veths so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEnd {
    /// Its index.
    pub index: u32,
    /// Its name then; not known of the records of version 0.1.
    pub name: Option<IfName>,
    /// Its Ethernet address then.
    pub mac: Option<Mac>,
}

impl HostEnd {
    /// Whether the interface that has its index now has its name or its address too, and so is the same one. Either may
    /// be changed on the node: what has neither may be the same one all the same, which then has to be shown by its pair.
    #[must_use]
    pub fn resembles(&self, name: &IfName, mac: Option<Mac>) -> bool {
        // An address of six equal bytes was chosen by a program, for all of its interfaces (Calico's are ee:ee:ee:ee:ee:ee).
        let tells = |mac: &Mac| mac.0.iter().any(|byte| *byte != mac.0[0]);
        self.name.as_ref() == Some(name) || (self.mac.filter(tells).is_some() && self.mac == mac)
    }
}

/// What the node looks like from one interface of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeOnLink {
    /// The addresses that the node speaks from: per family the source address of its route to the pod, and its
    /// link-local addresses on that link.
    pub addresses: Vec<IpAddr>,
    /// Its Ethernet address on that link, where the link is its own.
    pub mac: Option<Mac>,
    /// Other next hops on that link that the node asked for, and what they answered.
    pub neighbours: Vec<(IpAddr, Option<Mac>)>,
}

/// What is asked of the host guard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HostGuard {
    /// Wherever the pod has a host-side peer.
    #[default]
    Auto,
    /// Isolating fails where the pod has none.
    Require,
    /// Never.
    Off,
}

impl HostGuard {
    /// As the configuration writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Require => "require",
            Self::Off => "off",
        }
    }

    /// Reads what `as_str` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Auto, Self::Require, Self::Off].into_iter().find(|guard| guard.as_str() == text)
    }
}

impl Record {
    /// The sandbox.
    #[must_use]
    pub fn container_id(&self) -> &ContainerId {
        &self.id.container_id
    }

    /// The record as `read` reads it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut pod = Map::new();
        let parts = [
            ("namespace", self.pod.namespace.as_ref().map(PodName::as_str)),
            ("name", self.pod.name.as_ref().map(PodName::as_str)),
            ("uid", self.pod.uid.as_ref().map(PodUid::as_str)),
        ];
        for (key, part) in parts {
            if let Some(part) = part {
                pod.insert(key.to_owned(), json!(part));
            }
        }
        let interfaces: Vec<_> = self.interfaces.iter().map(interface_to_json).collect();
        json!({
            "network": self.network.as_str(),
            "containerID": self.id.container_id.as_str(),
            "ifname": String::from_utf8_lossy(self.id.ifname.as_bytes()),
            "netns": self.netns.to_string(),
            "netnsCookie": self.netns_cookie,
            "pod": pod,
            "policy": self.policy.to_json(),
            "hostGuard": self.host_guard.as_str(),
            "interfaces": interfaces,
        })
    }

    /// Reads a record.
    ///
    /// # Errors
    /// At the first key that is missing or has a value that is not allowed.
    pub fn read(content: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(content).map_err(|error| format!("not JSON: {error}"))?;
        Self::from_json(&At::new("", &value)).map_err(|error| error.to_string())
    }

    fn from_json(at: &At<'_>) -> Result<Self, Unexpected> {
        let pod = at.required("pod")?;
        let pod_name = |key| pod.get(key)?.map(|part| checked(&part, PodName::new)).transpose();
        let cookie = at.required("netnsCookie")?;
        let guard = at.required("hostGuard")?;
        Ok(Self {
            id: AttachmentId {
                container_id: checked(&at.required("containerID")?, ContainerId::new)?,
                ifname: checked(&at.required("ifname")?, |name| IfName::new(name))?,
            },
            network: checked(&at.required("network")?, NetworkName::new)?,
            netns: checked(&at.required("netns")?, |path| NetnsPath::new(path))?,
            netns_cookie: cookie.value().as_u64().ok_or_else(|| cookie.unexpected("a number"))?,
            pod: Pod {
                namespace: pod_name("namespace")?,
                name: pod_name("name")?,
                uid: pod.get("uid")?.map(|uid| checked(&uid, PodUid::new)).transpose()?,
            },
            policy: Policy::read(&at.required("policy")?)?,
            host_guard: HostGuard::parse(guard.text()?)
                .ok_or_else(|| guard.unexpected("a setting of the host guard"))?,
            interfaces: at.required("interfaces")?.list()?.iter().map(interface_from_json).collect::<Result<_, _>>()?,
        })
    }
}

fn interface_to_json(PinnedInterface { interface, node, host_end }: &PinnedInterface) -> Value {
    let routes: Vec<_> = interface
        .routes
        .iter()
        .map(|route| json!({ "destination": route.destination.to_string(), "gateway": route.gateway }))
        .collect();
    json!({
        "name": String::from_utf8_lossy(interface.name.as_bytes()),
        "mac": interface.mac.map(|mac| mac.to_string()),
        "addresses": interface.addresses,
        "routes": routes,
        "node": { "addresses": node.addresses, "mac": node.mac.map(|mac| mac.to_string()) },
        "hostEnd": host_end.as_ref().map(|end| json!({
            "index": end.index,
            "name": end.name.as_ref().map(|name| String::from_utf8_lossy(name.as_bytes())),
            "mac": end.mac.map(|mac| mac.to_string()),
        })),
    })
}

fn interface_from_json(at: &At<'_>) -> Result<PinnedInterface, Unexpected> {
    let addresses = |at: &At<'_>| {
        at.list()?.iter().map(|address| parsed::<IpAddr>(address, "an address")).collect::<Result<Vec<_>, _>>()
    };
    let mac = |at: At<'_>| match at.value() {
        Value::Null => Ok(None),
        _ => Mac::parse(at.text()?).map(Some).ok_or_else(|| at.unexpected("an Ethernet address")),
    };
    let route = |at: &At<'_>| {
        let gateway = at.required("gateway")?;
        Ok(Route {
            destination: parsed::<IpNetwork>(&at.required("destination")?, "a CIDR")?,
            gateway: if gateway.value().is_null() { None } else { Some(parsed(&gateway, "an address")?) },
        })
    };
    let node = at.required("node")?;
    let interface = SandboxInterface {
        name: checked(&at.required("name")?, |name| IfName::new(name))?,
        mac: mac(at.required("mac")?)?,
        addresses: addresses(&at.required("addresses")?)?,
        routes: at.required("routes")?.list()?.iter().map(route).collect::<Result<_, _>>()?,
    };
    let node = NodeOnLink {
        addresses: addresses(&node.required("addresses")?)?,
        mac: mac(node.required("mac")?)?,
        ..NodeOnLink::default()
    };
    let end = at.required("hostEnd")?;
    let host_end = if end.value().is_null() {
        None
    } else {
        let index = end.required("index")?;
        let number = index.value().as_u64().and_then(|number| u32::try_from(number).ok());
        Some(HostEnd {
            index: number.ok_or_else(|| index.unexpected("an interface index"))?,
            name: match end.get("name")? {
                Some(name) if !name.value().is_null() => Some(checked(&name, |name| IfName::new(name))?),
                _ => None,
            },
            mac: mac(end.required("mac")?)?,
        })
    };
    Ok(PinnedInterface { interface, node, host_end })
}

fn checked<T>(at: &At<'_>, check: impl Fn(&str) -> Result<T, crate::model::names::NameError>) -> Result<T, Unexpected> {
    check(at.text()?).map_err(|error| at.unexpected(error.to_string()))
}

fn parsed<T: std::str::FromStr>(at: &At<'_>, allowed: &str) -> Result<T, Unexpected> {
    at.text()?.parse().map_err(|_| at.unexpected(allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let record = Record {
            id: AttachmentId { container_id: ContainerId::new("c1").unwrap(), ifname: IfName::new("eth0").unwrap() },
            network: NetworkName::new("net").unwrap(),
            netns: NetnsPath::new("/run/netns/x").unwrap(),
            netns_cookie: u64::MAX,
            pod: Pod { namespace: None, name: Some(PodName::new("n").unwrap()), uid: Some(PodUid::new("u").unwrap()) },
            policy: Policy::sealed(),
            host_guard: HostGuard::Require,
            interfaces: vec![PinnedInterface {
                interface: SandboxInterface {
                    name: IfName::new("eth0").unwrap(),
                    mac: Some(Mac([2, 0, 0, 0, 0, 1])),
                    addresses: vec!["10.0.0.2".parse().unwrap(), "fe80::1".parse().unwrap()],
                    routes: vec![Route {
                        destination: "0.0.0.0/0".parse().unwrap(),
                        gateway: Some("10.0.0.1".parse().unwrap()),
                    }],
                },
                node: NodeOnLink { addresses: vec!["10.0.0.1".parse().unwrap()], ..NodeOnLink::default() },
                host_end: Some(HostEnd {
                    index: 7,
                    name: IfName::new("veth7").ok(),
                    mac: Mac::parse("02:00:00:00:00:07"),
                }),
            }],
        };
        assert_eq!(Record::read(record.to_json().to_string().as_bytes()), Ok(record));
    }

    #[test]
    fn an_end_is_told_by_its_name_or_an_address_of_its_own() {
        let name = |name: &str| IfName::new(name).unwrap();
        let (own, other, calico) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]), Mac([0xee; 6]));
        for (recorded, mac, now, mac_now, expected) in [
            (Some("veth1"), Some(own), "veth1", Some(own), true),
            (Some("veth1"), Some(own), "veth1", Some(other), true),
            (Some("veth1"), Some(own), "renamed", Some(own), true),
            (Some("veth1"), Some(own), "veth2", Some(other), false),
            (Some("cali1"), Some(calico), "cali2", Some(calico), false),
            (Some("cali1"), Some(calico), "cali1", Some(calico), true),
            (Some("nk1"), None, "nk2", None, false),
            (None, Some(own), "veth1", Some(own), true),
            (None, Some(own), "veth1", Some(other), false),
        ] {
            let end = HostEnd { index: 7, name: recorded.map(name), mac };
            assert_eq!(end.resembles(&name(now), mac_now), expected, "{end:?}, now {now} {mac_now:?}");
        }
    }

    #[test]
    fn a_record_of_version_0_1_says_no_name_of_the_host_end() {
        let text = r#"{"network": "n", "containerID": "c", "ifname": "eth0", "netns": "/x", "netnsCookie": 1, "pod": {},
            "policy": {}, "hostGuard": "auto", "interfaces": [{"name": "eth0", "mac": null, "addresses": [], "routes": [],
            "node": {"addresses": [], "mac": null}, "hostEnd": {"index": 7, "mac": "02:00:00:00:00:07"}}]}"#;
        let end = Record::read(text.as_bytes()).unwrap().interfaces[0].host_end.clone().unwrap();
        assert_eq!((end.index, end.name, end.mac), (7, None, Mac::parse("02:00:00:00:00:07")));
    }

    #[test]
    fn a_damaged_record_says_what_is_wrong() {
        assert!(Record::read(b"").unwrap_err().starts_with("not JSON"));
        assert!(Record::read(b"{}").unwrap_err().contains("\"pod\" is missing"));
    }
}
