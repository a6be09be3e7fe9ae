//! Keeps the plugin's entry in the node's network configuration: the daemons of most networks write that file anew when they
//! start, and an entry that was appended is lost. What is done to the file is the business of `quarantine install`.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;

use crate::node::changes::watch;
use crate::watching::ended;

/// How long a configuration has to be left alone before it is looked at: it is written in several steps.
const SETTLED_AFTER: Duration = Duration::from_millis(100);
/// How often it is looked at without a change that was noticed.
const LOOK_EVERY: Duration = Duration::from_secs(60);

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
}

/// Installs it, and again whenever somebody changes the configuration, until it is told to end.
///
/// # Errors
/// Where the program cannot be run.
pub async fn run(arguments: KeepArguments) -> anyhow::Result<()> {
    let mut changes = watch(vec![arguments.conf_dir.clone()]);
    let mut end = std::pin::pin!(ended());
    loop {
        install(&arguments).await?;
        tokio::select! {
            Some(()) = changes.recv() => tokio::time::sleep(SETTLED_AFTER).await,
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = &mut end => return Ok(()),
        }
        // What was changed meanwhile is looked at now.
        while changes.try_recv().is_ok() {}
    }
}

/// A configuration that cannot be understood, or is not there yet, is said, and looked at again when it changes.
async fn install(arguments: &KeepArguments) -> anyhow::Result<()> {
    let mut command = tokio::process::Command::new(&arguments.program);
    command.arg("install").arg("--conf-dir").arg(&arguments.conf_dir).arg("--bin-dir").arg(&arguments.bin_dir);
    let output = command.stdin(Stdio::null()).output().await;
    let output = output.with_context(|| format!("cannot run {}", arguments.program.display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        log::warn!("event=not-installed error={:?}", String::from_utf8_lossy(&output.stderr).trim());
    } else if !said.contains("nothing to do") {
        log::info!("event=installed conf_dir={}", arguments.conf_dir.display());
    }
    Ok(())
}
