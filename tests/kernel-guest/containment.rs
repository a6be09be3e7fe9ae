//! A core of the suite: the product itself isolates a pod in this kernel, and the pod, its peer and the node try to get through.
//!
//! What is expected is the same for every kernel, but for two things that only a kernel with the netdev egress hook can do
//! for sure: shut a device that appeared after the isolation before anyone looks, and keep frames from a packet socket in
//! the pod. Where something did get through, the product must have said so: a verdict of `contained` is then a failure.

mod prober;

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::lab::{Lab, NODE4, NODE6, Netns, PEER_MAC, PEER4, PEER6, POD_MAC, POD4, POD6};
use crate::wire::{FRAMES, Flow, Frame, LONG, SHORT, datagrams, eventually, frames, probe, serve};
use crate::{Checks, Outcome, check, ensure, note};

pub(crate) const CONTAINER: &str = "c0ffee0000000000000000000000000000000000000000000000000000000009";
const UID: &str = "7f0e9a52-3c1b-4a86-9d10-5e2f4c8b6a01";
const USER: u32 = 1000;

pub(crate) struct Containment {
    pub(crate) lab: Lab,
    state: PathBuf,
    /// Whether the kernel has the netdev egress hook.
    egress: bool,
}

pub(crate) fn check_all() -> Outcome {
    let lab = Lab::new();
    serve(&lab.pod)?;
    let egress = lab
        .peer
        .nft("add table netdev probe\nadd chain netdev probe c { type filter hook egress device eth0 priority 0; }\ndelete table netdev probe")
        .is_ok();
    let pod = Containment { lab, state: PathBuf::from("/var/lib/cni/quarantine"), egress };
    let all: &Checks<Containment> = &[
        ("ADD installs dormant tables, and the pod is as free as before", Containment::add),
        ("the mark and sync isolate, its removal and sync release, five times over", Containment::toggles),
        ("established TCP flows stall and go on after the release", Containment::flows),
        ("raw frames of every kind stay in", Containment::raw_out),
        ("frames to a packet socket in the pod stay out", Containment::raw_in),
        ("datagrams pass in neither direction, v4 nor v6", Containment::datagrams),
        ("the node's root passes to the health port, nobody else does", Containment::probes),
        ("of a cgroup of the node's alone probes pass, or of root's all, and that is said", Containment::prober),
        ("ranges of ports and networks let through what they say, and are read back", Containment::ranges),
        ("renaming the interface opens nothing", Containment::rename),
        ("flushing the pod's rules opens nothing, and sync puts them back", Containment::flush),
        ("a device that appears later is shut", Containment::late_device),
        ("the agent isolates, repairs, shuts a new device and releases", Containment::agent),
        ("what tc takes past the guard is stopped by programs, or said, and probes pass", Containment::programs),
        ("status says of this kernel what the attacks have shown", Containment::verdict),
        ("either end that was moved away and back is shut, or said to be open", Containment::moved),
        ("DEL takes the host guard away", Containment::del),
    ];
    for (name, attack) in all {
        check("containment", name, || {
            let outcome = attack(&pod);
            // The next check starts from a released pod, whatever became of this one.
            let released = pod.release();
            outcome.and(released)
        });
    }
    Ok(())
}

impl Containment {
    fn config(&self) -> String {
        format!(
            r#"{{"cniVersion": "1.0.0", "name": "guest", "type": "quarantine", "stateDir": "{state}",
                "log": {{"target": "stderr", "level": "info"}},
                "prevResult": {{"cniVersion": "1.0.0",
                    "interfaces": [{{"name": "br0"}}, {{"name": "vpod"}}, {{"name": "eth0", "sandbox": "{sandbox}"}}],
                    "ips": [{{"address": "{POD4}/24", "gateway": "{NODE4}", "interface": 2}},
                            {{"address": "{POD6}/64", "gateway": "{NODE6}", "interface": 2}}]}}}}"#,
            state = self.state.display(),
            sandbox = self.lab.pod.path().display(),
        )
    }

    /// Calls the plugin as a container runtime does.
    fn cni(&self, verb: &str) -> Result<String, Box<dyn Error>> {
        let netns = self.lab.pod.path();
        let environment = [
            format!("CNI_COMMAND={verb}"),
            format!("CNI_CONTAINERID={CONTAINER}"),
            format!("CNI_NETNS={}", netns.display()),
            "CNI_IFNAME=eth0".into(),
            "CNI_PATH=/bin".into(),
            format!("CNI_ARGS=K8S_POD_NAMESPACE=guests;K8S_POD_NAME=pod;K8S_POD_UID={UID}"),
        ];
        let mut arguments: Vec<&str> = environment.iter().map(String::as_str).collect();
        arguments.push("quarantine");
        // The plugin prints its errors as JSON on stdout: `env` keeps them out of our own complaint otherwise.
        self.lab.node.command("env", &arguments, &self.config())
    }

    pub(crate) fn quarantine(&self, arguments: &[&str]) -> Result<String, Box<dyn Error>> {
        let state = self.state.display().to_string();
        self.lab.node.command("quarantine", &[arguments, &["--state-dir", &state]].concat(), "")
    }

    fn mark(&self) -> PathBuf {
        self.state.join("isolated").join(CONTAINER)
    }

    pub(crate) fn isolate(&self) -> Outcome {
        fs::write(self.mark(), "")?;
        self.quarantine(&["sync"]).map(drop)
    }

    pub(crate) fn release(&self) -> Outcome {
        match fs::remove_file(self.mark()) {
            Ok(()) => self.quarantine(&["sync"]).map(drop),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn out(&self, kind: Frame, interface: &str, expected: bool) -> Result<usize, Box<dyn Error>> {
        let patience = if expected { LONG } else { SHORT };
        frames(kind, (&self.lab.pod, interface), (&self.lab.peer, "eth0", PEER_MAC), patience)
    }

    /// Frames leave the pod, or don't.
    pub(crate) fn expect_out(&self, open: bool, when: &str) -> Outcome {
        let (arrived, wanted) = (self.out(Frame::Unknown, "eth0", open)?, if open { FRAMES } else { 0 });
        ensure!(arrived == wanted, "{when}: {arrived} frames left the pod, expected {wanted}");
        Ok(())
    }

    pub(crate) fn probe(&self, from: &Netns, address: &str, user: Option<u32>, expected: bool) -> Outcome {
        // Silence is not waited for as long as an answer is: a second SYN is sent after one second.
        let passed = probe(from, address, user, if expected { LONG } else { SHORT })?;
        ensure!(passed == expected, "probe of {address} from {} as {user:?}: passed {passed}", from.name());
        Ok(())
    }

    fn add(&self) -> Outcome {
        let result = self.cni("ADD")?;
        ensure!(result.contains(POD4) && result.contains("vpod"), "prevResult is not what was printed: {result}");
        let rules = self.lab.pod.rules()?;
        for family in ["inet", "netdev"] {
            let table = rules.split("table ").find(|table| table.starts_with(&format!("{family} quarantine {{")));
            let table = table.ok_or_else(|| format!("there is no table {family} quarantine: {rules}"))?;
            ensure!(table.contains("flags dormant"), "table {family} quarantine is awake: {table}");
        }
        ensure!(rules.contains("hook egress device") == self.egress, "egress hook {}: {rules}", self.egress);
        ensure!(!self.lab.node.rules()?.contains("quarantine"), "a host guard stands already");
        self.expect_out(true, "after ADD")?;
        self.probe(&self.lab.peer, POD4, None, true)?;
        self.probe(&self.lab.peer, POD6, None, true)
    }

    fn toggles(&self) -> Outcome {
        for _ in 0..5 {
            self.expect_out(true, "released")?;
            self.isolate()?;
            self.expect_out(false, "isolated")?;
            self.release()?;
            ensure!(!self.lab.node.rules()?.contains("quarantine"), "the host guard stays after the release");
        }
        self.expect_out(true, "released")
    }

    fn flows(&self) -> Outcome {
        let (pod, node, peer) = (&self.lab.pod, &self.lab.node, &self.lab.peer);
        let mut flows = [
            ("pod to peer", Flow::establish(pod, (peer, PEER4), LONG)?),
            ("peer to pod", Flow::establish(peer, (pod, POD4), LONG)?),
            ("pod to peer, v6", Flow::establish(pod, (peer, PEER6), LONG)?),
            ("pod to the node", Flow::establish(pod, (node, NODE4), LONG)?),
        ];
        for (name, flow) in &mut flows {
            ensure!(flow.carries(LONG)? == (true, true), "{name}: released, and it carries nothing");
        }
        self.isolate()?;
        for (name, flow) in &mut flows {
            let carried = flow.carries(SHORT)?;
            ensure!(carried == (false, false), "{name}: isolated, and it carries {carried:?}");
        }
        self.release()?;
        for (name, flow) in &mut flows {
            // What was written meanwhile is sent again, after pauses that have grown.
            ensure!(flow.carries(LONG * 4)? == (true, true), "{name}: released again, and it is stalled");
        }
        Ok(())
    }

    fn raw_out(&self) -> Outcome {
        for kind in [Frame::Unknown, Frame::Bypass, Frame::Tagged, Frame::Broadcast] {
            let control = self.out(kind, "eth0", true)?;
            ensure!(control == FRAMES, "{kind:?}: {control} arrive from a released pod");
            self.isolate()?;
            let arrived = self.out(kind, "eth0", false)?;
            ensure!(arrived == 0, "{kind:?}: {arrived} arrive from an isolated pod");
            self.release()?;
        }
        Ok(())
    }

    pub(crate) fn inward(&self, kind: Frame, patience: Duration) -> Result<usize, Box<dyn Error>> {
        frames(kind, (&self.lab.peer, "eth0"), (&self.lab.pod, "eth0", POD_MAC), patience)
    }

    fn raw_in(&self) -> Outcome {
        for kind in [Frame::Unknown, Frame::Tagged, Frame::Broadcast] {
            let control = self.inward(kind, LONG)?;
            ensure!(control == FRAMES, "{kind:?}: {control} reach a released pod");
            self.isolate()?;
            let arrived = self.inward(kind, SHORT)?;
            if arrived > 0 {
                ensure!(!self.egress, "{kind:?}: {arrived} reach an isolated pod");
                let (verdict, _) = self.status()?;
                ensure!(verdict == "partial", "{kind:?}: {arrived} reach a pod that is said to be {verdict}");
                note(&format!("{kind:?} frames reach a packet socket in the isolated pod, said to be {verdict}"));
            }
            self.release()?;
        }
        Ok(())
    }

    fn datagrams(&self) -> Outcome {
        let (pod, peer) = (&self.lab.pod, &self.lab.peer);
        let ways = [
            (pod, (peer, PEER4)),
            (pod, (peer, PEER6)),
            (peer, (pod, POD4)),
            (peer, (pod, POD6)),
            (pod, (&self.lab.node, NODE4)),
        ];
        for (from, to) in ways {
            let control = datagrams(from, to, LONG)?;
            ensure!(control > 0, "to {}: nothing arrives while released", to.1);
        }
        self.isolate()?;
        for (from, to) in ways {
            let arrived = datagrams(from, to, SHORT)?;
            ensure!(arrived == 0, "to {}: {arrived} arrive", to.1);
        }
        Ok(())
    }

    fn probes(&self) -> Outcome {
        let (node, peer) = (&self.lab.node, &self.lab.peer);
        let askers = [(node, None), (node, Some(USER)), (peer, None)];
        for address in [POD4, POD6] {
            for (from, user) in askers {
                self.probe(from, address, user, true)?;
            }
        }
        self.isolate()?;
        for address in [POD4, POD6] {
            self.probe(node, address, None, true)?;
            self.probe(peer, address, None, false)?;
            let stranger = probe(node, address, Some(USER), SHORT)?;
            if stranger {
                ensure!(!self.egress, "another user of the node reaches {address}");
                note(&format!("another user of the node reaches {address} of the isolated pod: {}", self.status()?.0));
            }
        }
        // With the neighbour's entry to be found anew, on both sides.
        node.ip("neigh flush dev br0")?;
        self.lab.pod.ip("neigh flush dev eth0")?;
        for address in [POD4, POD6] {
            self.probe(node, address, None, true)?;
        }
        Ok(())
    }

    /// Ranges are in sets of another kind than single values, named ones and those that rules have for themselves.
    fn ranges(&self) -> Outcome {
        for (ports, passes) in [(r#""8000-8010", "8079-8090""#, true), (r#""8000-8079", "8081-8090""#, false)] {
            let allow = |peer: &str, ports: &str| {
                format!(r#"{{"direction": "egress", "peer": "{peer}", "protocol": "tcp", "ports": ["{ports}"]}}"#)
            };
            let allow =
                [allow("10.0.0.0/8", "50-200"), allow("10.9.0.0/24", "1-100"), allow("fd09::/64", "1-100")].join(", ");
            fs::write(
                self.mark(),
                format!(r#"{{"policy": {{"probes": {{"ports": [{ports}]}}, "allow": [{allow}]}}}}"#),
            )?;
            self.quarantine(&["sync"])?;
            for address in [POD4, POD6] {
                self.probe(&self.lab.node, address, None, passes)?;
            }
            let (verdict, printed) = self.status()?;
            ensure!((verdict == "contained") == self.egress && verdict != "open", "{verdict}: {printed}");
        }
        Ok(())
    }

    fn rename(&self) -> Outcome {
        self.lab.rename("eth0", "eth9")?;
        let control = self.out(Frame::Unknown, "eth9", true);
        self.lab.rename("eth9", "eth0")?;
        ensure!(control? == FRAMES, "a renamed interface of a released pod does not work");

        self.isolate()?;
        self.lab.rename("eth0", "eth9")?;
        let attacked = (|| -> Outcome {
            for synced in [false, true] {
                if synced {
                    self.quarantine(&["sync"])?;
                }
                for kind in [Frame::Unknown, Frame::Bypass] {
                    let arrived = self.out(kind, "eth9", false)?;
                    ensure!(arrived == 0, "{kind:?}: {arrived} left by the renamed interface (synced: {synced})");
                }
                let arrived = datagrams(&self.lab.pod, (&self.lab.peer, PEER4), SHORT)?;
                ensure!(arrived == 0, "{arrived} datagrams left by the renamed interface (synced: {synced})");
                self.probe(&self.lab.peer, POD4, None, false)?;
            }
            Ok(())
        })();
        self.lab.rename("eth9", "eth0")?;
        attacked?;
        self.quarantine(&["sync"])?;
        self.expect_out(false, "renamed back")
    }

    fn flush(&self) -> Outcome {
        self.isolate()?;
        let before = self.lab.pod.rules()?;
        self.lab.pod.nft("flush ruleset")?;
        for kind in [Frame::Unknown, Frame::Bypass] {
            let arrived = self.out(kind, "eth0", false)?;
            ensure!(arrived == 0, "{kind:?}: {arrived} leave past the host guard");
        }
        let arrived = datagrams(&self.lab.pod, (&self.lab.peer, PEER4), SHORT)?;
        ensure!(arrived == 0, "{arrived} datagrams leave past the host guard");
        self.quarantine(&["sync"])?;
        let after = self.lab.pod.rules()?;
        for family in ["inet", "netdev"] {
            let table = format!("table {family} quarantine");
            ensure!(before.contains(&table) && after.contains(&table), "{table} is not back: {after}");
        }
        ensure!(!after.contains("flags dormant"), "put back, but dormant: {after}");
        self.expect_out(false, "after the repair")
    }

    /// Gives the pod a second interface, eth1, which the host's end `vlate` joins to the bridge.
    fn plug(&self) -> Outcome {
        let (pod, node) = (&self.lab.pod, &self.lab.node);
        node.ip("link add vlate type veth peer name eth1 netns pod")?;
        node.ip("link set vlate master br0 up")?;
        pod.ip("link set eth1 up")?;
        pod.ip("addr add 10.9.0.12/24 dev eth1")?;
        pod.ip(&format!("neigh replace {PEER4} lladdr 02:00:00:00:09:03 dev eth1 nud permanent"))?;
        // Past eth0, which has the same network.
        pod.ip(&format!("route replace {PEER4}/32 dev eth1 src 10.9.0.12")).map(drop)
    }

    fn unplug(&self) -> Outcome {
        self.lab.node.ip("link del vlate").map(drop)
    }

    /// A second veth that comes while the pod is isolated, as from an attacker's tool on the node or another CNI.
    fn late_device(&self) -> Outcome {
        let pod = &self.lab.pod;
        self.plug()?;
        let control = (self.out(Frame::Unknown, "eth1", true)?, datagrams(pod, (&self.lab.peer, PEER4), LONG)?);
        self.unplug()?;
        ensure!(control == (FRAMES, FRAMES), "the second device of a released pod does not work: {control:?}");

        self.isolate()?;
        self.plug()?;
        let attacked = (|| -> Outcome {
            let arrived = datagrams(pod, (&self.lab.peer, PEER4), SHORT)?;
            ensure!(arrived == 0, "{arrived} datagrams left before anyone looked");
            self.quarantine(&["sync"])?;
            let arrived = datagrams(pod, (&self.lab.peer, PEER4), SHORT)?;
            ensure!(arrived == 0, "{arrived} datagrams left after the sync");
            for kind in [Frame::Unknown, Frame::Bypass] {
                let arrived = self.out(kind, "eth1", false)?;
                ensure!(arrived == 0, "{kind:?}: {arrived} left after the sync");
            }
            Ok(())
        })();
        self.unplug()?;
        attacked?;
        // The chains of a device that went are gone with it: that must be no reason to fail.
        self.quarantine(&["sync"])?;
        self.expect_out(false, "after the device went")
    }

    /// With the agent nobody calls sync: it sees the marks, the tampering and the devices that appear.
    fn agent(&self) -> Outcome {
        let mut agent = self.start_agent()?;
        let outcome = self.watched();
        agent.kill()?;
        agent.wait()?;
        outcome
    }

    pub(crate) fn start_agent(&self) -> Result<Child, Box<dyn Error>> {
        let state = self.state.display().to_string();
        let log = ["--log", "stderr"];
        let mut command = netlab::Netns::command(&self.lab.node, "quarantine");
        command.args(["agent", "--state-dir", &state]).args(log).stdin(Stdio::null()).stderr(Stdio::null());
        Ok(command.spawn()?)
    }

    fn watched(&self) -> Outcome {
        let guarded = || Ok(self.lab.node.rules()?.contains("quarantine"));
        self.expect_out(true, "with the agent")?;
        fs::write(self.mark(), "")?;
        eventually("a host guard stands", guarded)?;
        let awake = || Ok(!self.lab.pod.rules()?.contains("dormant"));
        eventually("the pod's tables are awake", awake)?;
        self.expect_out(false, "marked, with the agent")?;

        self.lab.pod.nft("flush ruleset")?;
        let repaired = || Ok(self.lab.pod.rules()?.contains("table netdev quarantine"));
        eventually("the pod's tables are back", repaired)?;

        self.plug()?;
        let seen = || Ok(self.lab.node.rules()?.contains("\"vlate\""));
        let shut = eventually("the host's end of the new device is guarded", seen)
            .and_then(|()| self.out(Frame::Unknown, "eth1", false));
        self.unplug()?;
        let arrived = shut?;
        ensure!(arrived == 0, "{arrived} frames left by the new device");

        fs::remove_file(self.mark())?;
        eventually("the host guard is gone", || Ok(!guarded()?))?;
        self.expect_out(true, "released, with the agent")
    }

    /// The verdict, and the whole of what `status` prints.
    pub(crate) fn status(&self) -> Result<(String, String), Box<dyn Error>> {
        // Its exit status is a verdict of its own.
        let status = format!("quarantine status {CONTAINER} -o json --state-dir {} || true", self.state.display());
        let printed = self.lab.node.command("sh", &["-c", &status], "")?;
        let json: serde_json::Value = serde_json::from_str(&printed)?;
        // One sandbox was asked for; a list of one is as good.
        let one = json.get(0).unwrap_or(&json);
        let verdict = one.get("verdict").and_then(serde_json::Value::as_str);
        Ok((verdict.ok_or_else(|| format!("no verdict in {printed}"))?.to_owned(), printed))
    }

    fn verdict(&self) -> Outcome {
        let (released, _) = self.status()?;
        ensure!(released == "open", "released, and said to be {released}");
        self.isolate()?;
        let (isolated, printed) = self.status()?;
        let reasons = serde_json::from_str::<serde_json::Value>(&printed)?["reasons"].take();
        note(&format!("isolated, the verdict is {isolated}: {reasons}"));
        if self.egress {
            ensure!(isolated == "contained", "{isolated}: {printed}");
        } else {
            ensure!(
                isolated != "open" && printed.contains("egress"),
                "nothing is said of the missing egress hook: {printed}"
            );
        }
        Ok(())
    }

    fn del(&self) -> Outcome {
        self.isolate()?;
        ensure!(self.lab.node.rules()?.contains("quarantine"), "no host guard stands while isolated");
        self.cni("DEL")?;
        ensure!(!self.lab.node.rules()?.contains("quarantine"), "the host guard stays");
        // Without the host guard, the pod's own tables still stand until the namespace goes.
        self.expect_out(!self.egress, "after DEL")?;
        self.cni("DEL")?;
        let carried = self.state.join("isolated").join(UID);
        ensure!(carried.exists(), "the mark was not carried over to the pod's UID");
        fs::remove_file(carried)?;
        Ok(())
    }
}
