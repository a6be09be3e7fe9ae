//! The node that everything is measured on: the netns that this program was started in, which is not the machine's own,
//! with pods as a `ptp` plugin makes them.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cni_quarantine::internals::{Family, Nft};
use netlab::{Links, Mac, Netns, Route, Veth, text};
use serde_json::{Value, json};

use crate::Outcome;
use crate::process::{Program, sh};

/// The node's address, on the host's end of every veth.
pub(crate) const ADDRESS: &str = "10.88.0.1";

/// Turns the collecting off and on; it is off wherever it is not what is measured.
pub(crate) const EVIDENCE: &str = "QUARANTINE_EVIDENCE";

/// Where things are.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) quarantine: PathBuf,
    pub(crate) peers: PathBuf,
    pub(crate) state: PathBuf,
}

/// A pod on it: a netns, and a veth pair into it.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) number: u32,
    pub(crate) container_id: String,
    pub(crate) netns: String,
}

impl Node {
    /// Makes pods with these numbers. Their netns go with this process, whose mounts hold them.
    pub(crate) fn pods(&self, numbers: std::ops::Range<u32>) -> Outcome<Vec<Pod>> {
        let pods: Vec<_> = numbers.map(Pod::numbered).collect();
        let node = Links::open();
        let gateway = ADDRESS.parse::<Ipv4Addr>()?;
        for pod in &pods {
            netlab::add(&pod.name());
            let (host_end, address, netns) = (pod.host_end(), pod.address(), Netns::named(&pod.name()));
            node.add_veth(Veth {
                name: &host_end,
                mac: Some(pod.host_mac()),
                peer: "eth0",
                peer_mac: Some(pod.mac()),
                netns: &netns,
            });
            node.add_address(&host_end, format!("{ADDRESS}/32"));
            node.up(&host_end);
            node.route(Route::to(&address).dev(&host_end));
            let inside = netns.links();
            inside.add_address("eth0", format!("{address}/32"));
            inside.up("eth0");
            inside.route(Route::to(ADDRESS).dev("eth0"));
            inside.route(Route::default_via(gateway).dev("eth0"));
        }
        Ok(pods)
    }

    /// A call of a plugin: the conflist entry completed by what a runtime adds.
    pub(crate) fn call(&self, program: &Path, verb: &'static str, pod: &Pod, entry: &Value) -> Program {
        let mut config = entry.clone();
        config["cniVersion"] = json!("1.0.0");
        config["name"] = json!("bench");
        config["prevResult"] = pod.result();
        Program::new([program.display().to_string()])
            .with_environment([
                ("CNI_COMMAND", verb.to_owned()),
                ("CNI_CONTAINERID", pod.container_id.clone()),
                ("CNI_NETNS", pod.netns.clone()),
                ("CNI_IFNAME", "eth0".to_owned()),
                ("CNI_PATH", self.peers.display().to_string()),
                (
                    "CNI_ARGS",
                    format!(
                        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-{0};\
                         K8S_POD_UID=00000000-0000-4000-8000-{0:012}",
                        pod.number
                    ),
                ),
            ])
            .with_input(config.to_string())
    }

    /// The plugin's call of itself.
    pub(crate) fn plugin(&self, verb: &'static str, pod: &Pod, policy: Option<&Value>) -> Program {
        let mut entry = json!({ "type": "quarantine", "stateDir": self.state });
        if let Some(policy) = policy {
            entry["policy"] = policy.clone();
        }
        self.call(&self.quarantine, verb, pod, &entry)
    }

    /// One of its commands.
    pub(crate) fn command<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Program {
        let own = |path: &Path| path.display().to_string();
        let words = words.into_iter().map(str::to_owned);
        let state_dir = ["--state-dir".to_owned(), own(&self.state)];
        let program = Program::new([own(&self.quarantine)].into_iter().chain(words).chain(state_dir));
        program.with_environment([(EVIDENCE, "off".to_owned())])
    }

    /// The rules by which the pod would be isolated, as nft text: pod-side, and the host guard.
    pub(crate) fn rules_for(&self, pod: &Pod) -> Outcome<(String, String)> {
        let said = self.command(["isolate", &pod.container_id, "--dry-run"]).output()?;
        let guard = said.find("\ntable netdev quarantine-").ok_or("no host guard in the dry run")?;
        let (pod_side, guard) = said.split_at(guard + 1);
        Ok((pod_side.to_owned(), guard.to_owned()))
    }

    /// Puts a mark for the pod beside its place; `mark` moves it there.
    pub(crate) fn prepare_mark(&self, pod: &Pod) -> Outcome<PreparedMark> {
        let place = self.state.join("isolated").join(&pod.container_id);
        let from = place.with_file_name(format!(".{}", pod.container_id));
        fs::write(&from, "")?;
        Ok(PreparedMark { from, place })
    }

    /// Starts the agent and waits until it says that it is ready.
    pub(crate) fn agent(&self) -> Outcome<Agent> {
        let socket = self.state.with_file_name("ready");
        let _ = fs::remove_file(&socket);
        let ready = UnixDatagram::bind(&socket)?;
        ready.set_read_timeout(Some(Duration::from_secs(60)))?;
        let child = Command::new(&self.quarantine)
            .args(["agent", "--state-dir"])
            .arg(&self.state)
            .env("NOTIFY_SOCKET", &socket)
            .env(EVIDENCE, "off")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let agent = Agent { child };
        let mut said = [0; 256];
        let length = ready.recv(&mut said).map_err(|error| format!("the agent does not get ready: {error}"))?;
        if !said[..length].starts_with(b"READY=1") {
            return Err("the agent says something else than that it is ready".into());
        }
        // What it begins with is done when it rests.
        agent.wait_until_idle()?;
        Ok(agent)
    }
}

/// A mark that is not there yet.
#[derive(Debug)]
pub(crate) struct PreparedMark {
    from: PathBuf,
    place: PathBuf,
}

impl PreparedMark {
    pub(crate) fn set(&self) -> Outcome<()> {
        Ok(fs::rename(&self.from, &self.place)?)
    }

    pub(crate) fn remove(&self) -> Outcome<()> {
        Ok(fs::remove_file(&self.place)?)
    }
}

impl Pod {
    fn numbered(number: u32) -> Self {
        let netns = format!("/run/netns/pod{number}");
        Self { number, container_id: format!("{number:08x}").repeat(8), netns }
    }

    pub(crate) fn name(&self) -> String {
        format!("pod{}", self.number)
    }

    pub(crate) fn host_end(&self) -> String {
        format!("veth{}", self.number)
    }

    pub(crate) fn address(&self) -> String {
        format!("10.88.{}.{}", 1 + self.number / 250, 1 + self.number % 250)
    }

    pub(crate) fn mac(&self) -> Mac {
        let [.., high, low] = self.number.to_be_bytes();
        [2, 0, 0, 1, high, low]
    }

    pub(crate) fn host_mac(&self) -> Mac {
        let [.., high, low] = self.number.to_be_bytes();
        [2, 0, 0, 2, high, low]
    }

    fn result(&self) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                { "name": self.host_end(), "mac": text(self.host_mac()) },
                { "name": "eth0", "mac": text(self.mac()), "sandbox": self.netns },
            ],
            "ips": [{ "interface": 1, "address": format!("{}/32", self.address()), "gateway": ADDRESS }],
            "routes": [{ "dst": "0.0.0.0/0", "gw": ADDRESS }],
        })
    }

    /// Runs `work` in its netns. What it starts and opens there stays there.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Outcome<T> {
        Ok(Netns::named(&self.name()).run(work))
    }

    pub(crate) fn sh(&self, script: &str) -> Outcome<String> {
        self.inside(|| sh(script).map_err(|error| error.to_string()))?.map_err(Into::into)
    }

    pub(crate) fn rules(&self) -> Outcome<Rules> {
        Ok(Rules(self.inside(Nft::open)??))
    }
}

/// The pod-side rules, as the kernel has them.
pub(crate) struct Rules(Nft);

impl Rules {
    pub(crate) fn are_awake(&mut self) -> Outcome<bool> {
        Ok(self.0.is_awake(Family::Netdev, "quarantine")? && self.0.is_awake(Family::Inet, "quarantine")?)
    }
}

/// The agent at work; ended with this.
#[derive(Debug)]
pub(crate) struct Agent {
    child: Child,
}

impl Agent {
    /// What `/proc` says in that file of each of its threads. Some live for a moment only.
    fn threads(&self, file: &str) -> Outcome<Vec<String>> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()))?;
        Ok(tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join(file)).ok()).collect())
    }

    /// Its resident memory in MiB.
    pub(crate) fn memory(&self) -> Outcome<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        Ok(kibibytes.ok_or("no VmRSS")?.parse::<f64>()? / 1024.0)
    }

    /// How often its threads were switched to, by the scheduler's own count.
    pub(crate) fn switches(&self) -> Outcome<u64> {
        let mut count = 0;
        for status in self.threads("status")? {
            let switches = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
            count += switches.map(|(_, value)| value.trim().parse::<u64>()).sum::<Result<u64, _>>()?;
        }
        Ok(count)
    }

    /// The CPU time that it has used.
    pub(crate) fn cpu(&self) -> Outcome<Duration> {
        let mut nanoseconds = 0;
        for times in self.threads("schedstat")? {
            nanoseconds += times.split_whitespace().next().ok_or("no schedstat")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Waits until it has not run for a tenth of a second; gives the moment from which on it did not, to a tenth of a second.
    pub(crate) fn wait_until_idle(&self) -> Outcome<Instant> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut before = self.switches()?;
        loop {
            let since = Instant::now();
            std::thread::sleep(Duration::from_millis(100));
            let now = self.switches()?;
            if now == before {
                return Ok(since);
            }
            if Instant::now() > deadline {
                return Err("the agent does not come to rest".into());
            }
            before = now;
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Polls, with pauses long enough not to slow down what it waits for.
pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> Outcome<bool>) -> Outcome<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so()? {
        if Instant::now() > deadline {
            return Err(format!("{what}: not within 30 s").into());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
