//! What passes between a pod and its neighbour, both ways, both families: all of it, or none.
//!
//! The coarse proof for tests whose point is who called the plugin; finer attacks are in `attacks`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use super::traffic::stream::Flow;
use super::{Netns, PATIENCE, eventually};

/// How long packets get to show up where none may. The control has shown by then that they take far less.
const SILENCE: Duration = Duration::from_millis(300);

/// A network namespace with its addresses.
pub(crate) struct Station {
    netns: Netns,
    addresses: Vec<IpAddr>,
    /// Its process that takes connections: the kernel completes them into the backlog.
    _tcp: TcpListener,
    tcp_port: u16,
    udp: UdpSocket,
}

impl Station {
    /// Looks up the addresses of `eth0`.
    pub(crate) fn new(netns: Netns) -> Self {
        let addresses = netns.sh("ip -j address show dev eth0 scope global");
        let addresses: serde_json::Value = serde_json::from_str(&addresses).unwrap();
        let addresses: Vec<IpAddr> = addresses
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|link| link["addr_info"].as_array())
            .flatten()
            .filter_map(|address| address["local"].as_str()?.parse().ok())
            .collect();
        assert_eq!(addresses.len(), 2, "{}: one address of each family", netns.name());
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let (tcp, udp) = netns.run(|| (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap()));
        udp.set_nonblocking(true).unwrap();
        let tcp_port = tcp.local_addr().unwrap().port();
        Self { netns, addresses, _tcp: tcp, tcp_port, udp }
    }

    pub(crate) fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Where its process takes connections.
    pub(crate) fn tcp_port(&self) -> u16 {
        self.tcp_port
    }

    /// Takes the datagrams that have come so far, and counts them.
    fn datagrams(&self) -> usize {
        std::iter::from_fn(|| self.udp.recv(&mut [0; 64]).ok()).count()
    }
}

/// A pod and a neighbour, with established flows between them.
pub(crate) struct Scene {
    pod: Station,
    neighbour: Station,
    flows: Vec<Flow>,
}

impl Scene {
    pub(crate) fn new(pod: Netns, neighbour: Netns) -> Self {
        let (pod, neighbour) = (Station::new(pod), Station::new(neighbour));
        let mut scene = Self { pod, neighbour, flows: Vec::new() };
        scene.assert_new_pass();
        scene.flows = scene
            .ways()
            .into_iter()
            .map(|(from, to, address)| Flow::tcp(&from.netns, &to.netns, address, true))
            .collect();
        scene.assert_open();
        scene
    }

    /// One whose pod is isolated from the start. The control is [`Scene::assert_open`], once it is released.
    #[track_caller]
    pub(crate) fn cut_from_birth(pod: Netns, neighbour: Netns) -> Self {
        let scene = Self { pod: Station::new(pod), neighbour: Station::new(neighbour), flows: Vec::new() };
        scene.assert_cut();
        scene
    }

    pub(crate) fn pod(&self) -> &Station {
        &self.pod
    }

    /// New connections and datagrams arrive, and established flows go on.
    #[track_caller]
    pub(crate) fn assert_open(&self) {
        self.assert_new_pass();
        Flow::assert_all_alive(&self.flows);
    }

    /// No new connection and no datagram arrives, and established flows stand still.
    #[track_caller]
    pub(crate) fn assert_cut(&self) {
        self.drain();
        let passed: Vec<_> = std::thread::scope(|scope| {
            let tries = self.ways().map(|(from, to, address)| {
                scope.spawn(move || {
                    send_datagrams(from, to, address);
                    connects(from, to, address).then_some(address)
                })
            });
            tries.into_iter().filter_map(|tried| tried.join().unwrap()).collect()
        });
        assert!(passed.is_empty(), "new connections pass, to {passed:?}");
        assert_eq!(self.pod.datagrams(), 0, "datagrams arrive at the pod");
        assert_eq!(self.neighbour.datagrams(), 0, "datagrams arrive at the neighbour");
        Flow::assert_all_dead(&self.flows);
    }

    #[track_caller]
    fn assert_new_pass(&self) {
        for (from, to, address) in self.ways() {
            // A new address may still be tentative, a neighbour unknown.
            assert!(
                eventually(PATIENCE, || connects(from, to, address)),
                "no connection from {} to {address}",
                from.netns.name()
            );
            self.drain();
            send_datagrams(from, to, address);
            assert!(eventually(PATIENCE, || to.datagrams() > 0), "no datagram from {} to {address}", from.netns.name());
        }
    }

    /// Into the pod and out of it, by IPv4 and by IPv6.
    fn ways(&self) -> [(&Station, &Station, IpAddr); 4] {
        let into = |family: usize| (&self.neighbour, &self.pod, self.pod.addresses[family]);
        let out = |family: usize| (&self.pod, &self.neighbour, self.neighbour.addresses[family]);
        [into(0), into(1), out(0), out(1)]
    }

    fn drain(&self) {
        self.pod.datagrams();
        self.neighbour.datagrams();
    }
}

fn connects(from: &Station, to: &Station, address: IpAddr) -> bool {
    from.netns.run(|| TcpStream::connect_timeout(&(address, to.tcp_port).into(), SILENCE)).is_ok()
}

fn send_datagrams(from: &Station, to: &Station, address: IpAddr) {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let target = SocketAddr::from((address, to.udp.local_addr().unwrap().port()));
    let socket = from.netns.run(|| UdpSocket::bind(any).unwrap());
    for _ in 0..5 {
        // Silent or not, a refusal by the sender's own kernel is no arrival either.
        let _ = socket.send_to(b"datagram", target);
    }
}
