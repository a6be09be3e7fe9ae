use super::*;

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
