//! What libcni's cache says of an attachment (`cniCacheV1`), which the runtime wrote when it was made. Pure.

use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde::Deserialize;

use crate::model::names::{
    AttachmentId, ContainerId, IfName, Mac, NetnsPath, NetworkName, Pod, PodName, PodUid, Route, SandboxInterface,
    parse_address,
};

/// An attachment as its cache has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// Which attachment.
    pub id: AttachmentId,
    /// Its network.
    pub network: NetworkName,
    /// Where its netns is.
    pub netns: NetnsPath,
    /// Its pod.
    pub pod: Pod,
    /// The interfaces that its plugins put into the sandbox, as they said them.
    pub interfaces: Vec<SandboxInterface>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InFile {
    kind: String,
    container_id: String,
    if_name: String,
    network_name: String,
    #[serde(default)]
    netns: Option<String>,
    #[serde(default)]
    cni_args: Option<Vec<(String, String)>>,
    result: ResultInFile,
}

/// A plugin's result, as far as it is wanted.
#[derive(Default, Deserialize)]
pub(super) struct ResultInFile {
    #[serde(default)]
    pub(super) interfaces: Option<Vec<InterfaceInFile>>,
    #[serde(default)]
    pub(super) ips: Option<Vec<IpInFile>>,
    #[serde(default)]
    pub(super) routes: Option<Vec<RouteInFile>>,
}

#[derive(Deserialize)]
pub(super) struct InterfaceInFile {
    pub(super) name: String,
    #[serde(default)]
    pub(super) mac: Option<String>,
    #[serde(default)]
    pub(super) sandbox: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct IpInFile {
    pub(super) address: String,
    #[serde(default)]
    pub(super) gateway: Option<String>,
    #[serde(default)]
    pub(super) interface: Option<usize>,
}

#[derive(Deserialize)]
pub(super) struct RouteInFile {
    pub(super) dst: String,
    #[serde(default)]
    pub(super) gw: Option<String>,
}

impl ResultInFile {
    fn said(&self) -> &[InterfaceInFile] {
        self.interfaces.as_deref().unwrap_or_default()
    }
}

impl InterfaceInFile {
    /// The path of the sandbox that it is in.
    fn sandbox(&self) -> Option<&str> {
        self.sandbox.as_deref().filter(|sandbox| !sandbox.is_empty())
    }
}

/// Reads a file of the cache.
///
/// # Errors
/// Says what is wrong with it, or why nothing can be adopted by it.
pub fn read(content: &[u8]) -> Result<Cached, String> {
    let file: InFile = serde_json::from_slice(content).map_err(|error| error.to_string())?;
    if file.kind != "cniCacheV1" {
        return Err(format!("it is a {:?}, not a cniCacheV1", file.kind));
    }
    let name = |error: crate::model::names::NameError| error.to_string();
    let ifname = IfName::new(&file.if_name).map_err(name)?;
    let said = file.netns.as_deref().filter(|netns| !netns.is_empty());
    let netns = said.or_else(|| file.result.said().iter().find_map(InterfaceInFile::sandbox));
    let netns = netns.ok_or("it does not say where the network namespace is")?;
    let mut pod = Pod::default();
    for (key, value) in file.cni_args.iter().flatten().filter(|(_, value)| !value.is_empty()) {
        match key.as_str() {
            "K8S_POD_NAMESPACE" => pod.namespace = Some(PodName::new(value).map_err(name)?),
            "K8S_POD_NAME" => pod.name = Some(PodName::new(value).map_err(name)?),
            "K8S_POD_UID" => pod.uid = Some(PodUid::new(value).map_err(name)?),
            _ => {}
        }
    }
    Ok(Cached {
        id: AttachmentId { container_id: ContainerId::new(&file.container_id).map_err(name)?, ifname: ifname.clone() },
        network: NetworkName::new(&file.network_name).map_err(name)?,
        netns: NetnsPath::new(netns).map_err(name)?,
        pod,
        interfaces: interfaces_of(&file.result, &ifname)?,
    })
}

/// The interfaces that a result puts into a sandbox: the one that was asked for in front, said or not.
pub(super) fn interfaces_of(result: &ResultInFile, asked: &IfName) -> Result<Vec<SandboxInterface>, String> {
    let mut names = vec![asked.clone()];
    for interface in result.said().iter().filter(|interface| interface.sandbox().is_some()) {
        let other = IfName::new(&interface.name).map_err(|error| error.to_string())?;
        if !names.contains(&other) {
            names.push(other);
        }
    }
    Ok(names.into_iter().map(|name| interface_of(result, name, asked)).collect())
}

/// One interface of the result; what names no interface is of the one that the runtime asked for.
fn interface_of(result: &ResultInFile, name: IfName, asked: &IfName) -> SandboxInterface {
    let said = result.said();
    let is_named = |interface: &InterfaceInFile| interface.name.as_bytes() == name.as_bytes();
    let own = said.iter().find(|interface| is_named(interface) && interface.sandbox.is_some());
    let mac = own.and_then(|interface| Mac::parse(interface.mac.as_deref()?));
    let ips = result.ips.iter().flatten().filter(|ip| match ip.interface.and_then(|index| said.get(index)) {
        Some(interface) if interface.sandbox().is_some() => is_named(interface),
        // None, or the host's end, as some plugins have it.
        _ => name == *asked,
    });
    let (mut addresses, mut routes, mut gateways) = (Vec::new(), Vec::new(), Vec::new());
    for ip in ips {
        let Some(address) = parse_address(&ip.address) else { continue };
        addresses.push(address);
        if let Ok(network) = ip.address.parse::<IpNetwork>() {
            routes.push(Route { destination: network, gateway: None });
        }
        gateways.extend(ip.gateway.as_deref().and_then(|gateway| gateway.parse::<IpAddr>().ok()));
    }
    for route in result.routes.iter().flatten().filter(|_| name == *asked) {
        let Ok(destination) = route.dst.parse::<IpNetwork>() else { continue };
        let said = route.gw.as_deref().and_then(|gateway| gateway.parse().ok());
        let of_family = gateways.iter().find(|gateway| gateway.is_ipv4() == destination.is_ipv4());
        routes.push(Route { destination, gateway: said.or(of_family.copied()) });
    }
    if let Some(mac) = mac.filter(|_| addresses.iter().any(IpAddr::is_ipv6)) {
        addresses.push(link_local(mac));
    }
    SandboxInterface { name, mac, addresses, routes }
}

/// The address that the kernel gives an interface by its Ethernet address (RFC 4291, appendix A).
fn link_local(Mac([a, b, c, d, e, f]): Mac) -> IpAddr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]).into()
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub fn try_any(bytes: &[u8]) {
    let Ok(cached) = read(bytes) else { return };
    // The interface that was asked for is there, first, and none is there twice: a record is made of them.
    assert_eq!(cached.interfaces.first().map(|interface| &interface.name), Some(&cached.id.ifname));
    let names: std::collections::BTreeSet<_> =
        cached.interfaces.iter().map(|interface| interface.name.as_bytes()).collect();
    assert_eq!(names.len(), cached.interfaces.len());
    assert!(cached.netns.as_path().is_absolute());
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: &str = r#"{"kind": "cniCacheV1", "containerId": "c1", "config": "e30=", "ifName": "eth0", "networkName": "net",
        "netns": "/run/netns/x", "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", "web"],
        ["K8S_POD_UID", "u1"]], "capabilityArgs": {"cgroupPath": "/x"}, "result": {"cniVersion": "1.0.0",
        "interfaces": [{"name": "cni0", "mac": "02:00:00:00:00:01"}, {"name": "veth1"},
                       {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/x"}],
        "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 2}, {"address": "fd00::2/64", "interface": 2}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.0.0.9"}]}}"#;

    #[test]
    fn what_a_bridge_left_is_read_whole() {
        let cached = read(BRIDGE.as_bytes()).unwrap();
        assert_eq!((cached.id.container_id.as_str(), cached.network.as_str()), ("c1", "net"));
        assert_eq!(cached.pod.name_key().unwrap().as_str(), "shop_web");
        let [eth0] = &cached.interfaces[..] else { panic!("{cached:?}") };
        let addresses: Vec<_> = eth0.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.2", "fd00::2", "fe80::ff:fe00:2"]);
        let routes: Vec<_> = eth0.routes.iter().map(|route| (route.destination.to_string(), route.gateway)).collect();
        let gateway = |text: &str| text.parse().ok();
        assert_eq!(routes[2], ("0.0.0.0/0".to_owned(), gateway("10.0.0.1")));
        assert_eq!(routes[3], ("10.9.0.0/16".to_owned(), gateway("10.0.0.9")));
    }

    #[test]
    fn what_names_the_host_s_end_alone_is_the_asked_interface_s() {
        let text = r#"{"kind": "cniCacheV1", "containerId": "c1", "ifName": "eth0", "networkName": "k8s-pod-network", "netns": "/n",
            "result": {"interfaces": [{"name": "cali1"}], "ips": [{"address": "10.1.2.3/32", "interface": 0}]}}"#;
        let cached = read(text.as_bytes()).unwrap();
        assert_eq!(cached.interfaces[0].name.to_string(), "eth0");
        assert_eq!(cached.interfaces[0].addresses, ["10.1.2.3".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        for (from, to, why) in [
            ("cniCacheV1", "other", "not a cniCacheV1"),
            ("\"netns\": \"/run/netns/x\"", "\"netns\": \"relative\"", "absolute path"),
            ("\"c1\"", "\"../../etc\"", "container ID"),
            ("\"eth0\", \"net", "\"a/b\", \"net", "interface name"),
        ] {
            let error = read(BRIDGE.replacen(from, to, 1).as_bytes()).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert!(read(b"{}").is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_file_makes_it_panic(bytes: Vec<u8>, cut in 0..BRIDGE.len(), with in "[\"{}a0,:]{0,4}") {
            let _ = read(&bytes);
            if let Some((head, tail)) = BRIDGE.split_at_checked(cut) {
                let _ = read(format!("{head}{with}{tail}").as_bytes());
            }
        }
    }
}
