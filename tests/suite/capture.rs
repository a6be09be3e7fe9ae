//! What an isolated pod tries, as it is kept: real packets, real tools to read them, and pods that would rather have it otherwise.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::lab::topology::{PEER4, POD_MAC};
use crate::lab::traffic::packet::ethernet;
use crate::lab::traffic::sockets::PacketSocket;
use crate::lab::{Agent, Netns, PATIENCE, Sandbox, Topology, eventually, not_tried, program};

/// Nobody has this address; it is beyond the node.
const FAR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);
const GROUP: &str = "20803";

/// A question for `name`, which has no dot.
fn question(name: &str) -> Vec<u8> {
    let length = u8::try_from(name.len()).unwrap();
    [&b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0"[..], &[length], name.as_bytes(), b"\x07example\0\0\x10\0\x01"].concat()
}

fn ask(from: &Netns, server: Ipv4Addr, name: &str) {
    // That it is dropped is not always kept from the sender.
    let _ = from.run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(&question(name), (server, 53)));
}

fn files(sandbox: &Sandbox<'_>) -> Vec<PathBuf> {
    let directory = Path::new(sandbox.state_dir()).join("captures").join(sandbox.id());
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut found: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "pcapng"));
    found.sort();
    found
}

fn kept(sandbox: &Sandbox<'_>) -> Vec<Value> {
    let run = sandbox.quarantine(&["watch", sandbox.id(), "--kept", "-o", "json"]).ok();
    run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[track_caller]
fn await_kept(sandbox: &Sandbox<'_>, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    let mut found = None;
    eventually(PATIENCE, || {
        found = kept(sandbox).into_iter().find(&is_it);
        found.is_some()
    });
    found.unwrap_or_else(|| panic!("no {what} in {:#?}", kept(sandbox)))
}

fn says(comment: &str) -> impl Fn(&Value) -> bool + '_ {
    move |packet| packet["comment"] == comment
}

fn agent_of(topology: &Topology, sandbox: &Sandbox<'_>) -> Agent {
    Agent::start(&topology.node, Path::new(sandbox.state_dir()))
}

fn isolate_by(agent: &Agent, sandbox: &Sandbox<'_>, mark: &str) {
    sandbox.write_mark(mark);
    agent.await_line(&["event=isolated", sandbox.id()]);
}

#[test]
fn what_an_isolated_pod_asks_for_is_kept_and_named() {
    let topology = Topology::ptp();
    let sandbox = Sandbox::add(&topology);
    let listener = topology.peer.run(|| TcpListener::bind((PEER4, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let mut stream = topology.pod.run(|| TcpStream::connect((PEER4, port)).unwrap());
    let agent = agent_of(&topology, &sandbox);
    // A released pod's are nobody's business.
    ask(&topology.pod, FAR, "before");
    isolate_by(&agent, &sandbox, "");
    let asked =
        await_kept_after(&sandbox, "question", says("dns evil.example TXT"), || ask(&topology.pod, FAR, "evil"));
    assert_eq!(
        (&asked["direction"], &asked["protocol"], &asked["destination"]),
        (&json!("out"), &json!("udp"), &json!(FAR))
    );
    stream.write_all(b"GET /beacon HTTP/1.1\r\nHost: c2.example\r\n\r\n").unwrap();
    await_kept(&sandbox, "request", says("http c2.example"));
    // Inward too, of whom the pod's end alone knows where the host's lets nothing by.
    topology.node.run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"wake up", ("10.77.0.2", 9)).unwrap());
    await_kept(&sandbox, "datagram to the pod", |packet| packet["direction"] == "in" && packet["destinationPort"] == 9);
    assert!(
        !kept(&sandbox).iter().any(|packet| packet["comment"].to_string().contains("before")),
        "{:#?}",
        kept(&sandbox)
    );

    let status = sandbox.status();
    assert_eq!(status["verdict"], "contained");
    let attempts = status["attempts"].as_array().unwrap();
    let names = |address: Value, port: u16| {
        let found = attempts.iter().find(|attempt| attempt["address"] == address && attempt["port"] == port);
        found.unwrap_or_else(|| panic!("{attempts:#?}"))["names"].clone()
    };
    assert_eq!(names(json!(FAR), 53), json!([{ "kind": "dns", "name": "evil.example TXT" }]));
    assert_eq!(names(json!(PEER4), port), json!([{ "kind": "http", "name": "c2.example" }]));

    let file = &files(&sandbox)[0];
    for (path, mode) in
        [(file.as_path(), 0o600), (file.parent().unwrap(), 0o700), (file.parent().unwrap().parent().unwrap(), 0o700)]
    {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, mode, "{}", path.display());
    }
    let tcpdump = tool("tcpdump", &["-nr", file.to_str().unwrap()]).unwrap();
    assert!(tcpdump.contains("203.0.113.66.53: 4660+ TXT? evil.example."), "{tcpdump}");
    let fields =
        ["-r", file.to_str().unwrap(), "-Y", "dns", "-T", "fields", "-e", "dns.qry.name", "-e", "frame.comment"];
    match tool("tshark", &fields) {
        Some(said) => assert!(said.contains("evil.example\tdns evil.example TXT"), "{said}"),
        None => not_tried("that Wireshark reads what is kept: tshark is not installed"),
    }
    if let Some(said) = tool("capinfos", &[file.to_str().unwrap()]) {
        assert!(said.contains("pcapng") && said.contains("Capture length = 128"), "{said}");
    }

    // Released, nothing more of it.
    fs::remove_file(sandbox.mark()).unwrap();
    agent.await_line(&["event=released"]);
    let before = kept(&sandbox).len();
    ask(&topology.pod, FAR, "after");
    assert!(!rules(&topology.pod).contains("log prefix") && !rules(&topology.node).contains("log prefix"));
    drop(agent);
    assert_eq!(kept(&sandbox).len(), before);
}

/// Tries again until it is kept: the agent listens soon after the cut, and not before it.
#[track_caller]
fn await_kept_after(sandbox: &Sandbox<'_>, what: &str, is_it: impl Fn(&Value) -> bool, again: impl Fn()) -> Value {
    let mut found = None;
    eventually(PATIENCE, || {
        again();
        found = kept(sandbox).into_iter().find(&is_it);
        found.is_some()
    });
    found.unwrap_or_else(|| panic!("no {what} in {:#?}", kept(sandbox)))
}

fn rules(netns: &Netns) -> String {
    netns.sh("nft list ruleset")
}

/// What a tool says of a file, where it is there and takes it.
fn tool(name: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(name).args(arguments).stdin(Stdio::null()).output().ok()?;
    assert!(output.status.success(), "{name}: {output:?}");
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_question_is_named_although_no_neighbour_may_be_asked_for() {
    let topology = Topology::ptp();
    let sandbox = Sandbox::add(&topology);
    let agent = agent_of(&topology, &sandbox);
    isolate_by(&agent, &sandbox, r#"{"policy": {"loopback": false, "probes": false, "allow": []}}"#);
    topology.forget_neighbours();
    await_kept_after(&sandbox, "question", says("dns sealed.example TXT"), || ask(&topology.pod, FAR, "sealed"));
    assert_eq!(sandbox.verdict(), "contained");
}

#[test]
fn raw_frames_are_kept_by_whoever_drops_them() {
    let topology = Topology::gvisor();
    let sandbox = Sandbox::add(&topology);
    let agent = agent_of(&topology, &sandbox);
    isolate_by(&agent, &sandbox, "");
    let frame = ethernet([2, 0, 0, 0, 0, 3], POD_MAC, 0x88b5, b"no protocol that anybody knows");
    let send = || drop(PacketSocket::open(&topology.pod, "eth0").send(&frame));
    let found = await_kept_after(&sandbox, "frame", |packet| packet["protocol"].is_null(), send);
    assert_eq!((&found["direction"], &found["bytes"]), (&json!("out"), &json!(frame.len())));
}

#[test]
fn it_is_off_by_one_key() {
    let topology = Topology::ptp();
    let sandbox = Sandbox::add_with(&topology, &json!({ "capture": false }));
    let agent = agent_of(&topology, &sandbox);
    isolate_by(&agent, &sandbox, "");
    assert!(!rules(&topology.pod).contains("log prefix") && !rules(&topology.node).contains("log prefix"));
    ask(&topology.pod, FAR, "evil");
    drop(agent);
    assert!(!Path::new(sandbox.state_dir()).join("captures").exists());
    let run = sandbox.quarantine(&["watch", sandbox.id(), "--kept"]).ok();
    assert_eq!(run.stdout, "");
}

#[test]
fn no_verdict_hangs_on_what_is_reported() {
    let topology = Topology::ptp();
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    let reported = |netns: &Netns| rules(netns).matches("log prefix").count();
    let before = (reported(&topology.pod), reported(&topology.node));
    assert!(before.0 > 0 && before.1 > 0, "{}", rules(&topology.node));
    for netns in [&topology.pod, &topology.node] {
        netns.sh("nft -a list ruleset | awk '
            $1 == \"table\" { table = $2 \" \" $3 } $1 == \"chain\" { chain = $2 }
            $1 == \"limit\" { print \"nft delete rule \" table, chain, \"handle\", $NF }' | sh");
    }
    assert!(reported(&topology.pod) < before.0 && reported(&topology.node) == 0);
    assert_eq!(sandbox.verdict(), "contained");
    sandbox.sync();
    assert_eq!((reported(&topology.pod), reported(&topology.node)), before);
    // A limit before a drop is another thing.
    topology.node.sh(&format!(
        "chain=$(nft list table netdev quarantine-{0} | awk '$1 == \"chain\" {{ print $2; exit }}')
         nft flush chain netdev quarantine-{0} $chain
         nft add rule netdev quarantine-{0} $chain limit rate 1/second counter drop",
        sandbox.id()
    ));
    assert_ne!(sandbox.verdict(), "contained");
}

/// Root in the pod listens to the group itself, has rules of its own hand over whatever it likes, and floods.
#[test]
fn a_pod_that_plays_with_the_group_harms_nobody_but_itself() {
    let (topology, other) = (Topology::ptp(), Topology::ptp());
    let sandbox = Sandbox::add(&topology);
    let agent = agent_of(&topology, &sandbox);
    topology.pod.sh(&format!(
        "nft add table inet liar
         nft add chain inet liar out '{{ type filter hook output priority -500; }}'
         nft add rule inet liar out log prefix forged group {GROUP} snaplen 65535"
    ));
    isolate_by(&agent, &sandbox, "");
    let flood = topology.pod.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let enough = |count: usize| {
        for number in 0..count {
            let _ = flood.send_to(&number.to_be_bytes(), (FAR, 9));
        }
    };
    let missing = |packet: &Value| packet["comment"].as_str().is_some_and(|comment| comment.contains("were not kept"));
    await_kept_after(&sandbox, "word of what was not kept", missing, || enough(20_000));
    let length: u64 = files(&sandbox).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(length <= 8 * 1024 * 1024, "{length}");
    assert_eq!(sandbox.verdict(), "contained");
    drop(agent);

    // Who has the group already keeps the pod's own from being kept, and that is said.
    let squatted = Sandbox::add(&other);
    let squatter = format!("nflog:{GROUP}");
    let mut tcpdump = other.pod.command("tcpdump");
    tcpdump.args(["-i", &squatter, "-w", "/dev/null"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut tcpdump = tcpdump.spawn().unwrap();
    let bound = || other.pod.sh("cat /proc/self/net/netfilter/nfnetlink_log").contains(GROUP);
    let is_bound = eventually(PATIENCE, bound);
    let agent = agent_of(&other, &squatted);
    isolate_by(&agent, &squatted, "");
    let said = agent.await_line(&["event=not-captured", squatted.id()]);
    let _ = tcpdump.kill();
    let _ = tcpdump.wait();
    assert!(is_bound && said.contains("EPERM"), "{said}");
    assert_eq!(squatted.verdict(), "contained");
}

#[test]
fn packets_are_shown_as_they_come() {
    let topology = Topology::ptp();
    let sandbox = Sandbox::add(&topology);
    let agent = agent_of(&topology, &sandbox);
    isolate_by(&agent, &sandbox, "");
    let mut command = topology.node.command(program());
    command.args(["watch", sandbox.id(), "--state-dir", sandbox.state_dir()]).env_remove("CNI_COMMAND");
    let shown = tempfile::NamedTempFile::new().unwrap();
    command.stdin(Stdio::null()).stdout(shown.reopen().unwrap());
    let mut watch = command.spawn().unwrap();
    let is_shown = eventually(PATIENCE, || {
        ask(&topology.pod, FAR, "live");
        let text = fs::read_to_string(shown.path()).unwrap();
        text.lines().any(|line| line.contains("> 203.0.113.66:53") && line.ends_with("  dns live.example TXT"))
    });
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(watch.id().cast_signed()), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    assert!(watch.wait().unwrap().success());
    assert!(is_shown, "{}", fs::read_to_string(shown.path()).unwrap());
}
