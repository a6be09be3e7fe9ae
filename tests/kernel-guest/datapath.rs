//! What takes frames past a layer of the product, and what it says then: a datapath that redirects, and interfaces that were moved.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::containment::{CONTAINER, Containment};
use crate::lab::{Lab, POD4, POD6};
use crate::wire::{FRAMES, Frame, LONG, SHORT, eventually, probe};
use crate::{Outcome, ensure, note};

impl Containment {
    /// Frames that tc hands from the peer's end to the pod's, past the guard.
    pub(crate) fn programs(&self) -> Outcome {
        let node = &self.lab.node;
        let tc = |words: &str| node.command("tc", &words.split(' ').collect::<Vec<_>>(), "");
        tc("qdisc add dev vpeer clsact")?;
        tc("filter add dev vpeer ingress protocol all prio 1 matchall action mirred egress redirect dev vpod")?;
        let outcome = self.without_kubelet().and_then(|()| self.behind_programs());
        tc("qdisc del dev vpeer clsact")?;
        outcome
    }

    /// Where nothing would tell probes apart no program is attached for a policy with some, and nobody is told to try again.
    fn without_kubelet(&self) -> Outcome {
        self.isolate()?;
        let (verdict, printed) = self.status()?;
        let is_unsupported = printed.contains("ebpf-unsupported");
        ensure!(is_unsupported == (verdict == "partial"), "without a kubelet it is {verdict}: {printed}");
        ensure!(!printed.contains("ebpf-missing"), "what cannot be attached is said to be missing: {printed}");
        self.release()
    }

    fn behind_programs(&self) -> Outcome {
        // Older kernels tell the node's probes by this alone: a process by that name, in a cgroup of its own.
        let kubelet =
            "mkdir -p /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup; mkdir -p /sys/fs/cgroup/node/kubelet
            echo $$ >/sys/fs/cgroup/node/kubelet/cgroup.procs; echo kubelet >/proc/$$/comm; echo ready
            while :; do sleep 1000; done";
        let mut shell = (*self.lab.node).command("sh");
        let mut kubelet = shell.args(["-c", kubelet]).stdout(Stdio::piped()).spawn()?;
        let outcome = BufReader::new(kubelet.stdout.take().ok_or("no output")?)
            .read_line(&mut String::new())
            .map_err(Into::into)
            .and_then(|_| self.beside_kubelet());
        kubelet.kill()?;
        kubelet.wait()?;
        outcome
    }

    fn beside_kubelet(&self) -> Outcome {
        let control = self.inward(Frame::Unknown, LONG)?;
        ensure!(control == FRAMES, "{control} reach a released pod");
        self.isolate()?;
        let (verdict, printed) = self.status()?;
        let status = serde_json::from_str::<serde_json::Value>(&printed)?;
        let codes = status["reasonCodes"].as_array().ok_or("no codes")?;
        let codes: Vec<_> = codes.iter().filter_map(|reason| reason["code"].as_str()).collect();
        note(&format!("with a tc redirect to the pod's host end the verdict is {verdict}: {codes:?}"));
        let arrived = self.inward(Frame::Unknown, SHORT)?;
        ensure!(arrived == 0 || verdict == "partial", "{arrived} reach a pod that is said to be {verdict}");
        ensure!(verdict == "contained" || codes.contains(&"ebpf-unsupported"), "{verdict}, and no word of programs");
        let has_programs = status["layers"]["bpf"] == true;
        let join =
            |cgroup: &str| fs::write(format!("/sys/fs/cgroup/{cgroup}cgroup.procs"), std::process::id().to_string());
        join("node/kubelet/")?;
        for address in [POD4, POD6] {
            self.probe(&self.lab.node, address, None, true)?;
        }
        join("")?;
        if has_programs {
            let passes = probe(&self.lab.node, POD4, None, SHORT)?;
            note(&format!("of the node's root, others than the kubelet reach the pod through programs: {passes}"));
        }
        self.release()?;
        self.waiting(has_programs)
    }

    /// An agent has programs wait on the released pod where the kernel has programs at all; whoever isolates finds them.
    fn waiting(&self, has_programs: bool) -> Outcome {
        let is_ready = || {
            let status = serde_json::from_str::<serde_json::Value>(&self.status()?.1)?;
            Ok(status["layers"]["bpfReady"] == true)
        };
        let mut agent = self.start_agent()?;
        let waits = if has_programs { eventually("programs wait", is_ready) } else { Ok(()) };
        agent.kill()?;
        agent.wait()?;
        waits?;
        ensure!(is_ready()? == has_programs, "programs wait: {}", !has_programs);
        let control = self.inward(Frame::Unknown, LONG)?;
        ensure!(control == FRAMES, "{control} reach a released pod on which programs wait: {has_programs}");
        self.isolate()?;
        let (arrived, verdict) = (self.inward(Frame::Unknown, SHORT)?, self.status()?.0);
        ensure!(
            if has_programs { arrived == 0 && verdict == "contained" } else { arrived == 0 || verdict == "partial" },
            "{arrived} reach a pod that is said to be {verdict}"
        );
        note(&format!("where tc redirects, programs wait on a released pod: {has_programs}"));
        self.release()?;
        ensure!(is_ready()? == has_programs, "released again, programs wait: {}", !has_programs);
        Ok(())
    }

    /// An interface that goes to another netns loses its hooks, whatever is listed of them. With the layer of the other side taken away, what
    /// is said of this one is all that is said.
    pub(crate) fn moved(&self) -> Outcome {
        let Lab { node, pod, peer } = &self.lab;
        let guard = format!("quarantine-{CONTAINER}");
        let without_guard = || node.nft(&format!("delete table netdev {guard}"));
        self.isolate()?;
        pod.ip("link set eth0 netns peer name moved")?;
        peer.ip("link set moved netns pod name eth0")?;
        pod.ip("link set eth0 up")?;
        let chains = pod.rules()?.matches("device \"eth0\"").count();
        without_guard()?;
        self.said_of("pod", chains, "eth0")?;
        self.isolate()?;
        node.ip("link set vpod netns peer name moved")?;
        peer.ip("link set moved netns 1 name vpod")?;
        node.ip("link set vpod master br0 up")?;
        let chains = node.rules()?.matches("device \"vpod\"").count();
        pod.nft("flush ruleset")?;
        self.said_of("host", chains, "vpod")?;
        self.release()?;
        let links = pod.links();
        links.add_address("eth0", format!("{POD4}/24"));
        links.add_address("eth0", format!("{POD6}/64"));
        self.lab.fix_neighbours();
        self.expect_out(true, "released, after both were moved")
    }

    /// A layer that lets frames out is not said to be there; a sync brings both back.
    fn said_of(&self, layer: &str, chains: usize, device: &str) -> Outcome {
        let arrived = self.out(Frame::Unknown, "eth0", false)?;
        let (verdict, printed) = self.status()?;
        let holds = serde_json::from_str::<serde_json::Value>(&printed)?["layers"][layer] == true;
        let is_told = fs::read_to_string("/proc/modules")?.contains("nfnetlink_hook");
        note(&format!(
            "{device} moved away and back: {chains} of its chains are listed (hooks {}), {arrived} frames leave, and the layer {layer} is said to {}: {verdict}",
            if is_told { "are told" } else { "are not told" },
            if holds { "hold" } else { "be gone" },
        ));
        ensure!(arrived == 0 || (!holds && verdict != "contained"), "{arrived} leave, and the layer is said to hold");
        self.quarantine(&["sync"])?;
        self.expect_out(false, "after the sync")?;
        let (verdict, printed) = self.status()?;
        let holds = serde_json::from_str::<serde_json::Value>(&printed)?["layers"][layer] == true;
        ensure!(holds, "not mended, {verdict}: {printed}");
        Ok(())
    }
}
