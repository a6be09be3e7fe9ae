//! Puts the plugin onto a node and takes it off again: the program into the CNI bin directory, its entry into the
//! chain that the runtime uses, the systemd units where they are wanted.
//!
//! Everything is decided first and done afterwards ([`Plan`]), so that a dry run shows what would happen and a refusal
//! has changed nothing. `program`, `chain`, `units` and `statedir` decide, each for its part, what to do and what to undo;
//! [`conflist`] edits the chain's text, `confdir` knows which file it is and whether it may be edited, `writers` who writes
//! it anew; [`command`] is what a person sees.
//!
//! Not its business: starting anything. What systemd should do is said, and left to the operator.

pub mod command;
pub mod conflist;

mod chain;
mod confdir;
mod diff;
mod error;
mod plan;
mod program;
mod statedir;
mod units;
mod writers;

use std::fs;
use std::path::{Path, PathBuf};

use crate::node::state::DEFAULT_STATE_DIR;

pub use conflist::{Entry, PLUGIN};
pub use error::InstallError;
pub use plan::Plan;
pub use program::MARK;

/// Where things are on the node.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The runtime's network configurations.
    pub conf_dir: PathBuf,
    /// The runtime's plugins.
    pub bin_dir: PathBuf,
    /// The administrator's systemd units.
    pub unit_dir: PathBuf,
    /// The state directory of the plugin.
    pub state_dir: PathBuf,
    /// The list of files that the Debian package put there, where it is installed.
    pub package: PathBuf,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dir: "/opt/cni/bin".into(),
            unit_dir: "/etc/systemd/system".into(),
            state_dir: DEFAULT_STATE_DIR.into(),
            package: "/var/lib/dpkg/info/cni-quarantine.list".into(),
        }
    }
}

impl Layout {
    fn program(&self) -> PathBuf {
        self.bin_dir.join(PLUGIN)
    }

    /// Whether this file is the Debian package's.
    fn packaged(&self, path: &Path) -> bool {
        let Ok(list) = fs::read_to_string(&self.package) else { return false };
        list.lines().any(|line| Path::new(line) == path)
    }
}

/// What to install.
#[derive(Debug, Clone)]
pub struct InstallOptions {
    /// Where to.
    pub layout: Layout,
    /// The network configuration to append to, instead of the one that the runtime takes.
    pub conflist: Option<PathBuf>,
    /// What to append.
    pub entry: Entry,
    /// The program to put into the CNI bin directory: the running one.
    pub program: PathBuf,
    /// Whether to put the systemd units in place.
    pub systemd: bool,
    /// Whether the runtime looks for plugins in other directories too, so that those of the chain may be there.
    pub plugins_elsewhere: bool,
}

/// What to take off the node.
#[derive(Debug, Clone, Default)]
pub struct UninstallOptions {
    /// Where from.
    pub layout: Layout,
    /// The network configuration to take the entry out of, instead of every one that was edited by an installation.
    pub conflist: Option<PathBuf>,
    /// Whether the state directory goes too.
    pub purge: bool,
    /// Whether to go on where isolations or running sandboxes speak against it.
    pub yes: bool,
}

/// Decides what has to be done to install. The plan is empty where everything is in place.
///
/// # Errors
/// When something on the node is not as it is understood. Nothing has been changed then.
pub fn plan_install(options: &InstallOptions) -> Result<Plan, InstallError> {
    let layout = &options.layout;
    let conf_dir = conf_dir(layout, options.conflist.as_deref());
    confdir::trusted_dir(conf_dir)?;
    confdir::trusted_dir(&layout.bin_dir)?;
    let mut plan = Plan::locking(conf_dir)?;
    program::put(&mut plan, options)?;
    chain::append_entry(&mut plan, options)?;
    if options.systemd {
        units::put(&mut plan, layout)?;
    }
    if !plan.is_empty() {
        let adopts = options.entry.to_json().get("adopt") != Some(&serde_json::Value::Bool(false));
        let agent = if adopts { ", and so does the agent when it starts" } else { "" };
        plan.note(format!(
            "Pods that run already are not covered: the plugin is called when a pod's sandbox is made. `quarantine adopt --all` \
             takes them in{agent}; what neither cache nor runtime speaks of has to be recreated (kubectl drain and \
             uncordon, or a rollout restart)."
        ));
    }
    Ok(plan)
}

/// Decides what has to be done to undo an installation. The plan is empty where nothing is left of one.
///
/// # Errors
/// When something on the node is not as it is understood. Nothing has been changed then.
pub fn plan_uninstall(options: &UninstallOptions) -> Result<Plan, InstallError> {
    let layout = &options.layout;
    let conf_dir = conf_dir(layout, options.conflist.as_deref());
    confdir::trusted_dir(conf_dir)?;
    let mut plan = Plan::locking(conf_dir)?;
    let chains = match &options.conflist {
        Some(path) => vec![chain::current_name(path)],
        None => chain::edited_chains(conf_dir)?,
    };
    let mut state_dirs = vec![layout.state_dir.clone()];
    for chain in &chains {
        state_dirs.extend(chain::state_dir(chain));
        chain::take_entry_out(&mut plan, chain)?;
    }
    state_dirs.sort();
    state_dirs.dedup();
    let others = chain::still_naming(conf_dir, &chains)?;
    units::remove(&mut plan, layout)?;
    program::remove(&mut plan, options, &others, &state_dirs)?;
    if options.purge {
        state_dirs.iter().try_for_each(|dir| statedir::purge(&mut plan, dir, options.yes))?;
    }
    Ok(plan)
}

fn conf_dir<'o>(layout: &'o Layout, conflist: Option<&'o Path>) -> &'o Path {
    conflist.map_or(&layout.conf_dir, confdir::dir_of)
}

#[cfg(test)]
mod tests;
