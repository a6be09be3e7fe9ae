//! What is said of the sandboxes of a node: the data of `status` and `list`, and its JSON form, which scripts rely on.
//!
//! Pure. Who reads the kernel is `cli::status`; how it looks on a terminal is `table`.

mod table;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::model::mark::Mark;
use crate::model::names::{ContainerId, Key, NetnsPath, Pod, PodName, PodUid};
use crate::model::policy::Policy;
use crate::model::verdict::{Reason, Verdict};

pub use table::{Style, list_table, sandbox_text, status_table};

/// A sandbox and what its marks want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its container ID.
    pub container_id: ContainerId,
    /// Its pod.
    pub pod: Pod,
    /// Where its netns is; unknown where no record can be read.
    pub netns: Option<NetnsPath>,
    /// The marks that hold for it; none where it is to be released.
    pub marking: Option<Marking>,
}

/// The marks of a sandbox, taken together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marking {
    /// Their names, the most specific first.
    pub keys: Vec<Key>,
    /// What they let through.
    pub policy: Policy,
    /// The one that decided.
    pub mark: Mark,
    /// What is wrong with one that cannot be read, and seals.
    pub fault: Option<String>,
    /// When the first of them was written.
    pub since: Option<SystemTime>,
}

/// A mark that nothing on the node answers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnansweredMark {
    /// Its name.
    pub key: Key,
    /// What it says.
    pub mark: Mark,
    /// What is wrong with it, where it cannot be read.
    pub fault: Option<String>,
    /// When it was written.
    pub since: Option<SystemTime>,
}

/// A record that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: String,
}

/// A sandbox and how the kernel was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxStatus {
    /// What is wanted of it.
    pub listed: Listed,
    /// What it is.
    pub finding: Finding,
}

/// What a look at the kernel gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It was read.
    Read(Reading),
    /// Its netns does not exist any more; why that is known.
    Gone(String),
    /// It could not be read; why.
    Unknown(String),
}

/// What was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// What may be claimed.
    pub verdict: Verdict,
    /// Why it is not another one.
    pub reasons: Vec<Reason>,
    /// Whether the pod-side rules are in place.
    pub pod_layer: bool,
    /// Whether the host guard is.
    pub host_layer: bool,
    /// Whether the configuration requires the host guard.
    pub guard_required: bool,
    /// What each chain has dropped since its rules were written.
    pub drops: Vec<Drops>,
    /// What the pod tried to reach.
    pub attempts: Vec<Attempt>,
}

/// What one chain has dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drops {
    /// Which side it is on.
    pub layer: Layer,
    /// The pod's interface; none for the chains that are not of one.
    pub interface: Option<String>,
    /// Which way the packets went.
    pub direction: Direction,
    /// How many.
    pub packets: u64,
    /// How long together.
    pub bytes: u64,
}

/// Where rules are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// In the pod's netns.
    Pod,
    /// In the host's.
    Host,
}

/// Which way a packet goes, seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the pod.
    In,
    /// From the pod.
    Out,
    /// From one interface of the pod to another.
    Forward,
}

/// A destination that an isolated pod tried to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// How.
    pub protocol: AttemptProtocol,
    /// Where.
    pub address: IpAddr,
    /// On which port, where the protocol has ports.
    pub port: Option<u16>,
    /// How often.
    pub packets: u64,
}

/// What an attempt was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttemptProtocol {
    /// A question for a neighbour's Ethernet address.
    Arp,
    /// An IP protocol, by its number.
    Ip(u8),
}

impl SandboxStatus {
    /// Whether it is as its marks want it: enforced where there is one, released where there is none.
    #[must_use]
    pub fn is_as_marked(&self) -> bool {
        match (&self.finding, &self.listed.marking) {
            (Finding::Read(reading), Some(_)) => match reading.verdict {
                Verdict::Contained => true,
                Verdict::Partial => !reading.guard_required,
                Verdict::Open => false,
            },
            (Finding::Read(reading), None) => reading.verdict == Verdict::Open,
            (Finding::Gone(_), None) => true,
            (Finding::Gone(_), Some(_)) | (Finding::Unknown(_), _) => false,
        }
    }

    /// The verdict in one word.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        match &self.finding {
            Finding::Read(reading) => reading.verdict.as_str(),
            Finding::Gone(_) => "gone",
            Finding::Unknown(_) => "unknown",
        }
    }

    /// Why the verdict is not another one.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        match &self.finding {
            Finding::Read(reading) => reading.reasons.iter().map(ToString::to_string).collect(),
            Finding::Gone(why) | Finding::Unknown(why) => vec![why.clone()],
        }
    }

    /// The object that stands for it in JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut object = self.listed.to_object();
        let nothing = Reading {
            verdict: Verdict::Open,
            reasons: Vec::new(),
            pod_layer: false,
            host_layer: false,
            guard_required: false,
            drops: Vec::new(),
            attempts: Vec::new(),
        };
        let (reading, error) = match &self.finding {
            Finding::Read(reading) => (reading, None),
            Finding::Gone(_) => (&nothing, None),
            Finding::Unknown(error) => (&nothing, Some(error)),
        };
        let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
        put("verdict", json!(self.verdict()));
        put("reasons", json!(self.reasons()));
        let codes = reading.reasons.iter().map(|reason| json!({ "code": reason.code(), "text": reason.to_string() }));
        put("reasonCodes", codes.collect());
        put("layers", json!({ "pod": reading.pod_layer, "host": reading.host_layer }));
        put("drops", reading.drops.iter().map(Drops::to_json).collect());
        put("attempts", reading.attempts.iter().map(Attempt::to_json).collect());
        put("error", json!(error));
        Value::Object(object)
    }
}

impl Listed {
    /// The object that stands for it in the JSON of `list`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        Value::Object(self.to_object())
    }

    /// `isolated` or `released`, as the marks want it.
    #[must_use]
    pub fn state(&self) -> &'static str {
        if self.marking.is_some() { "isolated" } else { "released" }
    }

    fn to_object(&self) -> Map<String, Value> {
        let mut object = Map::new();
        let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
        put("containerID", json!(self.container_id.as_str()));
        put(
            "pod",
            json!({
                "namespace": self.pod.namespace.as_ref().map(PodName::as_str),
                "name": self.pod.name.as_ref().map(PodName::as_str),
                "uid": self.pod.uid.as_ref().map(PodUid::as_str),
            }),
        );
        put("netns", json!(self.netns.as_ref().map(ToString::to_string)));
        put("state", json!(self.state()));
        put("policy", json!(self.marking.as_ref().map(|marking| marking.policy.to_json())));
        put("mark", json!(self.marking.as_ref().map(Marking::to_json)));
        object
    }
}

impl Marking {
    fn to_json(&self) -> Value {
        let keys: Vec<_> = self.keys.iter().map(Key::as_str).collect();
        let mut object = Map::from_iter([("keys".to_owned(), json!(keys))]);
        object.extend(said_by(&self.mark, self.fault.as_ref(), self.since));
        Value::Object(object)
    }
}

impl UnansweredMark {
    /// The object that stands for it in JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut object = Map::from_iter([("key".to_owned(), json!(self.key.as_str()))]);
        object.extend(said_by(&self.mark, self.fault.as_ref(), self.since));
        Value::Object(object)
    }
}

fn said_by(mark: &Mark, fault: Option<&String>, since: Option<SystemTime>) -> Map<String, Value> {
    Map::from_iter([
        ("reason".to_owned(), json!(mark.reason)),
        ("case".to_owned(), json!(mark.case)),
        ("actor".to_owned(), json!(mark.actor)),
        ("since".to_owned(), json!(since.map(timestamp))),
        ("fault".to_owned(), json!(fault)),
    ])
}

impl Damaged {
    fn to_json(&self) -> Value {
        json!({ "path": self.path.to_string_lossy(), "fault": self.fault })
    }
}

impl Drops {
    fn to_json(&self) -> Value {
        json!({
            "layer": self.layer.as_str(),
            "interface": self.interface,
            "direction": self.direction.as_str(),
            "packets": self.packets,
            "bytes": self.bytes,
        })
    }
}

impl Attempt {
    fn to_json(&self) -> Value {
        json!({
            "protocol": self.protocol.to_string(),
            "address": self.address,
            "port": self.port,
            "packets": self.packets,
        })
    }
}

impl Layer {
    /// As JSON has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Host => "host",
        }
    }
}

impl Direction {
    /// As JSON has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
            Self::Forward => "forward",
        }
    }
}

impl std::fmt::Display for AttemptProtocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self::Ip(number) = self else { return f.write_str("arp") };
        match number {
            1 => f.write_str("icmp"),
            2 => f.write_str("igmp"),
            6 => f.write_str("tcp"),
            17 => f.write_str("udp"),
            33 => f.write_str("dccp"),
            41 => f.write_str("ipv6"),
            47 => f.write_str("gre"),
            50 => f.write_str("esp"),
            51 => f.write_str("ah"),
            58 => f.write_str("icmpv6"),
            132 => f.write_str("sctp"),
            136 => f.write_str("udplite"),
            number => write!(f, "{number}"),
        }
    }
}

/// Puts together what several sets have counted: each packet passes one set in each layer, so a destination that is
/// in several was tried as often as the largest count says. What the policy allows is no attempt. Most tried first.
#[must_use]
pub fn merge_attempts(counted: impl IntoIterator<Item = Attempt>, policy: &Policy) -> Vec<Attempt> {
    let mut merged: BTreeMap<(AttemptProtocol, IpAddr, Option<u16>), u64> = BTreeMap::new();
    for Attempt { protocol, address, port, packets } in counted {
        let count = merged.entry((protocol, address, port)).or_default();
        *count = packets.max(*count);
    }
    let mut attempts: Vec<_> = merged
        .into_iter()
        .filter(|((protocol, address, port), _)| match (protocol, port) {
            (AttemptProtocol::Ip(protocol), Some(port)) => !policy.allows_egress(*protocol, *address, *port),
            _ => true,
        })
        .map(|((protocol, address, port), packets)| Attempt { protocol, address, port, packets })
        .collect();
    attempts.sort_by_key(|attempt| std::cmp::Reverse(attempt.packets));
    attempts
}

/// All of a node, in JSON. `sandboxes` are the objects of sandboxes, of `status` or of `list`.
#[must_use]
pub fn node_to_json(sandboxes: Vec<Value>, unanswered: &[UnansweredMark], damaged: &[Damaged]) -> Value {
    json!({
        "sandboxes": sandboxes,
        "unanswered": unanswered.iter().map(UnansweredMark::to_json).collect::<Vec<_>>(),
        "damaged": damaged.iter().map(Damaged::to_json).collect::<Vec<_>>(),
    })
}

/// A time as RFC 3339 has it, in UTC, to the second.
#[must_use]
pub fn timestamp(time: SystemTime) -> String {
    let seconds = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
    };
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil_date(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// Year, month and day of a count of days since 1970-01-01, in the Gregorian calendar. Years are counted from March,
/// so that the day that comes and goes is the last one of a year.
fn civil_date(days: i64) -> (i64, i64, i64) {
    const DAYS_OF_400_YEARS: i64 = 146_097;
    // 0000-03-01 is 719468 days before 1970-01-01.
    let since_march = days + 719_468;
    let (cycle, day_of_cycle) = (since_march.div_euclid(DAYS_OF_400_YEARS), since_march.rem_euclid(DAYS_OF_400_YEARS));
    let leap_days = day_of_cycle / 1_460 - day_of_cycle / 36_524 + day_of_cycle / 146_096;
    let year_of_cycle = (day_of_cycle - leap_days) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    // From March on the months have 31, 30, 31, 30, 31 days again and again: 153 in five months.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = 400 * cycle + year_of_cycle + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests;
