//! What ADD writes down of an attachment, and its form in `attachments/<container ID>/<ifname>.json`.
//!
//! Pure. Only this program writes records and reads them. What it does not know in one is passed over, so that a node that
//! goes back to an older version keeps its pods. A record holds all that is needed to isolate the sandbox later without asking anything inside it: whoever is
//! root in the pod by then could answer falsely.

use std::borrow::Cow;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::error::Category;

use crate::model::fault::Fault;
use crate::model::names::{
    AttachmentId, ContainerId, IfName, Mac, NetnsPath, NetworkName, Pod, Route, SandboxInterface,
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
    /// What the conflist asked of the eBPF layer.
    pub ebpf: Ebpf,
    /// The interfaces that were there.
    pub interfaces: Vec<PinnedInterface>,
    /// Whether its ADD did not find the interface that it was called for: nobody knows then where that leads.
    pub lacks_interface: bool,
    /// Whether the first packets of what is dropped while it is isolated are kept.
    pub capture: bool,
    /// Whether it was made of what the runtime's cache says, after the pod had run: no ADD has seen it.
    pub adopted: bool,
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
    /// Whether frames left the sandbox by it; not known, and so not said, of the records of version 0.1.
    pub led_outside: bool,
}

/// An interface on the host. Nobody can change its index; but once it is deleted another may have it: an interface that is
/// moved to the node keeps the index that it had in its pod's netns, if none there has it, and main plugins make veths so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEnd {
    /// Its index.
    pub index: u32,
    /// Its name then; not known of the records of version 0.1.
    #[serde(default)]
    pub name: Option<IfName>,
    /// Its Ethernet address then.
    #[serde(deserialize_with = "Option::deserialize")]
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeOnLink {
    /// The addresses that the node speaks from: per family the source address of its route to the pod, and its
    /// link-local addresses on that link.
    pub addresses: Vec<IpAddr>,
    /// Its Ethernet address on that link, where the link is its own.
    #[serde(deserialize_with = "Option::deserialize")]
    pub mac: Option<Mac>,
    /// Other next hops on that link that the node asked for, and what they answered. Not written down: they are asked for
    /// anew whenever rules are made.
    #[serde(skip)]
    pub neighbours: Vec<(IpAddr, Option<Mac>)>,
}

/// What is asked of the host guard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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

/// What is asked of the eBPF layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ebpf {
    /// Where something takes packets past the host guard.
    #[default]
    Auto,
    /// On every host's end.
    Always,
    /// Never.
    Off,
}

impl Ebpf {
    /// As the configuration writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Off => "off",
        }
    }

    /// Reads what `as_str` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Auto, Self::Always, Self::Off].into_iter().find(|ebpf| ebpf.as_str() == text)
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
    pub fn to_json(&self) -> String {
        let interface = |pinned: &PinnedInterface| {
            let PinnedInterface { interface, node, host_end, led_outside } = pinned.clone();
            let SandboxInterface { name, mac, addresses, routes } = interface;
            InterfaceInFile { name, mac, addresses, routes, node, host_end, led_outside }
        };
        let file = RecordInFile {
            network: self.network.clone(),
            container_id: self.id.container_id.clone(),
            ifname: self.id.ifname.clone(),
            netns: self.netns.clone(),
            netns_cookie: self.netns_cookie,
            pod: self.pod.clone(),
            policy: Cow::Borrowed(&self.policy),
            host_guard: self.host_guard,
            ebpf: self.ebpf,
            interfaces: self.interfaces.iter().map(interface).collect(),
            lacks_interface: self.lacks_interface,
            capture: self.capture,
            adopted: self.adopted,
        };
        // Only a map whose keys are no text, or an error of `Serialize` itself, could make it fail: there is neither.
        let mut text = serde_json::to_string(&file).unwrap_or_default();
        // What may be long comes last, and is written as it is written fastest.
        if text.pop().is_some() {
            text.push_str(",\"policy\":");
            self.policy.write(&mut text);
            text.push('}');
        }
        text
    }

    /// Reads a record.
    ///
    /// # Errors
    /// At the first key that is missing or has a value that is not allowed.
    pub fn read(content: &[u8]) -> Result<Self, Fault> {
        let file: RecordInFile<'_> = serde_json::from_slice(content).map_err(|error| match error.classify() {
            Category::Data => Fault::Incomplete(error.to_string()),
            Category::Syntax | Category::Eof | Category::Io => Fault::NotJson(error.to_string()),
        })?;
        let interface =
            |InterfaceInFile { name, mac, addresses, routes, node, host_end, led_outside }| PinnedInterface {
                interface: SandboxInterface { name, mac, addresses, routes },
                node,
                host_end,
                led_outside,
            };
        Ok(Self {
            id: AttachmentId { container_id: file.container_id, ifname: file.ifname },
            network: file.network,
            netns: file.netns,
            netns_cookie: file.netns_cookie,
            pod: file.pod,
            policy: file.policy.into_owned(),
            host_guard: file.host_guard,
            ebpf: file.ebpf,
            interfaces: file.interfaces.into_iter().map(interface).collect(),
            lacks_interface: file.lacks_interface,
            capture: file.capture,
            adopted: file.adopted,
        })
    }
}

/// A record as its file has it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RecordInFile<'a> {
    network: NetworkName,
    #[serde(rename = "containerID")]
    container_id: ContainerId,
    ifname: IfName,
    netns: NetnsPath,
    netns_cookie: u64,
    pod: Pod,
    #[serde(skip_serializing)]
    policy: Cow<'a, Policy>,
    host_guard: HostGuard,
    /// Older versions do not know this, and write no such key.
    #[serde(default)]
    ebpf: Ebpf,
    interfaces: Vec<InterfaceInFile>,
    /// Older versions do not know this and the next two, and pass them over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    lacks_interface: bool,
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    capture: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    adopted: bool,
}

fn yes() -> bool {
    true
}

/// An interface as the file has it. What may be null must be there all the same: a record that lacks it is damaged.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct InterfaceInFile {
    name: IfName,
    #[serde(deserialize_with = "Option::deserialize")]
    mac: Option<Mac>,
    addresses: Vec<IpAddr>,
    routes: Vec<Route>,
    node: NodeOnLink,
    #[serde(deserialize_with = "Option::deserialize")]
    host_end: Option<HostEnd>,
    #[serde(default)]
    led_outside: bool,
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub fn try_any(bytes: &[u8]) {
    if let Ok(record) = Record::read(bytes) {
        assert_eq!(Record::read(record.to_json().as_bytes()), Ok(record));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::{PodName, PodUid};

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
            ebpf: Ebpf::Always,
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
                led_outside: true,
            }],
            lacks_interface: true,
            capture: false,
            adopted: true,
        };
        assert_eq!(Record::read(record.to_json().as_bytes()), Ok(record));
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
    fn an_older_record_says_its_policy_among_the_rest() {
        let text = r#"{"network":"n","containerID":"c","ifname":"eth0","netns":"/x","netnsCookie":1,"pod":{},"policy":{"loopback":false,
            "probes":{"ports":[8080,"9000-9010"]},"allow":[{"direction":"egress","peer":"10.20.0.5/32","protocol":"tcp","ports":[443]},
            {"direction":"ingress","peer":"fd00::/64","protocol":"udp","ports":["1-65535"]}]},"hostGuard":"auto","interfaces":[]}"#;
        let record = Record::read(text.as_bytes()).unwrap();
        assert_eq!(
            record.policy.to_string(),
            "probes:8080,9000-9010+egress:10.20.0.5/32:tcp:443+ingress:fd00::/64:udp:1-65535"
        );
        // And says it as that did, wherever it stands.
        let [before, after]: [serde_json::Value; 2] =
            [text, &record.to_json()].map(|text| serde_json::from_str(text).unwrap());
        assert_eq!(after["policy"].to_string(), before["policy"].to_string());
        assert_eq!(Record::read(record.to_json().as_bytes()), Ok(record));
    }

    #[test]
    fn a_damaged_record_says_what_is_wrong() {
        assert!(Record::read(b"").unwrap_err().to_string().starts_with("not JSON"));
        assert!(Record::read(b"{}").unwrap_err().to_string().contains("missing field `network`"));
    }
}
