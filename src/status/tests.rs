use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::model::names::{PodName, PodUid};
use crate::model::verdict::{Behind, Doubt, NoGuard};

#[test]
fn times_are_written_in_the_gregorian_calendar() {
    let at = |seconds: u64| timestamp(UNIX_EPOCH + Duration::from_secs(seconds));
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_399, "2000-02-28T23:59:59Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (951_868_800, "2000-03-01T00:00:00Z"),
        (1_709_251_199, "2024-02-29T23:59:59Z"),
        (1_795_314_959, "2026-11-22T02:35:59Z"),
        (4_107_542_400, "2100-03-01T00:00:00Z"),
    ] {
        assert_eq!(at(seconds), text);
    }
    assert_eq!(timestamp(UNIX_EPOCH - Duration::from_secs(1)), "1969-12-31T23:59:59Z");
}

fn name(text: &str) -> PodName {
    PodName::new(text).unwrap()
}

fn entry(id: &str, pod_name: &str, marking: Option<Marking>) -> SandboxEntry {
    SandboxEntry {
        container_id: ContainerId::new(id).unwrap(),
        pod: Pod {
            namespace: Some(name("shop")),
            name: Some(name(pod_name)),
            uid: Some(PodUid::new(&format!("uid-{pod_name}")).unwrap()),
        },
        netns: Some(NetnsPath::new(format!("/run/netns/{pod_name}")).unwrap()),
        marking,
    }
}

fn marking(policy: Policy) -> Marking {
    Marking {
        keys: vec![Key::new("uid-web").unwrap(), Key::new("shop_web").unwrap()],
        policy,
        mark: Mark {
            policy: None,
            reason: Some("beacon \u{1b}[2J\u{202e}".to_owned()),
            case: Some("IR-1".to_owned()),
            actor: Some("alice".to_owned()),
        },
        fault: None,
        since: Some(UNIX_EPOCH + Duration::from_secs(1_795_314_959)),
    }
}

fn attempt(protocol: AttemptProtocol, address: &str, port: Option<u16>, packets: u64) -> Attempt {
    Attempt { protocol, address: address.parse().unwrap(), port, packets, names: Vec::new() }
}

fn drops(layer: Layer, interface: Option<&str>, direction: Direction, packets: u64) -> Drops {
    Drops { layer, interface: interface.map(str::to_owned), direction, packets, bytes: packets * 60 }
}

fn reading(verdict: Verdict) -> Reading {
    Reading {
        verdict,
        reasons: Vec::new(),
        pod_layer: true,
        host_layer: verdict == Verdict::Contained,
        bpf_layer: false,
        bpf_ready: false,
        guard_required: false,
        drops: vec![
            drops(Layer::Pod, Some("eth0"), Direction::In, 0),
            drops(Layer::Pod, Some("eth0"), Direction::Out, 12),
            drops(Layer::Pod, None, Direction::In, 0),
            drops(Layer::Host, Some("eth0"), Direction::In, 3),
        ],
        attempts: vec![
            attempt(AttemptProtocol::Ip(6), "203.0.113.9", Some(443), 9),
            attempt(AttemptProtocol::Arp, "10.0.0.7", None, 2),
            attempt(AttemptProtocol::Ip(253), "fd00::1", None, 1),
        ],
        notes: vec![Note::ProbeSource { source: IpAddr::from([198, 51, 100, 7]), packets: 3 }],
    }
}

fn doubt(why: NoGuard, behind: Behind) -> Reason {
    Reason::Interface { interface: "eth0".to_owned(), doubt: Doubt::NoGuard(why), behind }
}

/// A sandbox of every kind.
fn sandboxes() -> Vec<SandboxStatus> {
    let sealed = Marking { fault: Some(Fault::NotJson("expected value".to_owned())), ..marking(Policy::sealed()) };
    let partial = Reading {
        reasons: vec![doubt(NoGuard::NoPeer { kind: "macvlan".to_owned() }, Behind::Holds)],
        ..reading(Verdict::Partial)
    };
    let open =
        Reading { pod_layer: false, reasons: vec![doubt(NoGuard::EndGone, Behind::Missing)], ..reading(Verdict::Open) };
    let released = Reading {
        pod_layer: false,
        host_layer: false,
        drops: Vec::new(),
        attempts: Vec::new(),
        notes: Vec::new(),
        ..reading(Verdict::Open)
    };
    vec![
        SandboxStatus {
            entry: entry("0123456789abcdef0", "web", Some(marking(Policy::default()))),
            finding: Finding::Read(reading(Verdict::Contained)),
        },
        SandboxStatus {
            entry: entry("0123456789abcdef1", "db", Some(marking(Policy::default()))),
            finding: Finding::Read(partial),
        },
        SandboxStatus { entry: entry("2", "cache", Some(sealed)), finding: Finding::Read(open) },
        SandboxStatus { entry: entry("3", "job", None), finding: Finding::Read(released) },
        SandboxStatus { entry: entry("4", "old", None), finding: Finding::Gone("no netns".to_owned()) },
        SandboxStatus {
            entry: entry("5", "odd", Some(marking(Policy::default()))),
            finding: Finding::Unknown("the kernel is busy".to_owned()),
        },
    ]
}

fn unanswered() -> Vec<UnansweredMark> {
    let mark = |key: &str, fault: Option<&str>| UnansweredMark {
        key: Key::new(key).unwrap(),
        mark: Mark { reason: Some("told".to_owned()), ..Mark::default() },
        fault: fault.map(|why| Fault::Incomplete(why.to_owned())),
        since: None,
    };
    vec![mark("shop_new", None), mark("uid-9", Some("not JSON"))]
}

fn damaged() -> Vec<Damaged> {
    vec![Damaged { path: PathBuf::from("/s/attachments/x/eth0.json"), fault: Fault::Incomplete("not JSON".to_owned()) }]
}

/// Compares with a file of testdata/, which `UPDATE_TESTDATA=1` writes anew.
fn is_as_in(file: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/status").join(file);
    if std::env::var_os("UPDATE_TESTDATA").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert!(text == expected, "{} differs:\n{text}", path.display());
}

#[test]
fn tables_and_json_are_as_documented() {
    let (sandboxes, unanswered, damaged) = (sandboxes(), unanswered(), damaged());
    let style = Style::default();
    let entry: Vec<_> = sandboxes.iter().map(|sandbox| sandbox.entry.clone()).collect();
    is_as_in("status.txt", &status_table(&sandboxes, &unanswered, &damaged, style));
    is_as_in("list.txt", &list_table(&entry, &unanswered, &damaged, style));
    is_as_in("sandbox.txt", &sandbox_text(&sandboxes[0], style));
    is_as_in("coloured.txt", &status_table(&sandboxes, &[], &[], Style { colour: true }));
    is_as_in("nothing.txt", &status_table(&[], &[], &[], style));
    let json = node_to_json(&sandboxes, &unanswered, &damaged);
    is_as_in("status.json", &format!("{json:#}\n"));
    let json = node_to_json(&entry, &unanswered, &damaged);
    is_as_in("list.json", &format!("{json:#}\n"));
}

#[test]
fn as_marked_is_enforced_where_there_is_a_mark_and_released_where_there_is_none() {
    let as_marked: Vec<bool> = sandboxes().iter().map(SandboxStatus::is_as_marked).collect();
    assert_eq!(as_marked, [true, true, false, true, true, false]);
    let status = |marked: bool, finding: Finding| {
        let marking = marked.then(|| marking(Policy::default()));
        SandboxStatus { entry: entry("c", "web", marking), finding }.is_as_marked()
    };
    let required = |verdict| Finding::Read(Reading { guard_required: true, ..reading(verdict) });
    assert!(status(true, required(Verdict::Contained)));
    assert!(!status(true, required(Verdict::Partial)));
    assert!(!status(true, Finding::Gone(String::new())));
    assert!(!status(false, Finding::Read(reading(Verdict::Partial))));
    assert!(!status(false, Finding::Unknown(String::new())));
}

#[test]
fn a_name_stands_beside_where_it_was_asked_for() {
    let mut attempts = vec![attempt(AttemptProtocol::Ip(17), "10.96.0.10", Some(53), 7)];
    let kept = |name: &str, protocol, port| KeptName {
        time: jiff::Timestamp::UNIX_EPOCH,
        kind: Kind::Dns,
        name: name.to_owned(),
        protocol,
        address: "10.96.0.10".parse().unwrap(),
        port: Some(port),
    };
    name_attempts(&mut attempts, [kept("a.example", 17, 53), kept("b.example", 17, 53), kept("c.example", 6, 53)]);
    let names = |at: usize| attempts[at].names.iter().map(|asked| asked.name.as_str()).collect::<Vec<_>>();
    assert_eq!((names(0), names(1)), (vec!["a.example", "b.example"], vec!["c.example"]));
    let page = |names: Vec<AskedFor>| {
        let attempts = vec![Attempt { names, ..attempt(AttemptProtocol::Ip(17), "10.96.0.10", Some(53), 7) }];
        let finding = Finding::Read(Reading { attempts, ..reading(Verdict::Contained) });
        let entry = entry("1", "web", Some(marking(Policy::default())));
        sandbox_text(&SandboxStatus { entry, finding }, Style { colour: false })
    };
    let four = ["a", "b", "c", "d"].map(|name| AskedFor { kind: Kind::Dns, name: name.to_owned() });
    assert!(page(four.to_vec()).contains("dns a, dns b, dns c and 1 more"), "{}", page(four.to_vec()));
    assert!(!page(Vec::new()).contains("ASKED FOR"));
}

#[test]
fn an_attempt_that_several_sets_have_counted_is_one() {
    let tcp = AttemptProtocol::Ip(6);
    let policy = Policy { allow: vec!["egress:10.0.0.0/8:tcp:80".parse().unwrap()], ..Policy::default() };
    let merged = merge_attempts(
        [
            attempt(tcp, "10.0.0.1", Some(443), 2),
            attempt(tcp, "10.0.0.1", Some(443), 5),
            attempt(tcp, "10.0.0.1", Some(443), 3),
            attempt(tcp, "10.0.0.1", Some(80), 9),
            attempt(AttemptProtocol::Ip(17), "10.0.0.1", Some(80), 7),
            attempt(AttemptProtocol::Arp, "10.0.0.1", None, 7),
        ],
        &policy,
    );
    let expected = [
        attempt(AttemptProtocol::Arp, "10.0.0.1", None, 7),
        attempt(AttemptProtocol::Ip(17), "10.0.0.1", Some(80), 7),
        attempt(tcp, "10.0.0.1", Some(443), 5),
    ];
    assert_eq!(merged, expected);
}
