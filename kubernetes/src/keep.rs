//! Keeps the plugin's entry in the node's network configuration: the daemons of most networks write that file anew when they
//! start, and an entry that was appended is lost. What is done to the file is the business of `quarantine install`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;

use crate::node::changes::watch;
use crate::watching::ended;

/// How long a configuration has to be left alone before it is looked at: it is written in several steps.
const SETTLED_AFTER: Duration = Duration::from_millis(100);
/// How often it is looked at without a change that was noticed.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The same where it could not be installed: whatever else is in the way may end without a change here.
const TRY_EVERY: Duration = Duration::from_secs(5);

/// Where it is said to the other parts of the pod whether the plugin is installed: a file that is empty if so, and says why not
/// else.
pub const SAID: &str = "/run/quarantine/not-installed";

/// `quarantine-kube keep`.
#[derive(clap::Args, Debug)]
pub struct KeepArguments {
    /// The runtime's network configurations
    #[arg(long, default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
    /// The runtime's plugins
    #[arg(long, default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    /// The plugin's program, which installs itself
    #[arg(long, default_value = "/bin/quarantine")]
    program: PathBuf,
    /// The file that says to the other parts whether it is installed
    #[arg(long, value_name = "FILE", default_value = SAID)]
    said: PathBuf,
    /// Try once, and end well whatever comes of it
    #[arg(long)]
    once: bool,
    /// Further arguments of `quarantine install`
    #[arg(last = true)]
    install: Vec<OsString>,
}

/// Installs it, and again whenever somebody changes the configuration, until it is told to end.
///
/// # Errors
/// Where the program cannot be run.
pub async fn run(arguments: KeepArguments) -> anyhow::Result<()> {
    let mut changes = watch(vec![arguments.conf_dir.clone(), arguments.bin_dir.clone()]);
    let mut end = std::pin::pin!(ended());
    let mut before = None;
    loop {
        let fault = install(&arguments).await?;
        if before.as_ref() != Some(&fault) {
            say(&arguments.said, &fault);
        }
        let pause = if fault.is_empty() { LOOK_EVERY } else { TRY_EVERY };
        before = Some(fault);
        if arguments.once {
            return Ok(());
        }
        tokio::select! {
            Some(_) = changes.recv() => tokio::time::sleep(SETTLED_AFTER).await,
            () = tokio::time::sleep(pause) => {}
            () = &mut end => return Ok(()),
        }
        // What was changed meanwhile is looked at now.
        while changes.try_recv().is_ok() {}
    }
}

/// Says why it is not installed; nothing where it is. A configuration that cannot be understood, or is not there yet, is
/// looked at again.
async fn install(arguments: &KeepArguments) -> anyhow::Result<String> {
    let mut command = tokio::process::Command::new(&arguments.program);
    command.arg("install").arg("--conf-dir").arg(&arguments.conf_dir).arg("--bin-dir").arg(&arguments.bin_dir);
    let output = command.args(&arguments.install).stdin(Stdio::null()).output().await;
    let output = output.with_context(|| format!("cannot run {}", arguments.program.display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    if !said.contains("nothing to do") {
        log::info!("event=installed conf_dir={}", arguments.conf_dir.display());
    }
    Ok(String::new())
}

fn say(said: &Path, fault: &str) {
    if !fault.is_empty() {
        log::warn!("event=not-installed error={fault:?}");
    }
    // In two steps, so that nobody reads half of it.
    let new = said.with_extension("new");
    let written = std::fs::write(&new, fault).and_then(|()| std::fs::rename(&new, said));
    if let Err(error) = written {
        log::warn!("event=not-said file={} error={:?}", said.display(), error.to_string());
    }
}
