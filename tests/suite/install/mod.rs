//! Installing onto a node and undoing it, on a node's directories made for each test.

mod checks;
mod conflist;
mod others;
mod program;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cni_quarantine::internals::{
    Entry, InstallError, InstallOptions, Layout, MARK, Plan, UninstallOptions, plan_install, plan_uninstall,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A node's directories, gone with the value.
struct Node {
    dir: TempDir,
}

/// Every file with its content and mode, every link with its target.
type Tree = BTreeMap<PathBuf, (Vec<u8>, u32)>;

impl Node {
    fn new() -> Self {
        let node = Self { dir: tempfile::tempdir().unwrap() };
        for dir in ["net.d", "bin", "systemd"] {
            fs::create_dir(node.path(dir)).unwrap();
            set_mode(&node.path(dir), 0o755);
        }
        for plugin in ["bridge", "ptp", "istio-cni"] {
            node.plugin(plugin);
        }
        node.write("net.d/README", "not a configuration");
        node.write("net.d/99-loopback.conf", r#"{ "cniVersion": "1.0.0", "name": "lo", "type": "loopback" }"#);
        node.program("one");
        node
    }

    fn with(name: &str, text: impl AsRef<[u8]>) -> Self {
        let node = Self::new();
        let text = text.as_ref();
        node.write(&format!("net.d/{name}"), text);
        node.plugins_of(&String::from_utf8_lossy(text));
        node
    }

    /// A plugin that the runtime can run.
    fn plugin(&self, name: &str) {
        self.write(&format!("bin/{name}"), "another plugin");
        set_mode(&self.path(&format!("bin/{name}")), 0o755);
    }

    /// Those that a network configuration calls, as far as it is one.
    fn plugins_of(&self, text: &str) {
        let Ok(configuration) = serde_json::from_str::<Value>(text) else { return };
        let chain = configuration["plugins"].as_array().cloned().unwrap_or(vec![configuration]);
        for name in chain.iter().filter_map(|plugin| plugin["type"].as_str()).filter(|name| *name != "quarantine") {
            self.plugin(name);
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
        set_mode(&self.path(name), 0o644);
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Makes the program that is to be installed one of this version.
    fn program(&self, version: &str) {
        self.write("program", [MARK, version.as_bytes()].concat());
    }

    fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        let mut dirs = vec![self.dir.path().to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let metadata = fs::symlink_metadata(&path).unwrap();
                let content = match () {
                    () if metadata.is_dir() => Vec::new(),
                    () if metadata.is_symlink() => fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
                    () => fs::read(&path).unwrap(),
                };
                if metadata.is_dir() {
                    dirs.push(path.clone());
                }
                tree.insert(path, (content, metadata.mode()));
            }
        }
        tree
    }

    fn layout(&self) -> Layout {
        Layout {
            conf_dir: self.path("net.d"),
            bin_dir: self.path("bin"),
            unit_dir: self.path("systemd"),
            state_dir: self.path("state"),
            package: self.path("package.list"),
        }
    }

    fn installing(&self) -> InstallOptions {
        InstallOptions {
            layout: self.layout(),
            conflist: None,
            entry: Entry::new([]),
            program: self.path("program"),
            systemd: false,
            plugins_elsewhere: false,
        }
    }

    fn uninstalling(&self) -> UninstallOptions {
        UninstallOptions { layout: self.layout(), ..UninstallOptions::default() }
    }

    fn install(&self) -> Plan {
        done(plan_install(&self.installing()))
    }

    fn uninstall(&self) -> Plan {
        done(plan_uninstall(&self.uninstalling()))
    }

    /// Asserts that installing is refused for this reason and has changed nothing.
    fn refuses(&self, options: &InstallOptions, reason: &str) {
        let before = self.tree();
        let error = plan_install(options).map(|plan| plan.to_string()).unwrap_err().to_string();
        assert!(error.contains(reason), "{error:?} does not say {reason:?}");
        assert!(self.tree() == before, "a refusal changed something");
    }
}

fn done(plan: Result<Plan, InstallError>) -> Plan {
    let plan = plan.unwrap();
    plan.apply().unwrap();
    plan
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn testdata(kind: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/conflists").join(kind);
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let file = |path: PathBuf| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap());
    files.map(file).collect()
}

fn plain() -> &'static str {
    "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"n\",\n  \"plugins\": [\n    { \"type\": \"bridge\" }\n  ]\n}\n"
}

const SINGLE: &str = "{ \"cniVersion\": \"1.0.0\", \"name\": \"n\", \"type\": \"bridge\" }\n";

/// Runs the product and returns whether it succeeded, and all that it said.
fn quarantine(node: &Node, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(crate::lab::program());
    command.args(arguments).env_remove("CNI_COMMAND");
    for (flag, dir) in [("--conf-dir", "net.d"), ("--bin-dir", "bin"), ("--unit-dir", "systemd")] {
        command.arg(flag).arg(node.path(dir));
    }
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.success(), text)
}

/// What `patch` makes of `old` by `diff`.
fn patched(old: &str, diff: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, old).unwrap();
    let mut patch = Command::new("patch")
        .args(["--binary", "--silent"])
        .arg(&file)
        .stdin(Stdio::piped())
        .spawn()
        .expect("patch is needed");
    patch.stdin.take().unwrap().write_all(diff.as_bytes()).unwrap();
    assert!(patch.wait().unwrap().success(), "{diff}");
    fs::read_to_string(file).unwrap()
}
