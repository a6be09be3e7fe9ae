//! Measures `quarantine` beside what it is compared with, on a node of its own. Called by `scripts/bench`, which makes
//! that node: a netns, mounts and process IDs that all go when this program ends.
//!
//! Each section runs its subjects in turn, so that whatever slows the machine slows all of them; the figures are medians
//! with the span from the 10th to the 90th percentile.

mod crowd;
mod evidence;
mod flood;
mod isolation;
mod node;
mod packets;
mod plugins;
mod probers;
mod process;
mod programs;
mod report;
mod stream;
mod tamper;
mod tcx;

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use serde_json::json;

use node::Node;
use report::{Section, machine};

type Outcome<T> = Result<T, Box<dyn Error>>;

const SECTIONS: [&str; 11] = [
    "plugins",
    "isolation",
    "programs",
    "probers",
    "evidence",
    "last-packet",
    "burst",
    "flood",
    "released",
    "growth",
    "tampering",
];

#[derive(Parser)]
struct Arguments {
    /// The program to be measured
    #[arg(long)]
    quarantine: PathBuf,
    /// Where the reference plugins are
    #[arg(long)]
    peers: PathBuf,
    /// The versions of the reference plugins, one a line after its name
    #[arg(long, default_value = "")]
    peer_versions: String,
    /// Where bench.md and bench.json are written, and where the state directory is meanwhile
    #[arg(long)]
    out: PathBuf,
    /// Fewer runs of each
    #[arg(long)]
    quick: bool,
    /// Only these sections
    #[arg(long, value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(SECTIONS))]
    only: Vec<String>,
    /// Put the tables between the `<!-- bench -->` markers of this file too
    #[arg(long)]
    write: Option<PathBuf>,
}

/// How often everything is done.
struct Effort {
    quick: bool,
}

impl Effort {
    fn runs(&self, full: usize) -> usize {
        if self.quick { full.min(10) } else { full }
    }

    fn toggles(&self) -> usize {
        if self.quick { 20 } else { 200 }
    }

    fn crowd(&self) -> &'static [u32] {
        if self.quick { &[1, 100] } else { &[1, 100, 1000] }
    }

    fn bursts(&self) -> usize {
        if self.quick { 3 } else { 5 }
    }

    /// Seconds.
    fn rest(&self) -> u64 {
        if self.quick { 2 } else { 10 }
    }
}

fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    let work = arguments.out.join("work");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work)?;
    let measured = measure(&arguments, &work);
    let _ = fs::remove_dir_all(&work);
    let sections = measured?;

    let date = process::sh("date -u +%Y-%m-%d")?;
    let effort = if arguments.quick { ", a quick run" } else { "" };
    let peers = peers(&arguments.peer_versions)?;
    let about = format!("Measured on {} ({}{effort}), beside {}.", date.trim(), machine(), peers.join(", "));
    let mut text = format!("{about}\n");
    for section in &sections {
        let _ = write!(text, "\n{}", section.markdown());
    }
    let sections: Vec<_> = sections.iter().map(Section::json).collect();
    let document = json!({
        "date": date.trim(), "machine": machine(), "peers": peers, "quick": arguments.quick, "sections": sections,
    });
    fs::write(arguments.out.join("bench.md"), &text)?;
    fs::write(arguments.out.join("bench.json"), format!("{document:#}\n"))?;
    if let Some(page) = &arguments.write {
        put_between_markers(page, &text)?;
    }
    print(&text);
    Ok(())
}

/// What it is measured beside, with versions.
fn peers(plugins: &str) -> Outcome<Vec<String>> {
    const MEASURED: [&str; 3] = ["tuning", "firewall", "portmap"];
    let plugins = plugins.lines().filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        Some(format!("{} {}", MEASURED.iter().find(|name| words.first() == Some(name))?, words.last()?))
    });
    let tools = ["nft --version", "iptables --version", "nsenter --version"].map(process::sh);
    let tools = tools.into_iter().map(|said| Ok(said?.trim().to_owned()));
    plugins.map(Ok).chain(tools).collect()
}

fn measure(arguments: &Arguments, work: &Path) -> Outcome<Vec<Section>> {
    let node = Node {
        quarantine: arguments.quarantine.canonicalize()?,
        peers: arguments.peers.canonicalize()?,
        state: work.canonicalize()?.join("state"),
    };
    let effort = Effort { quick: arguments.quick };
    let wants = |key: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == key);
    let mut sections = Vec::new();
    type Measure = fn(&Node, &Effort) -> Outcome<Section>;
    let alone: [(&str, Measure); 8] = [
        ("plugins", plugins::measure),
        ("isolation", isolation::measure),
        ("programs", programs::measure),
        ("probers", probers::measure),
        ("evidence", evidence::measure),
        ("released", packets::released),
        ("flood", flood::flood),
        ("tampering", tamper::measure),
    ];
    for (key, measure) in alone {
        if wants(key) {
            eprintln!("bench: {key}");
            sections.push(measure(&node, &effort)?);
        }
    }
    let wanted = crowd::Wanted { growth: wants("growth"), last_packet: wants("last-packet"), burst: wants("burst") };
    if wanted.growth || wanted.last_packet || wanted.burst {
        eprintln!("bench: growth, last-packet, burst");
        sections.extend(crowd::measure(&node, &effort, &wanted)?);
    }
    let place = |section: &Section| SECTIONS.iter().position(|key| *key == section.key);
    sections.sort_by_key(place);
    Ok(sections)
}

/// Replaces what is between the markers.
fn put_between_markers(file: &Path, text: &str) -> Outcome<()> {
    const BEGIN: &str = "<!-- bench -->\n";
    const END: &str = "<!-- /bench -->";
    let old = fs::read_to_string(file)?;
    let (before, rest) = old.split_once(BEGIN).ok_or("there is no <!-- bench --> line")?;
    let (_, after) = rest.split_once(END).ok_or("there is no <!-- /bench --> after it")?;
    Ok(fs::write(file, format!("{before}{BEGIN}{text}{END}{after}"))?)
}

#[allow(clippy::print_stdout, reason = "the tables are what it is run for")]
fn print(text: &str) {
    print!("{text}");
}
