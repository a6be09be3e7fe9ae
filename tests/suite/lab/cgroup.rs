//! Cgroups of version 2 of a test's own, and processes in them.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use super::{Netns, PATIENCE, eventually};

/// A cgroup two levels below the root, as a kubelet's is: a slice of the test's own, and a service in it. Both go with it.
pub(crate) struct Cgroup {
    mounted_at: PathBuf,
    path: String,
}

impl Cgroup {
    /// `netns` names it, since no two tests have the same.
    pub(crate) fn new(netns: &Netns, service: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mount = mounts.find(|fields| fields[2] == "cgroup2").expect("no cgroups of version 2 here");
        let path = format!("{}.slice/{service}", netns.name());
        let cgroup = Self { mounted_at: mount[1].into(), path };
        fs::create_dir_all(cgroup.directory()).unwrap();
        cgroup
    }

    /// Its path as a policy names it.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.mounted_at.join(&self.path)
    }

    /// Removes it, as systemd does with one of a service that ends.
    pub(crate) fn remove(&self) {
        let removed = eventually(PATIENCE, || fs::remove_dir(self.directory()).is_ok());
        assert!(removed, "{} has processes", self.path);
    }

    /// Makes it anew: it has another ID then.
    pub(crate) fn make(&self) {
        fs::create_dir(self.directory()).unwrap();
    }

    /// A process of the node that runs a script in here.
    pub(crate) fn command(&self, netns: &Netns, script: &str) -> Command {
        let mut command = netns.command("bash");
        command.args(["-c", script]);
        enter(&mut command, &self.directory());
        command
    }

    /// An HTTP probe from in here: true if it is answered with 200 in time.
    pub(crate) fn probes(&self, netns: &Netns, to: IpAddr, port: u16, limit: Duration) -> bool {
        let script = format!(
            "exec 3<>/dev/tcp/{to}/{port} && printf GET >&3 && read -r line <&3 && [[ $line == *200* ]] && cat <&3"
        );
        let mut probe = self.command(netns, &script).stdout(std::process::Stdio::null()).spawn().unwrap();
        ended_within(&mut probe, limit)
    }

    /// A TCP probe from in here, which closes the connection first.
    pub(crate) fn connects(&self, netns: &Netns, to: IpAddr, port: u16) -> bool {
        let mut probe = self.command(netns, &format!("exec 3<>/dev/tcp/{to}/{port}")).spawn().unwrap();
        ended_within(&mut probe, PATIENCE)
    }
}

fn ended_within(probe: &mut Child, limit: Duration) -> bool {
    let mut status = None;
    eventually(limit, || {
        status = probe.try_wait().unwrap();
        status.is_some()
    });
    let _ = probe.kill();
    let _ = probe.wait();
    status.is_some_and(|status| status.success())
}

/// Has a process be in a cgroup from its start.
fn enter(command: &mut Command, cgroup: &Path) {
    let mut processes = OpenOptions::new().write(true).open(cgroup.join("cgroup.procs")).unwrap();
    // SAFETY: between fork and exec the closure makes one system call and does not allocate.
    unsafe {
        command.pre_exec(move || processes.write_all(b"0"));
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let directory = self.directory();
        // A process that was killed leaves it a moment later.
        eventually(PATIENCE, || !directory.exists() || fs::remove_dir(&directory).is_ok());
        // Another of the test's may be in the slice.
        let _ = directory.parent().map(fs::remove_dir);
    }
}
