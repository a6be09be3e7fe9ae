//! `quarantine install` and `quarantine uninstall`: arguments in, a report out.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use crate::model::json::At;
use crate::plugin::config::Config;

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
    #[arg(long, value_name = "WHEN", value_parser = ["auto", "require", "off"])]
    host_guard: Option<String>,
    /// Put the systemd units in place too
    #[arg(long)]
    systemd: bool,
    /// The runtime looks for plugins in other directories too: do not ask for the chain's in --bin-dir
    #[arg(long)]
    plugins_elsewhere: bool,
    /// Take in the pods that run already, too, at once (`quarantine adopt --all`)
    #[arg(long, conflicts_with = "no_adopt")]
    adopt: bool,
    /// Have the agent leave pods of this network alone that were made without the plugin
    #[arg(long)]
    no_adopt: bool,
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
    /// The administrator's systemd units [default: /etc/systemd/system]
    #[arg(long, value_name = "DIR")]
    unit_dir: Option<PathBuf>,
}

impl Places {
    fn layout(&self, state_dir: &Path) -> Layout {
        let standard = Layout::default();
        Layout {
            conf_dir: self.conf_dir.clone().unwrap_or(standard.conf_dir),
            bin_dir: self.bin_dir.clone().unwrap_or(standard.bin_dir),
            state_dir: state_dir.to_owned(),
            unit_dir: self.unit_dir.clone().unwrap_or(standard.unit_dir),
            package: standard.package,
        }
    }
}

impl InstallArgs {
    /// Installs, and reports what was done.
    ///
    /// # Errors
    /// When it is refused, or fails, or the report can't be written.
    pub fn run(&self, state_dir: &Path, out: &mut impl Write) -> Result<(), InstallError> {
        let program =
            env::current_exe().map_err(|reason| InstallError::io("find", Path::new("/proc/self/exe"), reason))?;
        let layout = self.places.layout(state_dir);
        let entry = self.entry(&layout)?;
        let options = InstallOptions {
            layout,
            conflist: self.conflist.clone(),
            entry,
            program,
            systemd: self.systemd,
            plugins_elsewhere: self.plugins_elsewhere,
        };
        carry_out(&plan_install(&options)?, self.dry_run, "It is installed already; there is nothing to do.", out)
    }

    /// Whether pods are to be taken in now.
    #[must_use]
    pub fn adopts_now(&self) -> bool {
        self.adopt && !self.dry_run
    }

    /// Where the runtime's network configurations are.
    #[must_use]
    pub fn conf_dir(&self) -> PathBuf {
        self.places.conf_dir.clone().unwrap_or(Layout::default().conf_dir)
    }

    /// The entry with what differs from the defaults.
    fn entry(&self, layout: &Layout) -> Result<Entry, InstallError> {
        let mut settings = Vec::new();
        if layout.state_dir != Layout::default().state_dir {
            let shown = Value::from(layout.state_dir.to_string_lossy());
            let in_utf_8 = layout.state_dir.to_str().is_some();
            let refused = || InstallError::Setting(At::new("--state-dir", &shown).unexpected("a path in UTF-8"));
            in_utf_8.then_some(()).ok_or_else(refused)?;
            settings.push(("stateDir".to_owned(), shown));
        }
        if let Some(path) = &self.policy {
            let text = fs::read_to_string(path).map_err(|reason| InstallError::io("read", path, reason))?;
            let unreadable =
                |error: serde_json::Error| InstallError::Policy { path: path.to_owned(), reason: error.to_string() };
            settings.push(("policy".to_owned(), serde_json::from_str(&text).map_err(unreadable)?));
        }
        if let Some(host_guard) = &self.host_guard {
            settings.push(("hostGuard".to_owned(), Value::from(host_guard.as_str())));
        }
        if self.no_adopt {
            settings.push(("adopt".to_owned(), Value::from(false)));
        }
        let entry = Entry::new(settings);
        // The plugin would refuse at every ADD what is wrong here.
        Config::read(&entry.to_json()).map_err(InstallError::Setting)?;
        Ok(entry)
    }
}

impl UninstallArgs {
    /// Uninstalls, and reports what was done.
    ///
    /// # Errors
    /// When it is refused, or fails, or the report can't be written.
    pub fn run(&self, state_dir: &Path, out: &mut impl Write) -> Result<(), InstallError> {
        let layout = self.places.layout(state_dir);
        let options = UninstallOptions { layout, conflist: self.conflist.clone(), purge: self.purge, yes: self.yes };
        carry_out(&plan_uninstall(&options)?, self.dry_run, "It is not installed; there is nothing to do.", out)
    }
}

fn carry_out(plan: &Plan, dry_run: bool, nothing: &str, out: &mut impl Write) -> Result<(), InstallError> {
    if !dry_run {
        plan.apply()?;
    }
    match report(plan, dry_run, nothing, out) {
        // What was to be done is done, whether or not anyone reads it to the end.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        reported => reported.map_err(|reason| InstallError::io("write to", Path::new("standard output"), reason)),
    }
}

fn report(plan: &Plan, dry_run: bool, nothing: &str, out: &mut impl Write) -> io::Result<()> {
    match (plan.is_empty(), dry_run) {
        (true, _) => writeln!(out, "{nothing}")?,
        (false, false) => write!(out, "Done:\n{plan}")?,
        (false, true) => write!(out, "Would be done:\n{plan}\n{}\nNothing was changed.\n", plan.diff())?,
    }
    plan.notes().iter().try_for_each(|note| writeln!(out, "\nNote: {note}"))
}
