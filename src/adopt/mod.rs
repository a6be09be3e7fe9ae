//! Pods that were made without the plugin get their records from libcni's cache, or from what their runtime says of those that
//! are not in it, checked against the kernel.
//!
//! What an ADD reads in a pod that nobody has run in yet cannot be read in one that ran for long: root in it may have changed
//! all of it. So interfaces, addresses and routes are those that cache or runtime say, and the kernel is asked for one thing only:
//! which end on the host each interface has, from both sides.

mod cache;
mod cri;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

pub use cache::Cached;
pub use watch::keep_adopting;
#[cfg(any(test, fuzzing))]
pub use {cache::try_any, cri::try_any as try_any_cri};

use crate::kernel::netlink::NetlinkError;
use crate::kernel::netns::{Netns, NetnsError};
use crate::kernel::rtnetlink::Link;
use crate::model::audit::{Line, chain};
use crate::model::names::{ContainerId, Key, NetworkName};
use crate::model::record::Record;
use crate::model::records::SandboxRecords;
use crate::node::enforce::{self, EnforceError};
use crate::node::files::{entries, read_regular};
use crate::node::sandbox::{Sandbox, SandboxError, Side, pin_said};
use crate::node::state::{StateDir, StateError};
use crate::plugin::config::Config;

/// How long is waited for whoever is at work on a sandbox.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// Longer files are no caches.
const FILE_MAX: u64 = 4 * 1024 * 1024;

/// Where a runtime keeps what is needed.
#[derive(Debug, Clone)]
pub struct Places {
    /// libcni's cache; its files are in `results/`.
    pub cache: PathBuf,
    /// The network configurations.
    pub conf: PathBuf,
    /// The sockets of runtimes that may be there.
    pub cri: Vec<PathBuf>,
}

impl Default for Places {
    fn default() -> Self {
        let cri = ["/run/containerd/containerd.sock", "/run/crio/crio.sock"];
        Self { cache: "/var/lib/cni".into(), conf: "/etc/cni/net.d".into(), cri: cri.map(PathBuf::from).into() }
    }
}

/// Why a pod could not be adopted.
#[derive(Debug, Error)]
pub enum AdoptError {
    /// The cache cannot be read.
    #[error("cannot read {path}")]
    Io {
        /// What.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others than root can write it.
    #[error("{path} can be written by others than root, who could say of pods what they like; nothing was adopted")]
    Unsound {
        /// The directory.
        path: String,
    },
    /// The netns cannot be used.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// It is the host's own.
    #[error("its network namespace is the host's own")]
    HostNetwork,
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The kernel could not be asked.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The kernel could not be asked.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
    /// Its marks could not be applied.
    #[error(transparent)]
    Enforce(#[from] EnforceError),
}

/// What became of one.
#[derive(Debug)]
pub enum Adoption {
    /// It has a record now.
    Adopted,
    /// It had one.
    Known,
}

/// What is known of the node's pods.
#[derive(Debug, Default)]
pub struct Known {
    /// Attachments.
    pub attachments: Vec<Cached>,
    /// What of it cannot be used, and why: files, runtimes, sandboxes.
    pub unusable: Vec<(String, String)>,
}

/// Reads the cache, and asks the runtimes for the pods that are not in it.
///
/// # Errors
/// [`AdoptError::Io`], [`AdoptError::Unsound`], of the cache.
pub fn known(places: &Places) -> Result<Known, AdoptError> {
    let mut known = cached(places)?;
    // A runtime without a configuration has no pods with a network.
    let Some(network) = default_network(places) else { return Ok(known) };
    let in_cache: BTreeSet<_> = known.attachments.iter().map(|cached| cached.id.container_id.clone()).collect();
    for socket in &places.cri {
        match cri::sandboxes(socket, &network, |container_id| in_cache.contains(container_id)) {
            Ok(said) => {
                known.attachments.extend(said.attachments);
                known.unusable.extend(said.unusable.into_iter().map(|(of, why)| (of.to_string(), why)));
            }
            Err(error) => known.unusable.push((socket.display().to_string(), chain(&error))),
        }
    }
    Ok(known)
}

/// A cache that is not there is empty.
fn cached(places: &Places) -> Result<Known, AdoptError> {
    let directory = places.cache.join("results");
    let failed = |source| AdoptError::Io { path: directory.display().to_string(), source };
    match fs::metadata(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Known::default()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if metadata.uid() != 0 || metadata.mode() & 0o022 != 0 => {
            return Err(AdoptError::Unsound { path: directory.display().to_string() });
        }
        Ok(_) => {}
    }
    let mut found = Known::default();
    let mut names = entries(&directory).map_err(failed)?;
    names.sort_unstable();
    for name in names {
        let path = directory.join(name);
        match read_regular(&path, FILE_MAX).map_err(|error| error.to_string()).and_then(|content| cache::read(&content))
        {
            // containerd has a network of its own for `lo`, out of which nothing leads.
            Ok(cached) if cached.id.ifname.as_bytes() == b"lo" => {}
            Ok(cached) => found.attachments.push(cached),
            Err(why) => found.unusable.push((path.display().to_string(), why)),
        }
    }
    Ok(found)
}

/// The plugin's entries in the network configurations, by network. Those that cannot be read are another's business.
#[must_use]
pub fn entries_of(places: &Places, state_dir: &Path) -> BTreeMap<NetworkName, Config> {
    let mut found = BTreeMap::new();
    for document in configurations(places, &[".conflist"]) {
        let network = name_of(&document);
        let plugins = document.get("plugins").and_then(Value::as_array);
        let entry = plugins.into_iter().flatten().find(|plugin| plugin["type"] == "quarantine");
        let config = entry.and_then(|entry| Config::read(entry).ok()).filter(|config| config.state_dir == state_dir);
        if let (Some(network), Some(config)) = (network, config) {
            found.entry(network).or_insert(config);
        }
    }
    found
}

/// The network that runtimes put pods into: that of the first configuration by name.
fn default_network(places: &Places) -> Option<NetworkName> {
    configurations(places, &[".conflist", ".conf", ".json"]).iter().find_map(name_of)
}

/// The network configurations with these endings, in the order of their names.
fn configurations(places: &Places, endings: &[&str]) -> Vec<Value> {
    let mut names = entries(&places.conf).unwrap_or_default();
    names.retain(|name| endings.iter().any(|ending| name.ends_with(ending)));
    names.sort_unstable();
    let read = |name| serde_json::from_slice(&read_regular(&places.conf.join(name), FILE_MAX).ok()?).ok();
    names.into_iter().filter_map(read).collect()
}

fn name_of(configuration: &Value) -> Option<NetworkName> {
    configuration.get("name").and_then(Value::as_str).and_then(|name| NetworkName::new(name).ok())
}

/// Gives an attachment its record, and the sandbox its sleeping rules, or those that its marks want.
///
/// # Errors
/// [`AdoptError`]; nothing is left of it then.
pub fn adopt(state: &StateDir, host: &mut Side, cached: &Cached, config: &Config) -> Result<Adoption, AdoptError> {
    let container_id = &cached.id.container_id;
    let netns = Netns::open(&cached.netns)?;
    if netns.id() == Netns::own()?.id() {
        return Err(AdoptError::HostNetwork);
    }
    let mut pod = Side::of(&netns)?;
    let cookie = pod.links.netns_cookie();
    let _lock = state.lock(container_id, LOCK_PATIENCE)?;
    let (own, others) = state.records_of(container_id).0.map_or((None, None), |records| records.split(&cached.id));
    if own.is_some_and(|own| own.netns_cookie == cookie) {
        return Ok(Adoption::Known);
    }
    let others = others.and_then(|records| records.of_netns(cookie));
    let record = Record {
        id: cached.id.clone(),
        network: cached.network.clone(),
        netns: cached.netns.clone(),
        netns_cookie: cookie,
        pod: cached.pod.clone(),
        policy: config.policy.clone(),
        host_guard: config.host_guard,
        capture: config.capture,
        ebpf: config.ebpf,
        interfaces: pin_said(host, &mut pod, &netns, &cached.interfaces)?,
        lacks_interface: false,
        adopted: true,
    };
    // As in ADD: the record first, then the marks.
    state.write_record(&record)?;
    let records = SandboxRecords::with(record, others);
    let mut sandbox = Sandbox::of_sides(host, pod, netns, &records);
    if let Err(error) = enforce::install(state, &mut sandbox, false) {
        let _ = state.remove_record(&cached.id);
        return Err(error.into());
    }
    log::info!("{}", line("adopted", cached));
    Ok(Adoption::Adopted)
}

fn line(event: &str, cached: &Cached) -> Line {
    Line::new(event)
        .with("container", &cached.id.container_id)
        .with("interface", &cached.id.ifname)
        .with("pod", &cached.pod)
        .with_some("uid", cached.pod.uid.as_ref())
        .with("network", &cached.network)
}

/// Adopts all of the node whose network has the plugin's entry, and says in the log what could not be.
pub fn adopt_all(state: &StateDir, places: &Places) {
    if let Err(error) = forget_ended(state).and_then(|()| adopt_by_entries(state, places)) {
        log::warn!("{}", Line::new("not-adopted").with("error", chain(&error)));
    }
}

fn adopt_by_entries(state: &StateDir, places: &Places) -> Result<(), AdoptError> {
    let mut entries = entries_of(places, state.path());
    entries.retain(|_, config| config.adopt);
    if entries.is_empty() {
        return Ok(());
    }
    let known = known(places)?;
    for (what, why) in &known.unusable {
        log::warn!("{}", Line::new("not-adopted").with("of", what).with("error", why));
    }
    let mut host = Side::own()?;
    for cached in &known.attachments {
        let Some(config) = entries.get(&cached.network) else { continue };
        match adopt(state, &mut host, cached, config) {
            // The cache outlives pods whose DEL never came.
            Ok(_) | Err(AdoptError::Netns(NetnsError::Open { .. } | NetnsError::NotOne { .. })) => {}
            Err(error) => log::warn!("{}", line("not-adopted", cached).with("error", chain(&error))),
        }
    }
    Ok(())
}

/// Removes the records of adopted pods that have ended: their runtime's DEL may know nothing of the plugin. One whose container
/// ID is a mark stays, by which the mark is known for its pod's.
fn forget_ended(state: &StateDir) -> Result<(), AdoptError> {
    let mut host = None;
    for container_id in state.sandboxes()? {
        let Some(records) = state.records_of(&container_id).0.filter(SandboxRecords::is_adopted) else { continue };
        let Ok(_lock) = state.lock(&container_id, LOCK_PATIENCE) else { continue };
        let host = match &mut host {
            Some(host) => host,
            None => host.insert(Side::own()?),
        };
        let has_ended = Sandbox::open(host, &records).is_err_and(|error| error.is_gone());
        if has_ended && state.read_mark(&Key::from(&container_id)).is_none() {
            for record in records.iter().filter(|record| record.adopted) {
                let _ = state.remove_record(&record.id);
            }
            log::info!("{}", Line::new("forgotten").with("container", &container_id).with("pod", records.pod()));
        }
    }
    Ok(())
}

/// A network namespace that an interface of the node leads to, and that no record answers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uncovered {
    /// The ends of its interfaces on the node.
    pub host_ends: Vec<String>,
    /// Which sandbox it is, as far as cache or runtime say: container ID and pod.
    pub cached: Option<(ContainerId, String)>,
    /// Where it is, as far as they say.
    pub netns: Option<String>,
}

/// The pods of the node without a record, by name; by the ends of their interfaces where the cache does not say who they are.
///
/// # Errors
/// [`AdoptError`].
pub fn uncovered_pods(state: &StateDir, places: &Places) -> Result<Vec<String>, AdoptError> {
    let records: Vec<_> = state.sandboxes()?.iter().filter_map(|id| state.records_of(id).0).collect();
    let found = uncovered(&mut Side::own()?, records.iter(), places)?;
    let name = |found: Uncovered| found.cached.map_or_else(|| found.host_ends.join("+"), |(_, pod)| pod);
    Ok(found.into_iter().map(name).collect())
}

/// The network namespaces of the node without a record.
///
/// # Errors
/// See [`NetlinkError`].
pub fn uncovered<'a>(
    host: &mut Side,
    records: impl Iterator<Item = &'a SandboxRecords>,
    places: &Places,
) -> Result<Vec<Uncovered>, NetlinkError> {
    let mut by_id: BTreeMap<i32, Uncovered> = BTreeMap::new();
    // What the node itself goes out by is no pod's: nodes can be containers, too.
    let routes = host.links.routes()?;
    let uplinks: Vec<u32> =
        routes.iter().filter(|(_, route)| route.destination.prefix() == 0).map(|(index, _)| *index).collect();
    let is_of_pod = |link: &Link| link.is_pair() && !uplinks.contains(&link.index);
    for link in host.links.all()?.into_iter().filter(is_of_pod) {
        let Some(netns) = link.other_netns else { continue };
        let nothing = || Uncovered { host_ends: Vec::new(), cached: None, netns: None };
        by_id.entry(netns).or_insert_with(nothing).host_ends.push(link.name.to_string());
    }
    for records in records {
        if let Ok(netns) = Netns::open(records.netns())
            && let Some(id) = host.links.id_of(&netns)?
        {
            by_id.remove(&id);
        }
    }
    if by_id.is_empty() {
        return Ok(Vec::new());
    }
    for cached in known(places).unwrap_or_default().attachments {
        if let Ok(netns) = Netns::open(&cached.netns)
            && let Some(found) = host.links.id_of(&netns)?.and_then(|id| by_id.get_mut(&id))
        {
            found.cached = Some((cached.id.container_id.clone(), cached.pod.to_string()));
            found.netns = Some(cached.netns.to_string());
        }
    }
    Ok(by_id.into_values().collect())
}
