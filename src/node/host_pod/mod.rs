//! Pods in the node's own network namespace: found by their cgroups, isolated by programs on these, read back.
//!
//! CNI is not called for them, so there is no record: the marks, the cgroups and `/proc` are asked anew each time. A pod that has a
//! record is never one of these, whatever its processes do; nor is one that has no process in the node's network namespace, which may be
//! one whose ADD is yet to come. What a pod of several network namespaces has in the others is cut off with it, since its sockets are in
//! the same cgroup, and the verdict says that there are others.
//!
//! Not here: what passes (`rules::containment`), what may be claimed (`model::host_pod`).

mod cgroups;
mod patient;
mod processes;
mod programs;
mod sync;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::kernel::bpf::Pins;
use crate::kernel::cgroup::{CgroupTree, Directory, old_hierarchies, on_the_node, processes_of};
use crate::kernel::netlink::NetlinkError;
use crate::kernel::rtnetlink::Links;
use crate::model::host_pod::{Found, HostDoubt, HostPod, Program, ProgramFault, Way};
use crate::model::names::{Key, Pod, PodName, PodUid};
use crate::model::policy::{Policy, Probes};
use crate::model::verdict::{Note, Verdict};
use crate::node::sandbox::kubelet::in_cgroup;
use crate::node::sandbox::{ProberSeen, cgroup_of};
use crate::node::state::StateError;
use crate::rules::bpf::Sender;
use crate::rules::containment::{HostPodChains, host_pod_chains};
use crate::rules::ruleset::{Family, Set, Table};

use processes::NetnsId;
use programs::Programs;

pub use sync::{Asked, HostEnforced, Outcome, candidates, desired, sync_one};

/// Why nothing can be done about a pod.
#[derive(Debug, Error)]
pub enum HostPodError {
    /// Its cgroup has no programs.
    #[error(
        "its cgroup {path} is one of version 1, and programs that stop packets can be only on those of version 2; boot the node with systemd.unified_cgroup_hierarchy=1, or drain and power off"
    )]
    OldHierarchy {
        /// Its cgroup.
        path: String,
    },
    /// It cannot be told which cgroup is the pod's.
    #[error("two cgroups have its UID, {one} and {other}; remove the one that is not the pod's")]
    Several {
        /// One of them.
        one: String,
        /// Another.
        other: String,
    },
    /// Something that every process has could not be had.
    #[error("cannot find the node's network namespace")]
    Netns(#[source] io::Error),
    /// The kernel could not be asked.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
    /// The marks could not be read, or somebody else is at work.
    #[error(transparent)]
    State(#[from] StateError),
}

/// The node, as far as it has pods in its own network namespace. Read once, for one look at some of them.
#[derive(Debug)]
pub struct HostNode {
    netns_cookie: u64,
    netns: NetnsId,
    /// Not before somebody asks: a node with a thousand pods has thousands of mounts to read through.
    tree: OnceCell<Option<CgroupTree>>,
    /// Those of version 2, whosever netns their processes are in.
    pods: OnceCell<BTreeMap<PodUid, Vec<HostPod>>>,
    /// Those of version 1.
    old_pods: OnceCell<BTreeMap<PodUid, Vec<PathBuf>>>,
    names: OnceCell<Vec<(Key, PodUid)>>,
    /// The names of what has a record.
    recorded: OnceCell<BTreeSet<Key>>,
}

impl HostNode {
    /// Looks at it. The calling thread is in the node's network namespace.
    ///
    /// # Errors
    /// [`HostPodError`].
    pub fn look() -> Result<Self, HostPodError> {
        Ok(Self {
            netns_cookie: Links::open()?.netns_cookie(),
            netns: processes::own_netns().map_err(HostPodError::Netns)?,
            tree: OnceCell::new(),
            pods: OnceCell::new(),
            old_pods: OnceCell::new(),
            names: OnceCell::new(),
            recorded: OnceCell::new(),
        })
    }

    fn tree(&self) -> Option<&CgroupTree> {
        self.tree.get_or_init(CgroupTree::find).as_ref()
    }

    fn pods(&self) -> &BTreeMap<PodUid, Vec<HostPod>> {
        self.pods.get_or_init(|| {
            let Some(tree) = self.tree() else { return BTreeMap::new() };
            let pod = |uid: &PodUid, directory: Directory| {
                Some(HostPod { uid: uid.clone(), cgroup: tree.cgroup(&directory)?, directory: directory.path })
            };
            let pods = cgroups::pods_in(tree.root()).into_iter();
            let with_cgroups = pods.map(|(uid, found)| {
                let found = found.into_iter().filter_map(|directory| pod(&uid, directory)).collect();
                (uid, found)
            });
            with_cgroups.collect()
        })
    }

    /// The pod of this UID, where it has a process in the node's network namespace; or it has programs, and no process now: one whose
    /// containers are just started anew.
    ///
    /// # Errors
    /// [`HostPodError`].
    pub fn find(&self, uid: &PodUid) -> Result<Option<HostPod>, HostPodError> {
        let is_here = |pod: &&HostPod| processes::has_thread_in(&pod.directory, self.netns);
        let mut here = self.pods().get(uid).into_iter().flatten().filter(is_here);
        match (here.next(), here.next()) {
            (Some(one), Some(other)) => Err(HostPodError::Several {
                one: on_the_node(&one.directory).display().to_string(),
                other: on_the_node(&other.directory).display().to_string(),
            }),
            (Some(pod), None) => Ok(Some(pod.clone())),
            (None, _) if let Some(pod) = self.at_rest(uid) => Ok(Some(pod.clone())),
            (None, _) => match self.old_cgroup(uid) {
                Some(path) => Err(HostPodError::OldHierarchy { path: on_the_node(&path).display().to_string() }),
                None => Ok(None),
            },
        }
    }

    /// A pod that has programs and no process.
    fn at_rest(&self, uid: &PodUid) -> Option<&HostPod> {
        let [pod] = &self.pods().get(uid)?[..] else { return None };
        let rests = self.pins(uid).exist() && processes_of(&pod.directory).is_ok_and(|found| found.is_empty());
        rests.then_some(pod)
    }

    /// Its cgroup of version 1, where it has only such.
    fn old_cgroup(&self, uid: &PodUid) -> Option<PathBuf> {
        let cgroups = self.old_pods().get(uid)?;
        cgroups.iter().find(|path| processes::has_thread_in(path, self.netns)).cloned()
    }

    /// The cgroups of version 1 of pods, in all hierarchies.
    fn old_pods(&self) -> &BTreeMap<PodUid, Vec<PathBuf>> {
        self.old_pods.get_or_init(|| {
            let mut pods: BTreeMap<PodUid, Vec<PathBuf>> = BTreeMap::new();
            for (uid, cgroups) in old_hierarchies().iter().flat_map(|hierarchy| cgroups::pods_in(hierarchy)) {
                pods.entry(uid).or_default().extend(cgroups.into_iter().map(|cgroup| cgroup.path));
            }
            pods
        })
    }

    /// The inode of the node's network namespace.
    #[must_use]
    pub fn netns_inode(&self) -> u64 {
        self.netns.1
    }

    /// Whether it still has a cgroup, with processes or without.
    fn has_cgroup(&self, uid: &PodUid) -> bool {
        self.pods().contains_key(uid)
    }

    /// The pods that have programs, as pins say.
    #[must_use]
    pub fn standing(&self) -> Vec<PodUid> {
        programs::standing(self.netns_cookie)
    }

    /// What is known of a pod by its UID: its name, where the kubelet's directories of logs say it.
    #[must_use]
    pub fn pod(&self, uid: &PodUid) -> Pod {
        let name = self.names().iter().find(|(_, named)| named == uid).and_then(|(name, _)| {
            let (namespace, name) = name.as_str().split_once('_')?;
            Some((PodName::new(namespace).ok()?, PodName::new(name).ok()?))
        });
        let (namespace, name) = name.unzip();
        Pod { namespace, name, uid: Some(uid.clone()) }
    }

    fn names(&self) -> &[(Key, PodUid)] {
        self.names.get_or_init(cgroups::names)
    }

    /// The UIDs of pods on the node that a mark of this name means.
    #[must_use]
    pub fn meant_by(&self, key: &Key) -> Vec<PodUid> {
        let by_uid = PodUid::new(key.as_str()).ok().filter(|uid| self.is_here(uid));
        // No UID has an underscore, and every name.
        let by_name = if key.as_str().contains('_') { self.names() } else { &[] };
        let by_name = by_name.iter().filter(|(name, uid)| name == key && self.is_here(uid)).map(|(_, uid)| uid.clone());
        by_uid.into_iter().chain(by_name).collect()
    }

    fn is_here(&self, uid: &PodUid) -> bool {
        self.has_cgroup(uid) || self.old_cgroup(uid).is_some() || self.pins(uid).exist()
    }

    fn pins(&self, uid: &PodUid) -> Pins {
        programs::pins_of(self.netns_cookie, uid)
    }

    /// How probes for a pod are told: by the cgroup that the policy names, else by the kubelet's, unless the pod is in that.
    fn prober(&self, pod: &HostPod, policy: &Policy) -> Option<Told> {
        let Probes::On { prober, .. } = &policy.probes else { return None };
        let cgroup = cgroup_of(prober);
        let told = match &cgroup {
            Err(why) => Err(why.to_string()),
            Ok(cgroup) if pod.cgroup.path.is_within(&cgroup.path) => {
                Err(format!("the pod is in the cgroup {}", cgroup.path))
            }
            Ok(cgroup) => Ok(in_cgroup(cgroup)),
        };
        Some(Told { seen: ProberSeen { prober: prober.clone(), cgroup: cgroup.ok() }, told })
    }

    /// Reads back how a pod is, that a policy isolates.
    #[must_use]
    pub fn verify(&self, pod: &HostPod, policy: &Policy) -> HostReport {
        let told = self.prober(pod, policy);
        let programs = Programs::of(self.netns_cookie, pod, policy, told.as_ref().and_then(Told::sender));
        self.report(pod, told, &programs, [None, None])
    }

    /// `refused` says what could not be attached just now.
    fn report(
        &self,
        pod: &HostPod,
        told: Option<Told>,
        programs: &Programs<'_>,
        refused: [Option<ProgramFault>; 2],
    ) -> HostReport {
        let mut standing = programs.read();
        for (standing, refused) in standing.iter_mut().zip(refused) {
            if let Some(fault) = refused {
                *standing = Program::Faulty(fault);
            }
        }
        let layer = standing.iter().all(|program| *program == Program::Holds);
        let mut doubts = processes::doubts(&pod.directory, self.netns);
        doubts.extend(cgroups::leaves_sockets_outside().then_some(HostDoubt::OldCgroups));
        let (verdict, reasons) = Found { programs: standing, doubts }.judge();
        let untold = told.as_ref().and_then(|told| told.told.clone().err());
        let notes = untold
            .map(|why| Note::NoProber { why })
            .into_iter()
            .chain([Note::LocalSockets, Note::PacketsNotKept])
            .collect();
        let prober = told.map(|told| told.seen);
        HostReport { verdict, reasons, layer, notes, prober, sets: programs.sets().to_vec() }
    }

    /// What a policy would let through of a pod, as rules.
    #[must_use]
    pub fn rules(&self, pod: &HostPod, policy: &Policy) -> Table {
        let HostPodChains { inbound, outbound, sets } =
            host_pod_chains(policy, self.prober(pod, policy).is_some_and(|told| told.told.is_ok()));
        let (family, name) = (Family::Inet, pod.uid.to_string());
        let chains = vec![inbound, outbound];
        let mut table = Table { family, name, dormant: false, sets, branches: Vec::new(), chains };
        table.keep_used_sets();
        table
    }

    /// Packets and bytes that the programs of a pod have dropped.
    #[must_use]
    pub fn drops(&self, uid: &PodUid) -> Vec<(Way, u64, u64)> {
        let pins = self.pins(uid);
        let drops = |way| programs::drops(&pins, way).map(|(packets, bytes)| (way, packets, bytes));
        [Way::In, Way::Out].into_iter().filter_map(drops).collect()
    }

    /// What the programs of a pod have put into a set: the fields of each key, and how often.
    #[must_use]
    pub fn elements(&self, uid: &PodUid, set: &Set) -> Vec<(Vec<Vec<u8>>, u64)> {
        programs::elements(&self.pins(uid), set)
    }

    /// Where pods of the node appear: directories to be watched.
    #[must_use]
    pub fn watched(&self) -> Vec<PathBuf> {
        let hierarchy = self.tree().map(CgroupTree::root);
        let roots = hierarchy.map(cgroups::roots_of_pods).unwrap_or_default();
        let classes: Vec<_> = roots.iter().flat_map(|root| cgroups::classes_of_pods(root)).collect();
        hierarchy.map(Path::to_owned).into_iter().chain(roots).chain(classes).collect()
    }
}

/// How a pod was found, read back from the kernel.
#[derive(Debug, Clone)]
pub struct HostReport {
    /// What may be claimed.
    pub verdict: Verdict,
    /// Why it is not `contained`.
    pub reasons: Vec<HostDoubt>,
    /// Whether both programs are in place.
    pub layer: bool,
    /// What else is to be known.
    pub notes: Vec<Note>,
    /// Who probes were told by; `None` where the policy lets none through.
    pub prober: Option<ProberSeen>,
    /// The sets that the programs use.
    pub sets: Vec<Set>,
}

/// How probes are told.
struct Told {
    seen: ProberSeen,
    /// Else why none are.
    told: Result<Sender, String>,
}

impl Told {
    fn sender(&self) -> Option<Sender> {
        self.told.clone().ok()
    }
}
