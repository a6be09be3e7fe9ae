//! `quarantine install` and `quarantine uninstall`: arguments in, a report out.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::{Entry, InstallError, InstallOptions, Layout, Plan, UninstallOptions, plan_install, plan_uninstall};

/// Put the plugin onto this node.
///
/// Copies this program into the CNI bin directory and appends the plugin to the network configuration that the runtime
/// takes. Nothing is changed where something is not as it is understood.
#[derive(Debug, Args)]
pub struct InstallArgs {
    #[command(flatten)]
    places: Places,
    /// The network configuration to append to [default: the one that the runtime takes]
    #[arg(long, value_name = "FILE")]
    conflist: Option<PathBuf>,
    /// What isolated pods may still do: a file with the `policy` object
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Whether isolation is also enforced on the node's end of a pod's link
    #[arg(long, value_enum, value_name = "WHEN")]
    host_guard: Option<HostGuard>,
    /// Put the systemd units in place too
    #[arg(long)]
    systemd: bool,
    /// Show what would be done, with a diff, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Undo an installation.
///
/// Files that nobody else changed since are restored as they were; out of others only the plugin's entry is taken.
#[derive(Debug, Args)]
pub struct UninstallArgs {
    #[command(flatten)]
    places: Places,
    /// The network configuration to take the entry out of [default: all that were edited by an installation]
    #[arg(long, value_name = "FILE")]
    conflist: Option<PathBuf>,
    /// Remove the state directory too, with the marks
    #[arg(long)]
    purge: bool,
    /// Go on although pods are isolated, or were made with the plugin
    #[arg(long)]
    yes: bool,
    /// Show what would be done, with a diff, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
struct Places {
    /// The runtime's network configurations [default: /etc/cni/net.d]
    #[arg(long, value_name = "DIR")]
    conf_dir: Option<PathBuf>,
    /// The runtime's plugins [default: /opt/cni/bin]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// The state directory [default: /var/lib/cni/quarantine]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The administrator's systemd units [default: /etc/systemd/system]
    #[arg(long, value_name = "DIR")]
    unit_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum HostGuard {
    /// Where the pod has a link to the node
    Auto,
    /// Isolating fails where it has none
    Require,
    /// Never
    Off,
}

impl Places {
    fn layout(self) -> Layout {
        let standard = Layout::default();
        Layout {
            conf_dir: self.conf_dir.unwrap_or(standard.conf_dir),
            bin_dir: self.bin_dir.unwrap_or(standard.bin_dir),
            state_dir: self.state_dir.unwrap_or(standard.state_dir),
            unit_dir: self.unit_dir.unwrap_or(standard.unit_dir),
            package: standard.package,
        }
    }
}

impl InstallArgs {
    /// Installs, and reports what was done.
    ///
    /// # Errors
    /// When it is refused, or fails, or the report can't be written.
    pub fn run(self, out: &mut impl Write) -> Result<(), InstallError> {
        let program =
            env::current_exe().map_err(|source| InstallError::io("find", Path::new("/proc/self/exe"), source))?;
        let layout = self.places.layout();
        let entry = entry(&layout, self.policy.as_deref(), self.host_guard)?;
        let options = InstallOptions { layout, conflist: self.conflist, entry, program, systemd: self.systemd };
        carry_out(&plan_install(&options)?, self.dry_run, "It is installed already; there is nothing to do.", out)
    }
}

impl UninstallArgs {
    /// Uninstalls, and reports what was done.
    ///
    /// # Errors
    /// When it is refused, or fails, or the report can't be written.
    pub fn run(self, out: &mut impl Write) -> Result<(), InstallError> {
        let layout = self.places.layout();
        let options = UninstallOptions { layout, conflist: self.conflist, purge: self.purge, yes: self.yes };
        carry_out(&plan_uninstall(&options)?, self.dry_run, "It is not installed; there is nothing to do.", out)
    }
}

/// The entry with what differs from the defaults.
fn entry(layout: &Layout, policy: Option<&Path>, host_guard: Option<HostGuard>) -> Result<Entry, InstallError> {
    let mut settings = Vec::new();
    if layout.state_dir != Layout::default().state_dir {
        let dir = layout.state_dir.to_str().filter(|_| layout.state_dir.is_absolute());
        let dir = dir.ok_or_else(|| InstallError::StateDir { path: layout.state_dir.clone() })?;
        settings.push(("stateDir".to_owned(), Value::from(dir)));
    }
    if let Some(path) = policy {
        let text = fs::read_to_string(path).map_err(|source| InstallError::io("read", path, source))?;
        let refuse = |reason: String| InstallError::Policy { path: path.to_owned(), reason };
        let policy: Value = serde_json::from_str(&text).map_err(|error| refuse(error.to_string()))?;
        settings.push(("policy".to_owned(), policy));
    }
    if let Some(host_guard) = host_guard.as_ref().and_then(ValueEnum::to_possible_value) {
        settings.push(("hostGuard".to_owned(), Value::from(host_guard.get_name())));
    }
    Ok(Entry::new(settings))
}

fn carry_out(plan: &Plan, dry_run: bool, nothing: &str, out: &mut impl Write) -> Result<(), InstallError> {
    if !dry_run {
        plan.apply()?;
    }
    report(plan, dry_run, nothing, out)
        .map_err(|source| InstallError::io("write to", Path::new("standard output"), source))
}

fn report(plan: &Plan, dry_run: bool, nothing: &str, out: &mut impl Write) -> io::Result<()> {
    match (plan.is_empty(), dry_run) {
        (true, _) => writeln!(out, "{nothing}")?,
        (false, false) => write!(out, "Done:\n{plan}")?,
        (false, true) => write!(out, "Would be done:\n{plan}\n{}\nNothing was changed.\n", plan.diff())?,
    }
    plan.notes().iter().try_for_each(|note| writeln!(out, "\nNote: {note}"))
}
