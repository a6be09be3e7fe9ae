//! A directory from which no runtime would run the plugin: an installation into it is refused before anything is edited, since
//! every pod that is made afterwards would fail.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const CHAIN: &str =
    r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"},{"type":"portmap"},{"type":"bridge"}]}"#;

/// A node's directories with a chain of two plugins, which are in `bin`.
struct Node(TempDir);

impl Node {
    fn new() -> Self {
        let node = Self(tempfile::tempdir().unwrap());
        for dir in ["net.d", "bin", "empty"] {
            fs::create_dir(node.path(dir)).unwrap();
            set_mode(&node.path(dir), 0o755);
        }
        for (file, text, mode) in
            [("net.d/10-n.conflist", CHAIN, 0o644), ("bin/bridge", "", 0o755), ("bin/portmap", "", 0o755)]
        {
            fs::write(node.path(file), text).unwrap();
            set_mode(&node.path(file), mode);
        }
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `quarantine install` into `bin_dir` after this line of shell, in a mount namespace of its own; gives whether it
    /// succeeded and all that it said.
    fn install(&self, before: &str, bin_dir: &str, arguments: &[&str]) -> (bool, String) {
        let script = format!("{before}\nexec \"$@\"");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", &script, "sh", crate::lab::program(), "install"]);
        command.arg("--conf-dir").arg(self.path("net.d")).arg("--bin-dir").arg(self.path(bin_dir)).args(arguments);
        let output = command.env_remove("CNI_COMMAND").output().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        (output.status.success(), text)
    }

    #[track_caller]
    fn assert_refused(&self, (succeeded, said): &(bool, String), reasons: &[&str]) {
        assert!(!succeeded, "{said}");
        for reason in reasons {
            assert!(said.contains(reason), "{said:?} does not say {reason:?}");
        }
        assert_eq!(fs::read_to_string(self.path("net.d/10-n.conflist")).unwrap(), CHAIN);
        assert_eq!(fs::read_dir(self.path("net.d")).unwrap().count(), 1, "something was kept or written");
        assert_eq!(fs::read_dir(self.path("empty")).unwrap().count(), 0, "the program was put there");
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_directory_where_nothing_can_be_run_is_refused() {
    let node = Node::new();
    let bin = node.path("bin");
    let remount = |options: &str| {
        let bin = bin.display();
        format!("mount --bind {bin} {bin}; mount -o remount,bind,{options} {bin}")
    };
    for dry_run in [&[][..], &["--dry-run"]] {
        let refused = node.install(&remount("noexec"), "bin", dry_run);
        node.assert_refused(&refused, &["noexec", bin.to_str().unwrap(), "--bin-dir"]);
        assert!(!node.path("bin/quarantine").exists());
    }
    let (succeeded, said) = node.install(&remount("exec"), "bin", &[]);
    assert!(succeeded, "the control: {said}");
}

#[test]
fn a_directory_without_the_chains_plugins_is_refused() {
    let node = Node::new();
    let refused = node.install("", "empty", &[]);
    node.assert_refused(&refused, &["no program bridge, portmap, which", "--bin-dir", "--plugins-elsewhere"]);
    // One that is there and cannot be run is none; one that is a link to what can is.
    set_mode(&node.path("bin/portmap"), 0o644);
    node.assert_refused(&node.install("", "bin", &[]), &["no program portmap, which"]);
    fs::remove_file(node.path("bin/portmap")).unwrap();
    std::os::unix::fs::symlink("bridge", node.path("bin/portmap")).unwrap();
    let (succeeded, said) = node.install("", "bin", &[]);
    assert!(succeeded, "{said}");
    assert!(fs::read_to_string(node.path("net.d/10-n.conflist")).unwrap().contains("quarantine"));
}

/// CRI-O, and containerd since 2.1, take plugins from several directories.
#[test]
fn plugins_in_several_directories_can_be_installed_beside() {
    let node = Node::new();
    let (succeeded, said) = node.install("", "empty", &["--plugins-elsewhere"]);
    assert!(succeeded, "{said}");
    assert!(node.path("empty/quarantine").exists());
}
