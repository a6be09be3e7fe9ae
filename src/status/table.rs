//! The same for people: a table of the node, and a page for one sandbox.
//!
//! Pure: colour or not is told, and everything that somebody else wrote is made printable first.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::model::fault::Fault;
use crate::model::verdict::Verdict;

use super::{
    AskedFor, Attempt, Damaged, Direction, Drops, Finding, HostFinding, HostPodStatus, Marking, Reading, SandboxEntry,
    SandboxStatus, UnansweredMark, dropped, timestamp,
};

/// The least that is shown of a container ID.
const SHORT_ID: usize = 12;
/// The most lines of attempts on a sandbox's page.
const ATTEMPTS_SHOWN: usize = 20;
/// The most names beside one of them.
const NAMES_SHOWN: usize = 3;

const NOT_REACHED: &str = "\nPods with hostNetwork have no record: one that is marked is isolated once it runs, and shown then. Pods that started before the plugin was in the conflist cannot be reached until they are adopted.\n";

/// How it is to look.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// Whether verdicts are coloured.
    pub colour: bool,
}

#[derive(Clone, Copy)]
enum Colour {
    Green,
    Yellow,
    Red,
}

impl Style {
    fn paint(self, text: &str, colour: Option<Colour>) -> String {
        let Some(colour) = colour.filter(|_| self.colour) else { return text.to_owned() };
        let code = match colour {
            Colour::Green => 32,
            Colour::Yellow => 33,
            Colour::Red => 31,
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

type Cell = (String, Option<Colour>);

/// Rows of cells under a heading, each column as wide as its widest cell.
struct Rows {
    style: Style,
    rows: Vec<Vec<Cell>>,
}

impl Rows {
    fn new(style: Style, heading: &[&str]) -> Self {
        Self { style, rows: vec![heading.iter().map(|cell| plain(*cell)).collect()] }
    }

    fn push(&mut self, row: impl IntoIterator<Item = Cell>) {
        self.rows.push(row.into_iter().collect());
    }

    fn write(&self, text: &mut String) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|(cell, _)| cell.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            for (column, (cell, colour)) in row.iter().enumerate() {
                text.push_str(&self.style.paint(cell, *colour));
                if column + 1 < row.len() {
                    let gap = widths[column].saturating_sub(cell.chars().count()) + 2;
                    text.extend(std::iter::repeat_n(' ', gap));
                }
            }
            text.push('\n');
        }
    }
}

fn plain(text: impl Into<String>) -> Cell {
    (text.into(), None)
}

/// What somebody else wrote, without what moves a terminal's cursor or turns its text around.
fn printable(text: &str) -> String {
    let is_unseen = |c: char| {
        c.is_control()
            || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    text.chars().fold(String::with_capacity(text.len()), |mut printable, c| {
        if is_unseen(c) {
            printable.extend(c.escape_unicode());
        } else {
            printable.push(c);
        }
        printable
    })
}

fn or_dash(text: Option<impl AsRef<str>>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| printable(text.as_ref()))
}

/// Container IDs cut to a length at which they still differ.
fn short_ids<'a>(ids: impl Iterator<Item = &'a str> + Clone) -> Vec<&'a str> {
    let longest = ids.clone().map(str::len).max().unwrap_or_default();
    let cut = |length: usize| ids.clone().map(move |id| id.get(..length).unwrap_or(id));
    let differ = |length: &usize| cut(*length).collect::<BTreeSet<_>>().len() == ids.clone().count();
    let length = (SHORT_ID..longest).find(differ).unwrap_or(longest);
    cut(length).collect()
}

fn coloured_verdict(sandbox: &SandboxStatus) -> Cell {
    let colour = match (&sandbox.finding, &sandbox.entry.marking) {
        _ if !sandbox.is_as_marked() => Some(Colour::Red),
        (_, None) => None,
        (Finding::Read(Reading { verdict: Verdict::Contained, .. }), _) => Some(Colour::Green),
        _ => Some(Colour::Yellow),
    };
    (sandbox.verdict().to_owned(), colour)
}

fn layers(reading: &Reading) -> String {
    let all = [
        (reading.pod_layer, "pod"),
        (reading.host_layer, "host"),
        (reading.bpf_layer, "bpf"),
        (reading.bpf_ready, "bpf-ready"),
    ];
    let there: Vec<_> = all.into_iter().filter_map(|(is_there, layer)| is_there.then_some(layer)).collect();
    if there.is_empty() { "-".to_owned() } else { there.join("+") }
}

fn policy_since_by(marking: Option<&Marking>) -> [Cell; 3] {
    let Some(marking) = marking else { return [plain("-"), plain("-"), plain("-")] };
    [
        plain(marking.policy.to_string()),
        plain(or_dash(marking.since.map(timestamp))),
        plain(or_dash(marking.mark.actor.as_ref())),
    ]
}

fn sealed_by(fault: &Fault) -> String {
    format!("sealed: a mark cannot be understood: {}", printable(&fault.to_string()))
}

/// The table of `status`.
#[must_use]
pub fn status_table(
    sandboxes: &[SandboxStatus],
    unanswered: &[UnansweredMark],
    damaged: &[Damaged],
    style: Style,
) -> String {
    let mut text = String::new();
    let ids = short_ids(sandboxes.iter().map(|sandbox| sandbox.entry.container_id.as_str()));
    let mut rows = Rows::new(
        style,
        &["SANDBOX", "POD", "STATE", "VERDICT", "LAYERS", "POLICY", "SINCE", "BY", "DROPPED IN/OUT", "ATTEMPTS"],
    );
    for (sandbox, id) in sandboxes.iter().zip(&ids) {
        let SandboxEntry { pod, marking, .. } = &sandbox.entry;
        let [policy, since, by] = policy_since_by(marking.as_ref());
        let (layers, drops, attempts) = match &sandbox.finding {
            Finding::Read(reading) if marking.is_some() => (
                layers(reading),
                format!("{}/{}", dropped(&reading.drops, Direction::In), dropped(&reading.drops, Direction::Out)),
                reading.attempts.len().to_string(),
            ),
            Finding::Read(reading) => (layers(reading), "-".to_owned(), "-".to_owned()),
            Finding::Gone(_) | Finding::Unknown(_) => ("-".to_owned(), "-".to_owned(), "-".to_owned()),
        };
        rows.push([
            plain(*id),
            plain(pod.to_string()),
            plain(sandbox.entry.state()),
            coloured_verdict(sandbox),
            plain(layers),
            policy,
            since,
            by,
            plain(drops),
            plain(attempts),
        ]);
    }
    write_sandboxes(&mut text, &rows);
    for (sandbox, id) in sandboxes.iter().zip(&ids) {
        let fault = sandbox.entry.marking.as_ref().and_then(|marking| marking.fault.as_ref()).map(sealed_by);
        for reason in fault.into_iter().chain(sandbox.reasons().iter().map(|reason| printable(reason))) {
            let _ = writeln!(text, "{id}: {reason}");
        }
        for note in sandbox.notes() {
            let _ = writeln!(text, "{id}: {note}");
        }
    }
    write_rest(&mut text, unanswered, damaged, style);
    text
}

/// The table of `list`.
#[must_use]
pub fn list_table(
    sandboxes: &[SandboxEntry],
    unanswered: &[UnansweredMark],
    damaged: &[Damaged],
    style: Style,
) -> String {
    let mut text = String::new();
    let ids = short_ids(sandboxes.iter().map(|sandbox| sandbox.container_id.as_str()));
    let mut rows = Rows::new(style, &["SANDBOX", "POD", "UID", "STATE", "POLICY", "SINCE", "BY"]);
    for (sandbox, id) in sandboxes.iter().zip(&ids) {
        let [policy, since, by] = policy_since_by(sandbox.marking.as_ref());
        let uid = or_dash(sandbox.pod.uid.as_ref().map(|uid| uid.as_str()));
        let state = plain(sandbox.state());
        rows.push([plain(*id), plain(sandbox.pod.to_string()), plain(uid), state, policy, since, by]);
    }
    write_sandboxes(&mut text, &rows);
    write_rest(&mut text, unanswered, damaged, style);
    text
}

/// The page of one sandbox.
#[must_use]
pub fn sandbox_text(sandbox: &SandboxStatus, style: Style) -> String {
    let mut text = String::new();
    let SandboxEntry { container_id, pod, netns, marking } = &sandbox.entry;
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<10}{value}");
    };
    line("sandbox", container_id.as_str());
    line("pod", &pod.to_string());
    if let Some(uid) = &pod.uid {
        line("uid", uid.as_str());
    }
    if let Some(netns) = netns {
        line("netns", &printable(&netns.to_string()));
    }
    line("state", sandbox.entry.state());
    let (verdict, colour) = coloured_verdict(sandbox);
    line("verdict", &style.paint(&verdict, colour));
    for reason in sandbox.reasons() {
        line("", &printable(&reason));
    }
    if let Finding::Read(reading) = &sandbox.finding {
        line("layers", &layers(reading));
        for note in &reading.notes {
            line("note", &note.to_string());
        }
    }
    if let Some(marking) = marking {
        write_marking(&mut line, marking);
    }
    if let Finding::Read(reading) = &sandbox.finding {
        write_drops(&mut text, &reading.drops, style);
        write_attempts(&mut text, &reading.attempts, style);
    }
    text
}

fn write_marking(line: &mut impl FnMut(&str, &str), marking: &Marking) {
    line("policy", &marking.policy.to_string());
    if let Some(fault) = &marking.fault {
        line("", &sealed_by(fault));
    }
    let keys: Vec<_> = marking.keys.iter().map(|key| key.as_str()).collect();
    line("marks", &keys.join(", "));
    let said = [("reason", &marking.mark.reason), ("case", &marking.mark.case), ("by", &marking.mark.actor)];
    for (name, said) in said {
        if let Some(said) = said {
            line(name, &printable(said));
        }
    }
    line("since", &or_dash(marking.since.map(timestamp)));
}

/// The page of one pod in the node's network namespace.
#[must_use]
pub fn host_pod_text(host_pod: &HostPodStatus, style: Style) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<10}{value}");
    };
    line("pod", &format!("{} (hostNetwork)", host_pod.pod));
    line("uid", &or_dash(host_pod.pod.uid.as_ref().map(|uid| uid.as_str())));
    line("cgroup", &or_dash(host_pod.cgroup.as_ref().map(|cgroup| cgroup.to_string_lossy())));
    line("state", host_pod.state());
    line("verdict", &style.paint(host_pod.verdict(), host_pod_colour(host_pod)));
    for reason in host_pod.reasons() {
        line("", &printable(&reason));
    }
    if let HostFinding::Read(reading) = &host_pod.finding {
        line("layers", if reading.cgroup_layer { "cgroup" } else { "-" });
        for note in &reading.notes {
            line("note", &note.to_string());
        }
    }
    if let Some(marking) = &host_pod.marking {
        write_marking(&mut line, marking);
    }
    if let HostFinding::Read(reading) = &host_pod.finding {
        write_drops(&mut text, &reading.drops, style);
        write_attempts(&mut text, &reading.attempts, style);
    }
    text
}

fn host_pod_colour(host_pod: &HostPodStatus) -> Option<Colour> {
    Some(match &host_pod.finding {
        _ if !host_pod.is_as_marked() => Colour::Red,
        HostFinding::Read(reading) if reading.verdict == Verdict::Contained => Colour::Green,
        _ => Colour::Yellow,
    })
}

/// The pods in the node's network namespace, below the sandboxes; nothing where there is none.
#[must_use]
pub fn host_pods_text(host_pods: &[HostPodStatus], style: Style) -> String {
    let mut text = String::new();
    if host_pods.is_empty() {
        return text;
    }
    text.push_str("\nPods with hostNetwork, isolated by programs on their cgroups:\n");
    let mut rows = Rows::new(style, &["UID", "POD", "STATE", "VERDICT", "POLICY", "SINCE", "BY", "DROPPED IN/OUT"]);
    for host_pod in host_pods {
        let [policy, since, by] = policy_since_by(host_pod.marking.as_ref());
        let dropped = match &host_pod.finding {
            HostFinding::Read(reading) => {
                let of = |direction| dropped(&reading.drops, direction);
                format!("{}/{}", of(Direction::In), of(Direction::Out))
            }
            HostFinding::Unknown(_) => "-".to_owned(),
        };
        rows.push([
            plain(or_dash(host_pod.pod.uid.as_ref().map(|uid| uid.as_str()))),
            plain(host_pod.pod.to_string()),
            plain(host_pod.state()),
            (host_pod.verdict().to_owned(), host_pod_colour(host_pod)),
            policy,
            since,
            by,
            plain(dropped),
        ]);
    }
    rows.write(&mut text);
    for host_pod in host_pods {
        let uid = or_dash(host_pod.pod.uid.as_ref().map(|uid| uid.as_str()));
        for reason in host_pod.reasons() {
            let _ = writeln!(text, "{uid}: {}", printable(&reason));
        }
        if let HostFinding::Read(reading) = &host_pod.finding {
            for note in &reading.notes {
                let _ = writeln!(text, "{uid}: {note}");
            }
        }
    }
    text
}

fn write_drops(text: &mut String, drops: &[Drops], style: Style) {
    if drops.is_empty() {
        return;
    }
    text.push('\n');
    let mut rows = Rows::new(style, &["DROPPED", "LAYER", "INTERFACE", "PACKETS", "BYTES"]);
    // The chains that are of no interface drop only what those of the interfaces let through.
    for drops in drops.iter().filter(|drops| drops.interface.is_some() || drops.packets > 0) {
        rows.push([
            plain(drops.direction.as_str()),
            plain(drops.layer.as_str()),
            plain(or_dash(drops.interface.as_ref())),
            plain(drops.packets.to_string()),
            plain(drops.bytes.to_string()),
        ]);
    }
    rows.write(text);
}

fn write_attempts(text: &mut String, attempts: &[Attempt], style: Style) {
    if attempts.is_empty() {
        return;
    }
    text.push('\n');
    let has_names = attempts.iter().any(|attempt| !attempt.names.is_empty());
    let header = ["ATTEMPT", "ADDRESS", "PORT", "PACKETS", "ASKED FOR"];
    let mut rows = Rows::new(style, if has_names { &header } else { &header[..4] });
    for attempt in attempts.iter().take(ATTEMPTS_SHOWN) {
        let cells = [
            plain(attempt.protocol.to_string()),
            plain(attempt.address.to_string()),
            plain(or_dash(attempt.port.map(|port| port.to_string()))),
            plain(attempt.packets.to_string()),
        ];
        rows.push(cells.into_iter().chain(has_names.then(|| plain(asked_for(&attempt.names)))));
    }
    rows.write(text);
    if let Some(more) = attempts.len().checked_sub(ATTEMPTS_SHOWN).filter(|more| *more > 0) {
        let _ = writeln!(text, "and {more} more; -o json has all of them");
    }
}

fn asked_for(names: &[AskedFor]) -> String {
    let shown: Vec<_> =
        names.iter().take(NAMES_SHOWN).map(|asked| format!("{} {}", asked.kind.as_str(), asked.name)).collect();
    match names.len().saturating_sub(NAMES_SHOWN) {
        0 => or_dash((!shown.is_empty()).then(|| shown.join(", "))),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn write_sandboxes(text: &mut String, rows: &Rows) {
    if rows.rows.len() > 1 {
        rows.write(text);
    } else {
        text.push_str("no sandbox has a record on this node\n");
    }
}

fn write_rest(text: &mut String, unanswered: &[UnansweredMark], damaged: &[Damaged], style: Style) {
    if !unanswered.is_empty() {
        text.push_str("\nMarks that nothing on this node answers to; when such a pod comes, it is isolated before its first packet:\n");
        let mut rows = Rows::new(style, &["MARK", "POLICY", "SINCE", "BY", "REASON"]);
        for mark in unanswered {
            let policy = match (&mark.fault, &mark.mark.policy) {
                (Some(_), _) => "sealed (cannot be understood)".to_owned(),
                (None, Some(policy)) => policy.to_string(),
                (None, None) => "the conflist's".to_owned(),
            };
            rows.push([
                plain(mark.key.as_str()),
                plain(policy),
                plain(or_dash(mark.since.map(timestamp))),
                plain(or_dash(mark.mark.actor.as_ref())),
                plain(or_dash(mark.mark.reason.as_ref())),
            ]);
        }
        rows.write(text);
    }
    if !damaged.is_empty() {
        text.push_str("\nRecords that cannot be read; what only they know of cannot be reached:\n");
        for record in damaged {
            let _ = writeln!(
                text,
                "{}: {}",
                printable(&record.path.to_string_lossy()),
                printable(&record.fault.to_string())
            );
        }
    }
    text.push_str(NOT_REACHED);
}
