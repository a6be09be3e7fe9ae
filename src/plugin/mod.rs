//! The plugin's face: the verbs of CNI over the state directory and one sandbox.
//!
//! Exactly one JSON document on standard output, or none; everything else goes to the log. What a verb may fail for,
//! and with which code, is decided here; what isolating means is decided in `sandbox`.

pub mod cni;
pub mod config;
mod document;

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use self::cni::{Call, Code, Failure, Network, Target, VERSIONS, versions};
use self::document::read_document;
use crate::kernel::netns::{Netns, NetnsError};
use crate::model::audit::{Line, chain};
use crate::model::difference::joined;
use crate::model::names::{AttachmentId, ContainerId, IfName, NetnsPath, Pod};
use crate::model::record::Record;
use crate::model::records::SandboxRecords;
use crate::model::verdict::Verdict;
use crate::node::enforce::{self, EnforceError, Enforced, sentences};
use crate::node::logging;
use crate::node::sandbox::{
    Before, Sandbox, SandboxError, Scan, Side, pin_interfaces, remove_guard, remove_guards_of_nothing,
    remove_stale_guards,
};
use crate::node::state::{StateDir, StateError};
use crate::rules::containment::TABLE;
use crate::rules::ruleset::Family;
use config::Config;

use crate::model::record::HostGuard;

/// How long VERSION waits for a configuration that says which version to answer in.
const VERSION_PATIENCE: Duration = Duration::from_millis(100);

/// How long a verb waits for whoever is at work on its sandbox. Runtimes give a plugin a minute or more.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Few configurations are longer, and what is not used of it is not touched.
const INPUT_EXPECTED: usize = 64 * 1024;

/// What to write to standard output, and whether the call succeeded.
#[derive(Debug)]
pub struct Answer {
    /// The one JSON document, where there is one.
    pub document: Option<Value>,
    /// Whether the verb did what it is for.
    pub succeeded: bool,
}

/// What a call without CNI_COMMAND is told.
#[must_use]
pub fn about() -> String {
    format!(
        "quarantine {}: a chained CNI plugin that cuts a compromised pod off the network\nCNI protocol versions supported: {}",
        env!("CARGO_PKG_VERSION"),
        VERSIONS.join(", ")
    )
}

/// Serves one call.
pub fn serve(environment: impl Fn(&str) -> Option<OsString>, input: &mut (impl Read + AsFd)) -> Answer {
    let mut version = None;
    match serve_call(environment, input, &mut version) {
        Ok(document) => Answer { document, succeeded: true },
        Err(failure) => {
            log::warn!("{}", Line::new("failed").with("code", failure.code as u32).with("error", &failure.message));
            Answer { document: Some(failure.to_json(version.as_deref())), succeeded: false }
        }
    }
}

/// Writes the answer; a result that could not be written is no success.
///
/// # Errors
/// When standard output is closed or full.
pub fn write_answer(answer: &Answer, output: &mut impl Write) -> io::Result<()> {
    if let Some(document) = &answer.document {
        serde_json::to_writer(&mut *output, document)?;
        output.write_all(b"\n")?;
    }
    output.flush()
}

fn serve_call(
    environment: impl Fn(&str) -> Option<OsString>,
    input: &mut (impl Read + AsFd),
    version: &mut Option<String>,
) -> Result<Option<Value>, Failure> {
    let call = Call::from_environment(environment)?;
    if call == Call::Version {
        return Ok(Some(versions(version_asked_in(input).as_deref())));
    }
    let mut bytes = Vec::with_capacity(INPUT_EXPECTED);
    input.read_to_end(&mut bytes).map_err(|error| {
        Failure::new(Code::Io, format!("cannot read the network configuration from standard input: {error}"))
    })?;
    let document = read_document(&bytes, &call);
    *version = document.as_ref().ok().and_then(|document| said_version(&document.value));
    let mut network = Network::of_document(document, &call)?;
    let mut checked = || {
        Config::of_document(&mut network.document).map_err(|error| Failure::new(Code::InvalidConfig, error.to_string()))
    };
    match &call {
        Call::Add(target) => {
            let config = checked()?;
            logging::start(config.log);
            add(config, &network, target).map(Some)
        }
        Call::Check(target) => {
            let config = checked()?;
            logging::start(config.log);
            check(&config, &network, target).map(|()| None)
        }
        Call::Status => {
            let config = checked()?;
            logging::start(config.log);
            status(&config).map(|()| None)
        }
        Call::Del { attachment, netns, pod } => {
            let config = Config::read_what_is_sound(&network.document.value);
            logging::start(config.log);
            del(&config, attachment, netns.as_ref(), pod).map(|()| None)
        }
        Call::Gc => {
            let config = Config::read_what_is_sound(&network.document.value);
            logging::start(config.log);
            gc(&config, &network).map(|()| None)
        }
        Call::DelOfNothing | Call::Version => Ok(None),
    }
}

/// The version that a configuration says, however broken the rest of it is.
fn said_version(document: &Value) -> Option<String> {
    document.get("cniVersion")?.as_str().filter(|version| !version.is_empty()).map(str::to_owned)
}

/// Reads the configuration for VERSION without waiting for the end of an input that has none.
fn version_asked_in(input: &mut (impl Read + AsFd)) -> Option<String> {
    let deadline = Instant::now() + VERSION_PATIENCE;
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        let left = u16::try_from(deadline.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(0);
        let mut waiting = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waiting, PollTimeout::from(left)).ok()? == 0 {
            return None;
        }
        match input.read(&mut part).ok()? {
            0 => return said_version(&serde_json::from_slice(&bytes).ok()?),
            read => bytes.extend_from_slice(&part[..read]),
        }
        if let Some(version) = serde_json::from_slice(&bytes).ok().as_ref().and_then(said_version) {
            return Some(version);
        }
    }
}

fn add(config: Config, network: &Network, target: &Target) -> Result<Value, Failure> {
    let previous = network.previous_result()?;
    let netns = open_netns(target)?;
    let mut host = Side::own().map_err(|error| failure(Code::Kernel, &error))?;
    let mut pod = Side::of(&netns).map_err(|error| failure(Code::Kernel, &error))?;
    let state = StateDir::open_or_create(&config.state_dir).map_err(|error| failure(Code::State, &error))?;
    let container_id = &target.attachment.container_id;
    let _lock = state.lock(container_id, LOCK_PATIENCE).map_err(|error| lock_failure(&error))?;

    let cookie = pod.links.netns_cookie();
    // Those of a netns that is gone speak of other interfaces.
    let (repeated, earlier) =
        state.records_of(container_id).0.map_or((None, None), |records| records.split(&target.attachment));
    let earlier = earlier.and_then(|records| records.of_netns(cookie));
    let repeated = repeated.filter(|record| record.netns_cookie == cookie);
    let interfaces = pin_interfaces(
        &mut host,
        &mut pod,
        &netns,
        |name| previous.addresses_of(name).collect(),
        earlier.as_ref(),
        repeated.as_ref().map_or(&[], |record| &record.interfaces),
    )
    .map_err(|error| failure(Code::Kernel, &error))?;
    let ends: Vec<_> = interfaces.iter().filter_map(|pinned| pinned.host_end.as_ref()?.name.as_ref()).collect();
    remove_stale_guards(&mut host, container_id, &ends, |host, other| is_gone(&state, host, other))
        .or_else(|error| if error.is_without_subsystem() { Ok(()) } else { Err(error) })
        .map_err(|error| failure(Code::Kernel, &error))?;
    let found = earlier.iter().flat_map(SandboxRecords::pinned_interfaces).chain(&interfaces);
    let own = &target.attachment.ifname;
    let lacks_interface = *own != IfName::lo() && !found.map(|pinned| &pinned.interface.name).any(|name| name == own);
    let record = Record {
        id: target.attachment.clone(),
        network: network.name.clone(),
        netns: target.netns.clone(),
        netns_cookie: cookie,
        pod: target.pod.clone(),
        policy: config.policy,
        host_guard: config.host_guard,
        capture: config.capture,
        ebpf: config.ebpf,
        interfaces,
        lacks_interface,
        adopted: false,
    };
    let is_first = earlier.is_none() && repeated.is_none();
    // The record first, then the marks: an operator's mark is seen here, or the record is seen by whoever handles the
    // mark.
    state.write_record(&record).map_err(|error| failure(Code::State, &error))?;
    let records = SandboxRecords::with(record, earlier);
    let mut sandbox = Sandbox::of_sides(&mut host, pod, netns, &records);
    match enforce::install(&state, &mut sandbox, is_first) {
        Ok(()) => Ok(previous.into_result(network.version)),
        Err(error) => {
            // What this call did, and no more: an earlier ADD of the same attachment still stands.
            let _ = match &repeated {
                Some(before) => state.write_record(before),
                None => state.remove_record(&target.attachment),
            };
            if is_first {
                let _ = sandbox.clear();
            }
            Err(enforcement_failure(&error))
        }
    }
}

/// Whether a sandbox has no record, or one whose netns is gone. In doubt it has one that lives.
fn is_gone(state: &StateDir, host: &mut Side, container_id: &ContainerId) -> bool {
    match state.records_of(container_id).0 {
        Some(records) => Sandbox::open(host, &records).is_err_and(|error| error.is_gone()),
        None => state.sandboxes().is_ok_and(|recorded| !recorded.contains(container_id)),
    }
}

/// First applies, by the record alone, and then compares: whatever else is wrong with the call, a sandbox that is marked
/// is isolated when it ends.
fn check(config: &Config, network: &Network, target: &Target) -> Result<(), Failure> {
    let state = StateDir::open(&config.state_dir).map_err(|error| failure(Code::State, &error))?;
    let container_id = &target.attachment.container_id;
    let mut host = Side::own().map_err(|error| failure(Code::Kernel, &error))?;
    let _lock = state.lock(container_id, LOCK_PATIENCE).map_err(|error| lock_failure(&error))?;
    let (records, _) = state.records_of(container_id);
    let applied = records.as_ref().map(|records| {
        let mut sandbox = Sandbox::open(&mut host, records)?;
        enforce::check(&state, &mut sandbox)
    });

    let netns = open_netns(target)?;
    let previous = network.previous_result()?;
    let altered = |message: String| Failure::new(Code::Altered, message);
    let recorded = records.as_ref().and_then(|records| records.of(&target.attachment));
    let (Some(record), Some(applied)) = (recorded, applied) else {
        let ifname = &target.attachment.ifname;
        return Err(altered(format!("{container_id} {ifname} has no attachment record: it was not added")));
    };
    let mut pod = Side::of(&netns).map_err(|error| failure(Code::Kernel, &error))?;
    if record.netns_cookie != pod.links.netns_cookie() {
        return Err(altered(format!("{} is not the network namespace that {container_id} was added in", target.netns)));
    }
    let Enforced { desired, report, .. } = applied.map_err(|error| enforcement_failure(&error))?;
    let links = pod.links.all().map_err(|error| failure(Code::Kernel, &error))?;
    for (name, sandbox) in previous.sandbox_interfaces() {
        let is_here = std::path::Path::new(sandbox) == target.netns.as_path();
        if is_here && !links.iter().any(|link| link.name == name) {
            return Err(altered(format!("interface {name} of prevResult is gone from {}", target.netns)));
        }
    }
    if !desired.is_isolated() {
        return match report.differences.first() {
            None => Ok(()),
            Some(_) => Err(altered(format!(
                "the rules of {container_id} are not as they were made: {}",
                joined(&report.differences)
            ))),
        };
    }
    let strict = config.host_guard == HostGuard::Require;
    match report.verdict {
        Verdict::Contained => Ok(()),
        Verdict::Partial if !strict => Ok(()),
        verdict => Err(altered(format!(
            "{container_id} is marked isolated and is {}: {}",
            verdict.as_str(),
            sentences(&report.reasons)
        ))),
    }
}

fn del(config: &Config, attachment: &AttachmentId, netns: Option<&NetnsPath>, pod: &Pod) -> Result<(), Failure> {
    let state = match StateDir::open(&config.state_dir) {
        Ok(state) => state,
        // Nothing was ever added here, or all was lost.
        Err(StateError::Absent { .. } | StateError::NotADirectory { .. }) => return Ok(()),
        Err(error) => return Err(failure(Code::Io, &error)),
    };
    let _lock = state.lock(&attachment.container_id, LOCK_PATIENCE).map_err(|error| failure(Code::Io, &error))?;
    let records = state.records_of(&attachment.container_id).0;
    let said = netns.and_then(|path| Netns::open(path).ok()).and_then(|netns| Some((Side::of(&netns).ok()?, netns)));
    // A DEL that says a netns that is there and is not the one of the records speaks of another sandbox.
    if let (Some(records), Some((said, _))) = (&records, &said)
        && said.links.netns_cookie() != records.netns_cookie()
        && must_stay(&state, records).map_err(|error| failure(Code::Io, &*error))?
    {
        log::warn!(
            "{}",
            Line::new("kept").with("container", records.container_id()).with("because", "DEL of another netns")
        );
        return Ok(());
    }
    detach(&state, attachment, pod, records, said).map_err(|error| failure(Code::Io, &*error))
}

/// Whether a sandbox is isolated and lives: then only its runtime's own DEL, or a release, takes anything away from it.
fn must_stay(state: &StateDir, records: &SandboxRecords) -> Result<bool, Box<dyn Error>> {
    let mut host = match Side::own() {
        Err(error) if error.is_without_subsystem() => return Ok(false),
        host => host?,
    };
    let is_marked = !state.marks_of(records.container_id(), records.pod())?.is_empty();
    match Sandbox::open(&mut host, records) {
        Ok(mut sandbox) => Ok(is_marked || sandbox.is_isolated_in_part()?),
        Err(error) if error.is_gone() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Takes an attachment out of the state directory; its sandbox's rules with the last one. `records` are those of the sandbox, and
/// `open` is a netns that is open already: the sandbox's, unless its cookie is another.
fn detach(
    state: &StateDir,
    attachment: &AttachmentId,
    said: &Pod,
    records: Option<SandboxRecords>,
    open: Option<(Side, Netns)>,
) -> Result<(), Box<dyn Error>> {
    let container_id = &attachment.container_id;
    let (own, others) = records.map_or((None, None), |records| records.split(attachment));
    let leaving = own.as_ref().map(|record| record.interfaces.clone()).unwrap_or_default();
    let own = own.map(|record| SandboxRecords::with(record, None));
    let pod = own.as_ref().map_or(said, SandboxRecords::pod);
    let isolated = !state.marks_of(container_id, pod)?.is_empty();
    // A kernel without nf_tables has no rules of ours.
    let mut host = match Side::own().and_then(|mut host| host.nft.has_table(Family::Netdev, TABLE).map(|_| host)) {
        Ok(host) => Some(host),
        Err(error) if error.is_without_subsystem() => None,
        Err(error) => return Err(error.into()),
    };
    let Some(others) = others else {
        if isolated {
            // Before the record goes: without either, the mark would hold for nothing.
            if let Some(key) = pod.lasting_key()
                && state.carry_mark_over(container_id, &key)?
            {
                let line = Line::new("carried-over").with("container", container_id);
                let line = if pod.uid.is_some() { line.with("uid", key) } else { line.with("name", key) };
                log::info!("{line}");
            }
        }
        // The pod-side rules of an isolated sandbox go with its netns: clearing them would open a gap.
        if let (Some(own), Some(host)) = (&own, &mut host)
            && !isolated
        {
            let cookie = own.netns_cookie();
            let open = open.filter(|(side, _)| cookie != 0 && cookie == side.links.netns_cookie());
            let sandbox = match open {
                Some((side, netns)) => Ok(Sandbox::of_sides(host, side, netns, own)),
                None => Sandbox::open(host, own),
            };
            match sandbox {
                Ok(mut sandbox) => {
                    sandbox.clear()?;
                }
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(host) = &mut host {
            remove_guard(host, container_id)?;
        }
        state.remove_record(attachment)?;
        return Ok(());
    };
    state.remove_record(attachment)?;
    let Some(mut host) = host else { return Ok(()) };
    match enforce::apply(state, &mut host, &others.with_leaving(leaving), Before::Unknown, Scan::Sandbox) {
        Err(EnforceError::Sandbox(error)) if error.is_gone() => Ok(()),
        result => result.map(drop).map_err(Into::into),
    }
}

fn gc(config: &Config, network: &Network) -> Result<(), Failure> {
    let Some(valid) = network.valid_attachments()? else { return Ok(()) };
    let state = match StateDir::open(&config.state_dir) {
        Ok(state) => state,
        Err(StateError::Absent { .. } | StateError::NotADirectory { .. }) => return Ok(()),
        Err(error) => return Err(failure(Code::State, &error)),
    };
    let sandboxes = state.sandboxes().map_err(|error| failure(Code::State, &error))?;
    let mut failures = Vec::new();
    for container_id in sandboxes {
        if let Err(error) = collect(&state, &container_id, network, &valid) {
            failures.push(format!("{container_id}: {}", chain(&*error)));
        }
    }
    state.tidy_index();
    // After the records: what is added meanwhile has its own by now.
    let recorded = state.sandboxes().map_err(|error| failure(Code::State, &error))?;
    let cleaned = Side::own()
        .and_then(|mut host| remove_guards_of_nothing(&mut host, |container_id| recorded.contains(container_id)));
    if let Err(error) = cleaned {
        failures.push(chain(&error));
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::new(Code::State, failures.join("; "))) }
}

fn collect(
    state: &StateDir,
    container_id: &ContainerId,
    network: &Network,
    valid: &[AttachmentId],
) -> Result<(), Box<dyn Error>> {
    let _lock = state.lock(container_id, LOCK_PATIENCE)?;
    let Some(records) = state.records_of(container_id).0 else { return Ok(()) };
    let invalid: Vec<_> =
        records.iter().filter(|record| record.network == network.name && !valid.contains(&record.id)).collect();
    // Runtimes have sent lists that lacked pods which were running.
    if !invalid.is_empty() && must_stay(state, &records)? {
        log::warn!(
            "{}",
            Line::new("kept").with("container", container_id).with("because", "GC of a sandbox that lives")
        );
        return Ok(());
    }
    for record in invalid {
        detach(state, &record.id, &record.pod, state.records_of(container_id).0, None)?;
    }
    Ok(())
}

fn status(config: &Config) -> Result<(), Failure> {
    match StateDir::open(&config.state_dir) {
        // ADD makes it.
        Ok(_) | Err(StateError::Absent { .. }) => {}
        Err(error) => return Err(failure(Code::NotAvailable, &error)),
    }
    let asked = Side::own().and_then(|mut host| host.nft.has_table(Family::Netdev, TABLE));
    asked.map(drop).map_err(|error| failure(Code::NotAvailable, &error))
}

fn open_netns(target: &Target) -> Result<Netns, Failure> {
    let invalid = |error: NetnsError| failure(Code::InvalidNetns, &error);
    let netns = Netns::open(&target.netns).map_err(invalid)?;
    if netns.id() == Netns::own().map_err(invalid)?.id() && !target.own_netns_allowed {
        let message = format!("CNI_NETNS {} is the plugin's own network namespace, the host's: refused", target.netns);
        return Err(Failure::new(Code::InvalidNetns, message));
    }
    Ok(netns)
}

fn enforcement_failure(error: &EnforceError) -> Failure {
    let code = match error {
        EnforceError::State(_) => Code::State,
        EnforceError::Sandbox(SandboxError::NoHostPeer { .. }) => Code::NoHostPeer,
        EnforceError::Sandbox(SandboxError::Netns(_) | SandboxError::Replaced { .. }) => Code::InvalidNetns,
        EnforceError::Sandbox(SandboxError::Kernel(_) | SandboxError::Unknown { .. }) => Code::Kernel,
    };
    failure(code, error)
}

fn lock_failure(error: &StateError) -> Failure {
    failure(if matches!(error, StateError::Busy { .. }) { Code::TryAgain } else { Code::State }, error)
}

fn failure(code: Code, error: &(dyn Error + 'static)) -> Failure {
    Failure::new(code, chain(error))
}
