//! What is asked of a runtime, and what its answers say of a sandbox. Pure.

use serde_json::Value;

use super::super::cache::{InterfaceInFile, IpInFile, ResultInFile, RouteInFile, interfaces_of};
use super::protobuf::{Message, put_bytes, put_number};
use crate::adopt::Cached;
use crate::model::names::{
    AttachmentId, ContainerId, IfName, NameError, NetnsPath, NetworkName, Pod, PodName, PodUid, SandboxInterface,
};

/// What every runtime that has the CRI calls the interface of a pod's first network.
const IFNAME: &str = "eth0";
/// `NamespaceMode.NODE`.
const OF_NODE: u64 = 2;

/// `ListPodSandboxRequest`: those that are ready.
pub(super) fn list_request() -> Vec<u8> {
    const FILTER: u8 = 1;
    const STATE: u8 = 2;
    let (mut filter, mut request) = (Vec::new(), Vec::new());
    // `SANDBOX_READY` is 0, which is not written.
    put_bytes(&mut filter, STATE, &[]);
    put_bytes(&mut request, FILTER, &filter);
    request
}

/// `PodSandboxStatusRequest`, at length.
pub(super) fn status_request(container_id: &ContainerId) -> Vec<u8> {
    const POD_SANDBOX_ID: u8 = 1;
    const VERBOSE: u8 = 2;
    let mut request = Vec::new();
    put_bytes(&mut request, POD_SANDBOX_ID, container_id.as_str().as_bytes());
    put_number(&mut request, VERBOSE, 1);
    request
}

/// The IDs in a `ListPodSandboxResponse`.
pub(super) fn read_list(answer: &[u8]) -> Result<Vec<&str>, &'static str> {
    const ITEMS: u64 = 1;
    const ID: u64 = 1;
    let response = Message::read(answer).ok_or("it is no message")?;
    response
        .all(ITEMS)
        .map(|item| Message::read(item)?.text(ID))
        .collect::<Option<_>>()
        .ok_or("it lists what is no sandbox")
}

/// The sandbox of a `PodSandboxStatusResponse`; `None` where it is in the host's network.
///
/// # Errors
/// Says what is missing.
pub(super) fn read_status(answer: &[u8], network: &NetworkName) -> Result<Option<Cached>, String> {
    const STATUS: u64 = 1;
    const INFO: u64 = 2;
    let unreadable = || "the runtime's answer is no message".to_owned();
    let response = Message::read(answer).ok_or_else(unreadable)?;
    let status = response.message(STATUS).ok_or_else(unreadable)?;
    let status = Status::read(&status).ok_or_else(unreadable)?;
    if status.network_mode == OF_NODE {
        return Ok(None);
    }
    let info = response.all(INFO).filter_map(|entry| {
        let entry = Message::read(entry)?;
        (entry.text(1)? == "info").then(|| entry.text(2))?
    });
    let info = info.last().ok_or("the runtime says no more of it than the CRI asks for")?;
    let info = serde_json::from_str(info).map(Info).map_err(|error| format!("what the runtime says of it: {error}"))?;
    let netns = info.netns().ok_or("the runtime does not say where the network namespace is")?;
    let name = |error: NameError| error.to_string();
    let named = |text: &str| (!text.is_empty()).then(|| PodName::new(text)).transpose().map_err(name);
    let ifname = IfName::new(IFNAME).map_err(name)?;
    Ok(Some(Cached {
        interfaces: info.interfaces(&ifname, &status.addresses)?,
        id: AttachmentId { container_id: ContainerId::new(status.id).map_err(name)?, ifname },
        network: network.clone(),
        netns: NetnsPath::new(netns).map_err(name)?,
        pod: Pod {
            namespace: named(status.pod_namespace)?,
            name: named(status.pod_name)?,
            uid: (!status.pod_uid.is_empty()).then(|| PodUid::new(status.pod_uid)).transpose().map_err(name)?,
        },
    }))
}

/// A `PodSandboxStatus`.
struct Status<'a> {
    id: &'a str,
    pod_name: &'a str,
    pod_uid: &'a str,
    pod_namespace: &'a str,
    addresses: Vec<&'a str>,
    network_mode: u64,
}

impl<'a> Status<'a> {
    fn read(status: &Message<'a>) -> Option<Self> {
        const METADATA: u64 = 2;
        const NETWORK: u64 = 5;
        const LINUX: u64 = 6;
        let (metadata, network) = (status.message(METADATA)?, status.message(NETWORK)?);
        let additional = network.all(2).map(|ip| Message::read(ip)?.text(1)).collect::<Option<Vec<_>>>()?;
        // LinuxPodSandboxStatus.namespaces.options.network
        let options = status.message(LINUX)?.message(1)?.message(2)?;
        Some(Self {
            id: status.text(1)?,
            pod_name: metadata.text(1)?,
            pod_uid: metadata.text(2)?,
            pod_namespace: metadata.text(3)?,
            addresses: network.text(1).into_iter().chain(additional).filter(|ip| !ip.is_empty()).collect(),
            network_mode: options.number(1),
        })
    }
}

/// What containerd and CRI-O say beyond the CRI.
struct Info(Value);

impl Info {
    fn netns(&self) -> Option<&str> {
        let namespaces = self.0.pointer("/runtimeSpec/linux/namespaces")?.as_array()?;
        let network = namespaces.iter().find(|namespace| namespace["type"] == "network")?;
        network["path"].as_str().filter(|path| !path.is_empty())
    }

    /// The pod's interfaces: by CRI-O's or containerd's result of its network, else the one with the addresses that the CRI names.
    fn interfaces(&self, ifname: &IfName, addresses: &[&str]) -> Result<Vec<SandboxInterface>, String> {
        const OF_CRIO: &str = "io.kubernetes.cri-o.CNIResult";
        let of_crio =
            self.0.pointer("/runtimeSpec/annotations").and_then(|annotations| annotations.get(OF_CRIO)?.as_str());
        let result = match (of_crio, self.0.get("cniResult")) {
            (Some(text), _) => serde_json::from_str(text).map_err(|error| format!("{OF_CRIO}: {error}"))?,
            (None, Some(result)) => of_containerd(result),
            (None, None) => {
                let ip = |address: &&str| IpInFile { address: (*address).to_owned(), gateway: None, interface: None };
                ResultInFile { ips: Some(addresses.iter().map(ip).collect()), ..ResultInFile::default() }
            }
        };
        interfaces_of(&result, ifname)
    }
}

/// What containerd's go-cni has of a result, as a plugin says it. An address has lost the length of its prefix on the way here: of
/// the pod's network no more is known than its gateway.
fn of_containerd(result: &Value) -> ResultInFile {
    let text = |value: &Value, key: &str| value[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let (mut interfaces, mut ips) = (Vec::new(), Vec::new());
    for (name, interface) in result["Interfaces"].as_object().into_iter().flatten().filter(|(name, _)| *name != "lo") {
        let sandbox @ Some(_) = text(interface, "Sandbox") else { continue };
        for ip in interface["IPConfigs"].as_array().into_iter().flatten() {
            let Some(address) = text(ip, "IP") else { continue };
            ips.push(IpInFile { address, gateway: text(ip, "Gateway"), interface: Some(interfaces.len()) });
        }
        interfaces.push(InterfaceInFile { name: name.clone(), mac: text(interface, "Mac"), sandbox });
    }
    let route = |route| Some(RouteInFile { dst: text(route, "dst")?, gw: text(route, "gw") });
    let routes = result["Routes"].as_array().into_iter().flatten().filter_map(route).collect();
    ResultInFile { interfaces: Some(interfaces), ips: Some(ips), routes: Some(routes) }
}

/// What holds of any bytes (`fuzzing`): frames of an answer, or a message of it, or what a runtime says of a sandbox in one.
#[cfg(any(test, fuzzing))]
pub fn try_any(bytes: &[u8]) {
    let Ok(network) = NetworkName::new("pods") else { return };
    let whole = |answer: &[u8]| {
        let _ = read_list(answer);
        if let Ok(Some(cached)) = read_status(answer, &network) {
            assert_eq!(cached.interfaces.first().map(|interface| &interface.name), Some(&cached.id.ifname));
            assert!(cached.netns.as_path().is_absolute());
        }
    };
    whole(bytes);
    if let Ok(answer) = super::grpc::read_answer(bytes, std::io::sink()) {
        whole(&answer);
    }
    whole(&answer_of("c1", bytes));
}

/// A `PodSandboxStatusResponse` in which a runtime says this.
#[cfg(any(test, fuzzing))]
fn answer_of(id: &str, info: &[u8]) -> Vec<u8> {
    let (mut metadata, mut network, mut status, mut entry, mut answer) = (vec![], vec![], vec![], vec![], vec![]);
    for (field, text) in [(1, "web"), (2, "u1"), (3, "shop")] {
        put_bytes(&mut metadata, field, text.as_bytes());
    }
    put_bytes(&mut network, 1, b"10.0.0.2");
    put_bytes(&mut status, 1, id.as_bytes());
    put_bytes(&mut status, 2, &metadata);
    put_bytes(&mut status, 5, &network);
    put_bytes(&mut entry, 1, b"info");
    put_bytes(&mut entry, 2, info);
    put_bytes(&mut answer, 1, &status);
    put_bytes(&mut answer, 2, &entry);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTAINERD: &str = r#"{"pid": 7, "cniResult": {"Interfaces": {
        "eth0": {"IPConfigs": [{"IP": "10.0.0.2", "Gateway": "10.0.0.1"}, {"IP": "fd00::2", "Gateway": "fd00::1"}],
                 "Mac": "02:00:00:00:00:02", "Sandbox": "/run/netns/x"},
        "lo": {"IPConfigs": [{"IP": "127.0.0.1", "Gateway": ""}], "Mac": "00:00:00:00:00:00", "Sandbox": "/run/netns/x"},
        "veth1": {"IPConfigs": null, "Mac": "02:00:00:00:00:01", "Sandbox": ""}},
        "DNS": [{}], "Routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00::1"}]},
        "runtimeSpec": {"linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/x"}]}}}"#;
    const CRIO: &str = r#"{"pid": 7, "runtimeSpec": {"annotations": {"io.kubernetes.cri-o.CNIResult":
        "{\"cniVersion\":\"1.0.0\",\"interfaces\":[{\"name\":\"eth0\",\"mac\":\"02:00:00:00:00:02\",\"sandbox\":\"/run/netns/x\"}],\"ips\":[{\"interface\":0,\"address\":\"10.0.0.2/24\",\"gateway\":\"10.0.0.1\"}],\"routes\":[{\"dst\":\"0.0.0.0/0\"}]}"},
        "linux": {"namespaces": [{"type": "network", "path": "/run/netns/x"}]}}}"#;

    fn read(info: &str) -> Result<Option<Cached>, String> {
        read_status(&answer_of("c1", info.as_bytes()), &NetworkName::new("pods").unwrap())
    }

    #[test]
    fn what_containerd_says_is_read() {
        let cached = read(CONTAINERD).unwrap().unwrap();
        assert_eq!((cached.id.container_id.as_str(), cached.netns.to_string().as_str()), ("c1", "/run/netns/x"));
        assert_eq!((cached.pod.to_string().as_str(), cached.pod.uid.unwrap().as_str()), ("shop/web", "u1"));
        let [eth0] = &cached.interfaces[..] else { panic!("{:?}", cached.interfaces) };
        let addresses: Vec<_> = eth0.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.2", "fd00::2", "fe80::ff:fe00:2"]);
        let gateways: Vec<_> =
            eth0.routes.iter().filter_map(|route| route.gateway).map(|hop| hop.to_string()).collect();
        assert_eq!(gateways, ["10.0.0.1", "fd00::1"]);
    }

    #[test]
    fn what_cri_o_says_is_read() {
        let cached = read(CRIO).unwrap().unwrap();
        assert_eq!(cached.interfaces[0].routes[0].destination.to_string(), "10.0.0.2/24");
        assert_eq!(cached.interfaces[0].routes[1].gateway, "10.0.0.1".parse().ok());
    }

    #[test]
    fn what_says_no_result_has_the_address_that_the_cri_names() {
        let cached = read(r#"{"runtimeSpec": {"linux": {"namespaces": [{"type": "network", "path": "/n"}]}}}"#);
        let interfaces = cached.unwrap().unwrap().interfaces;
        assert_eq!(interfaces[0].addresses, ["10.0.0.2".parse::<std::net::IpAddr>().unwrap()]);
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        for (info, why) in [
            ("{}", "does not say where"),
            ("[", "what the runtime says of it"),
            (r#"{"runtimeSpec": {"linux": {"namespaces": [{"type": "network", "path": "n"}]}}}"#, "absolute path"),
            (&CONTAINERD.replace("\"eth0\":", "\"a/b\":"), "interface name"),
            (&CRIO.replace("\"{\\\"cniVersion", "\"x{"), "CNIResult"),
        ] {
            let error = read(info).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let network = NetworkName::new("pods").unwrap();
        assert!(read_status(&answer_of("../x", CONTAINERD.as_bytes()), &network).unwrap_err().contains("container ID"));
        let mut of_host = answer_of("c1", CONTAINERD.as_bytes());
        let (mut options, mut namespaces, mut linux, mut status) = (vec![], vec![], vec![], vec![]);
        put_number(&mut options, 1, OF_NODE);
        put_bytes(&mut namespaces, 2, &options);
        put_bytes(&mut linux, 1, &namespaces);
        put_bytes(&mut status, 6, &linux);
        put_bytes(&mut of_host, 1, &status);
        assert_eq!(read_status(&of_host, &network), Ok(None));
    }

    proptest::proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes: Vec<u8>, cut in 0..CONTAINERD.len(), with in "[\"{}a0,:]{0,4}") {
            try_any(&bytes);
            if let Some((head, tail)) = CONTAINERD.split_at_checked(cut) {
                let said = format!("{head}{with}{tail}");
                try_any(said.as_bytes());
                let mut answer = answer_of("c1", said.as_bytes());
                answer.truncate(answer.len() - answer.len().min(bytes.len()));
                try_any(&answer);
            }
        }
    }
}
