use super::*;

fn holds(passed_by: &[Bypass], both_ways: bool) -> Guard {
    Guard::Holds { passed_by: passed_by.to_vec(), both_ways }
}

fn verdict(pod_side_holds: bool, guard: Guard, pod_side: PodSide) -> Verdict {
    let exposure = Exposure { interface: "eth0".to_owned(), guard, pod_side, programs: Programs::NotWanted };
    let (verdict, reasons) = judge(pod_side_holds, &[exposure]);
    assert_eq!(reasons.is_empty(), verdict == Verdict::Contained, "every doubt has its reason");
    verdict
}

#[test]
fn only_the_whole_host_guard_contains() {
    use PodSide::{InTheWay, Left, PassedBy};
    use Verdict::{Contained, Open, Partial};
    let missing = || Guard::Missing(NoGuard::NoPeer { kind: "macvlan".to_owned() });
    let redirect = [Bypass::TcRedirect { from: None, device: "veth1".to_owned() }];
    for (pod_side_holds, guard, pod_side, expected) in [
        (true, holds(&[], true), InTheWay, Contained),
        (true, holds(&[], true), PassedBy, Contained),
        (true, holds(&[], true), Left, Contained),
        (false, holds(&[], true), InTheWay, Contained),
        (true, holds(&[], false), InTheWay, Partial),
        (false, holds(&[], false), InTheWay, Open),
        (true, holds(&redirect, true), InTheWay, Partial),
        (true, holds(&redirect, true), PassedBy, Partial),
        (true, holds(&redirect, true), Left, Open),
        (false, holds(&redirect, true), InTheWay, Open),
        (true, missing(), InTheWay, Partial),
        (true, missing(), PassedBy, Partial),
        (true, missing(), Left, Open),
        (false, missing(), InTheWay, Open),
        (true, Guard::Missing(NoGuard::EndGone), InTheWay, Partial),
        (false, Guard::Elsewhere, InTheWay, Partial),
        (true, Guard::PairGone, Left, Partial),
        (true, Guard::IndexTaken { device: "veth2".to_owned() }, Left, Partial),
    ] {
        assert_eq!(
            verdict(pod_side_holds, guard.clone(), pod_side),
            expected,
            "{pod_side_holds} {guard:?} {pod_side:?}"
        );
    }
}

#[test]
fn the_worst_interface_decides_and_nothing_is_claimed_over_nothing() {
    let exposure = |guard| Exposure {
        interface: "eth0".to_owned(),
        guard,
        pod_side: PodSide::InTheWay,
        programs: Programs::NotWanted,
    };
    let both = [exposure(holds(&[], true)), exposure(Guard::Missing(NoGuard::Off))];
    assert_eq!(judge(true, &both).0, Verdict::Partial);
    assert_eq!(judge(true, &[]), (Verdict::Open, vec![Reason::NothingFound]));
}
#[test]
fn programs_close_what_passes_the_guard_and_no_more() {
    let device = || "veth1".to_owned();
    let mirred = || Bypass::TcRedirect { from: None, device: device() };
    let bpf = || Bypass::BpfLink { device: device() };
    let xdp = || Bypass::Xdp { device: device() };
    let hold = |into_pods| Programs::Hold { into_pods };
    let missing = || Programs::Doubted(vec![ProgramDoubt::Missing(ProgramPlace::ToPod)]);
    for (ways, programs, expected) in [
        (vec![mirred()], Programs::NotWanted, &["tc-redirect"][..]),
        (vec![mirred()], hold(true), &[]),
        (vec![mirred()], missing(), &["ebpf-missing", "tc-redirect"]),
        (vec![bpf(), mirred()], hold(true), &["neighbour-redirects"]),
        (vec![bpf(), mirred()], hold(false), &[]),
        (vec![xdp(), mirred()], hold(true), &["xdp-program"]),
        (vec![], missing(), &["ebpf-missing"]),
        (vec![], hold(true), &[]),
    ] {
        let guard = holds(&ways, true);
        let exposure = Exposure { interface: "eth0".to_owned(), guard, pod_side: PodSide::Left, programs };
        let (verdict, reasons) = judge(false, &[exposure]);
        let codes: Vec<_> = reasons.iter().map(Reason::code).collect();
        assert_eq!(codes, expected, "{ways:?}");
        assert_eq!(verdict == Verdict::Contained, expected.is_empty(), "{ways:?}");
    }
}
