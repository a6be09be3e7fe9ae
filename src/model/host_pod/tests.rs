use super::*;

const UID: &str = "0f9d6b52-6f0a-4a43-9d1c-0123456789ab";

#[test]
fn a_pod_is_found_by_the_name_of_its_cgroup() {
    let found = |name: &str| pod_of_cgroup(name).map(|uid| uid.to_string());
    let escaped = UID.replace('-', "_");
    for name in [
        format!("pod{UID}"),
        format!("kubepods-pod{escaped}.slice"),
        format!("kubepods-burstable-pod{escaped}.slice"),
        format!("kubelet-kubepods-besteffort-pod{escaped}.slice"),
    ] {
        assert_eq!(found(&name).as_deref(), Some(UID), "{name}");
    }
    // A static pod's.
    assert_eq!(found("pod0123456789abcdef0123456789abcdef").as_deref(), Some("0123456789abcdef0123456789abcdef"));
    for name in ["pod", "kubepods", "kubepods-burstable.slice", "cri-containerd-0123.scope", "pod/..", "pod-", "podé"]
    {
        assert_eq!(found(name), None, "{name}");
    }
}

#[test]
fn where_pods_are_kept_is_known_by_name() {
    for name in ["kubepods", "kubepods.slice", "kubelet-kubepods.slice"] {
        assert!(is_root_of_pods(name), "{name}");
    }
    for name in ["kubepods-burstable.slice", "mykubepods", "user.slice", "kubepods.scope"] {
        assert!(!is_root_of_pods(name), "{name}");
    }
    for name in ["burstable", "besteffort", "kubepods-burstable.slice", "kubelet-kubepods-besteffort.slice"] {
        assert!(is_class_of_pods(name), "{name}");
    }
    assert!(!is_class_of_pods("kubepods-pod1.slice"));
}

#[test]
fn what_a_process_may_come_to_do_is_what_its_bounds_let() {
    let dangerous = |status: &str| {
        let within_reach = Privileges::read(status).unwrap().within_reach();
        within_reach.dangerous().map(|capability| capability.to_string()).collect::<Vec<_>>()
    };
    // What containerd gives, to root and to another user.
    let root = "Name:\tx\nUid:\t1\t1\t1\t1\nCapPrm:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t0\n";
    assert_eq!(dangerous(root), ["CAP_NET_RAW"]);
    let user = "Name:\tx\nUid:\t1\t1\t1\t1\nCapPrm:\t0000000000000000\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t0\n";
    assert_eq!(dangerous(user), ["CAP_NET_RAW"]);
    let bound = user.replace("NoNewPrivs:\t0", "NoNewPrivs:\t1");
    assert!(dangerous(&bound).is_empty());
    let may_be_root = |status: &str| Privileges::read(status).unwrap().may_be_root();
    assert!(!may_be_root(&bound));
    assert!(may_be_root(user) && may_be_root(&bound.replace("\t1\t1\n", "\t0\t1\n")));
    let all = "Uid:\t0\nCapPrm:\t000001ffffffffff\nCapBnd:\t000001ffffffffff\nNoNewPrivs:\t1\n";
    assert_eq!(dangerous(all).len(), 7);
    assert_eq!(Privileges::read("Uid:\t0\nCapPrm:\t0\n"), None);
    assert_eq!(Privileges::read("Uid:\t0\nCapPrm:\tx\nCapBnd:\t0\n"), None);
}

#[test]
fn a_verdict_is_never_better_than_what_was_found() {
    let missing = || Program::Faulty(ProgramFault::Missing);
    let judge = |programs, doubts| Found { programs, doubts }.judge().0;
    let doubt = || vec![HostDoubt::OtherNetns { processes: 1 }];
    assert_eq!(judge([Program::Holds, Program::Holds], Vec::new()), Verdict::Contained);
    assert_eq!(judge([Program::Holds, Program::Holds], doubt()), Verdict::Partial);
    assert_eq!(judge([missing(), Program::Holds], Vec::new()), Verdict::Partial);
    assert_eq!(judge([Program::Holds, missing()], Vec::new()), Verdict::Partial);
    assert_eq!(judge([missing(), missing()], doubt()), Verdict::Open);
    let (_, doubts) = Found { programs: [missing(), missing()], doubts: doubt() }.judge();
    let codes: Vec<_> = doubts.iter().map(HostDoubt::code).collect();
    assert_eq!(codes, ["ebpf-missing", "ebpf-missing", "other-netns"]);
}

#[test]
fn mounts_are_read_with_their_escapes() {
    let text = "35 25 0:31 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n\
                36 25 0:31 /pod /a\\040b ro - cgroup2 cgroup rw\n\
                37 25 0:32 / /c rw - bpf bpf ro\nnonsense\n";
    let found: Vec<_> = mounts(text).collect();
    let said: Vec<_> = found
        .iter()
        .map(|mount| (mount.point.to_str().unwrap(), mount.kind.as_str(), mount.is_whole, mount.is_writable))
        .collect();
    let expected =
        [("/sys/fs/cgroup", "cgroup2", true, true), ("/a b", "cgroup2", false, false), ("/c", "bpf", true, false)];
    assert_eq!(said, expected);
}
