//! Probes that do not come from where the route says: translated on their way, or announced by another address. The hole
//! follows the packet as far as it is the node's, and `status` says where it does not.

use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::lab::topology::{PEER4, POD4, POD6};
use crate::lab::traffic::server::{Server, http_probe, http_probe_here};
use crate::lab::traffic::sockets::become_owner;
use crate::lab::{Kind, PATIENCE, Sandbox, Topology, eventually};

const POD: [IpAddr; 2] = [IpAddr::V4(POD4), IpAddr::V6(POD6)];
/// What the kubelet gives a probe.
const PROBE: Duration = Duration::from_secs(1);
/// For what has to pass at some time.
const ENOUGH: Duration = Duration::from_secs(20);
/// For what must not be answered.
const SHORT: Duration = Duration::from_millis(150);

/// Translates what comes from sockets of the node, as Istio's ambient mode does, or all that goes to the pod.
fn translate(topology: &Topology, v4: &str, v6: &str) {
    topology.node.sh(&format!(
        "nft -f - <<'END'
         table inet translation {{ chain postrouting {{ type nat hook postrouting priority srcnat;
           ip daddr {POD4} {v4}
           ip6 daddr {POD6} {v6}; }}
         }}
END"
    ));
}

fn codes(status: &Value) -> Vec<&str> {
    status["notes"].as_array().unwrap().iter().map(|note| note["code"].as_str().unwrap()).collect()
}

#[track_caller]
fn probes_pass(topology: &Topology, server: &Server, addresses: &[IpAddr], why: &str) {
    topology.forget_neighbours();
    for &to in addresses {
        let passed = eventually(ENOUGH, || http_probe(&topology.node, to, server.port(), PROBE));
        assert!(passed, "{why}: {to}");
    }
}

/// The node speaks from an address of its loopback, by the route; the link has others, and none of them is the pod's gateway.
fn with_a_route_that_names_a_source(kind: Kind) -> Topology {
    let topology = Topology::new(kind);
    let (device, via) = match kind {
        Kind::Bridge => ("br0", "10.77.0.0/24"),
        _ => ("veth-pod", "10.77.0.2/32"),
    };
    topology.node.ip(&format!(
        "addr add 203.0.113.1/32 dev lo\naddr add 203.0.113.9/32 dev lo\n\
         route replace {via} dev {device} scope link src 203.0.113.9"
    ));
    if kind == Kind::Bridge {
        topology.pod.ip("route replace default via 10.77.0.254 dev eth0\nroute add 203.0.113.0/24 dev eth0");
    }
    topology
}

/// Probes pass from a released pod, and go on to when it is isolated.
fn pass_before_and_while_isolated(topology: &Topology, kind: Kind) {
    let sandbox = Sandbox::add(topology);
    let server = Server::start(&topology.pod, 8080);
    probes_pass(topology, &server, &POD, "the control");
    sandbox.isolate("");
    probes_pass(topology, &server, &POD, &format!("{kind:?}"));
    assert_eq!(sandbox.verdict(), "contained");
}

/// `arp_announce=2`: the node asks for the pod by the link's address, whatever the route says to speak from.
#[test]
fn the_node_asks_on_the_link_by_the_links_own_address() {
    for kind in [Kind::Bridge, Kind::Ptp, Kind::Calico] {
        let topology = with_a_route_that_names_a_source(kind);
        topology.node.sysctl("net.ipv4.conf.all.arp_announce", "2");
        pass_before_and_while_isolated(&topology, kind);
    }
}

/// What the node sends is masqueraded: it comes from the link's address, or the first that the node has where that has none.
#[test]
fn masqueraded_probes_pass() {
    for kind in [Kind::Bridge, Kind::Ptp, Kind::Calico] {
        let topology = with_a_route_that_names_a_source(kind);
        translate(&topology, "masquerade", "masquerade");
        pass_before_and_while_isolated(&topology, kind);
    }
}

/// Istio's ambient mode gives every connection of the node's own sockets an address of its own; what others send through the
/// node with that address is nobody's probe.
#[test]
fn probes_as_istio_translates_them_pass_and_nothing_like_them() {
    for kind in [Kind::Bridge, Kind::Ptp, Kind::Calico] {
        let topology = Topology::new(kind);
        topology.node.sysctl("net.ipv4.ip_forward", "1");
        let [v4, v6] = ["snat ip to 169.254.7.127", "snat ip6 to fd16:9254:7127:1337:ffff:ffff:ffff:ffff"];
        translate(&topology, v4, v6);
        topology.node.sh(&format!(
            "nft -f - <<'END'
             table ip services {{ chain prerouting {{ type nat hook prerouting priority dstnat;
               fib daddr type local tcp dport 30080 dnat to {POD4}:8080; }}
         }}
END"
        ));
        let sandbox = Sandbox::add(&topology);
        let server = Server::start(&topology.pod, 8080);
        let nobody = |limit| {
            topology.node.run(|| {
                become_owner(65_534);
                http_probe_here(POD4.into(), 8080, limit)
            })
        };
        let by_node_port = |limit| http_probe(&topology.peer, topology.node4.into(), 30_080, limit);
        probes_pass(&topology, &server, &POD, "the control");
        assert!(nobody(PATIENCE) && by_node_port(PATIENCE), "{kind:?}: the control");
        sandbox.isolate("");
        probes_pass(&topology, &server, &POD, &format!("{kind:?}"));
        assert!(!nobody(SHORT) && !by_node_port(SHORT), "{kind:?}");
        let status = sandbox.status();
        assert_eq!(status["verdict"], "contained");
        assert!(codes(&status).is_empty(), "{status:#}");
    }
}

/// An address that nobody can know beforehand: the probes do not pass, and `status` says which it is.
#[test]
fn probes_from_an_address_that_is_not_the_nodes_are_said() {
    let topology = Topology::bridge();
    translate(&topology, "snat ip to 198.51.100.7", "snat ip6 to 2001:db8:7::7");
    let sandbox = Sandbox::add(&topology);
    let server = Server::start(&topology.pod, 8080);
    probes_pass(&topology, &server, &POD, "the control");
    sandbox.isolate("");
    assert!(codes(&sandbox.status()).is_empty(), "nothing was seen yet");
    for to in POD {
        assert!(!http_probe(&topology.node, to, server.port(), SHORT), "{to}");
    }
    let status = sandbox.status();
    assert_eq!(status["verdict"], "contained", "it is no hole: {status:#}");
    assert_eq!(codes(&status), ["probe-source"; 2], "{status:#}");
    let said = status["notes"].to_string();
    assert!(said.contains("198.51.100.7") && said.contains("2001:db8:7::7"), "{said}");
    let page = sandbox.quarantine(&["status", sandbox.id()]).stdout;
    assert!(page.contains("198.51.100.7"), "{page}");
    // Not for a policy that lets no probes in.
    sandbox.isolate(r#"{"policy": {"probes": false}}"#);
    assert!(!http_probe(&topology.node, POD4.into(), server.port(), SHORT));
    assert!(codes(&sandbox.status()).is_empty());
}

/// A transparent proxy of root's on the node speaks with the address of the pod that it speaks for: no probe.
#[test]
fn root_on_the_node_that_speaks_for_a_peer_is_no_probe() {
    let topology = Topology::ptp();
    let sandbox = Sandbox::add(&topology);
    let server = Server::start(&topology.pod, 8080);
    topology.node.sh("ip rule add fwmark 1 lookup 100; ip route add local 0.0.0.0/0 dev lo table 100
         nft -f - <<'END'
         table ip proxy { chain prerouting { type filter hook prerouting priority mangle;
           socket transparent 1 meta mark set 1 accept; }
         }
END");
    topology.node.sysctl("net.ipv4.conf.all.rp_filter", "0");
    let passes = |from: Ipv4Addr, limit| {
        topology.node.run(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_ip_transparent_v4(true).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.bind(&std::net::SocketAddr::from((from, 0)).into()).unwrap();
            socket
                .connect_timeout(&std::net::SocketAddr::from((POD4, server.port())).into(), limit)
                .map(|()| TcpStream::from(socket))
                .is_ok()
        })
    };
    assert!(passes(PEER4, PATIENCE), "the control");
    sandbox.isolate("");
    assert!(!passes(PEER4, SHORT));
    assert!(http_probe(&topology.node, POD4.into(), server.port(), PATIENCE), "the node for itself");
    let status = sandbox.status();
    assert_eq!(codes(&status), ["probe-source"], "{status:#}");
}
