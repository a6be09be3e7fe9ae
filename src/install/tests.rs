//! Killed between any two steps, an installation leaves a node that works, and can be gone on with or undone.

use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::confdir::Text;
use super::*;

const LIST: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;
const SINGLE: &str = r#"{"cniVersion":"1.0.0","name":"n","type":"bridge"}"#;
const FILES: [(&str, &str); 3] = [("10-a.conflist", LIST), ("10-a.conf", SINGLE), ("10-a.json", SINGLE)];

struct Node(TempDir);

impl Node {
    fn with(file: &str, text: &str) -> Self {
        let node = Self(tempfile::tempdir().unwrap());
        for dir in ["net.d", "bin", "units"] {
            fs::create_dir(node.0.path().join(dir)).unwrap();
        }
        fs::write(node.0.path().join("program"), MARK).unwrap();
        let path = node.0.path().join("net.d").join(file);
        fs::write(&path, text).unwrap();
        for path in [path, node.0.path().join("net.d"), node.0.path().join("bin"), node.0.path().join("units")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        node
    }

    fn layout(&self) -> Layout {
        let at = |name: &str| self.0.path().join(name);
        Layout {
            conf_dir: at("net.d"),
            bin_dir: at("bin"),
            unit_dir: at("units"),
            state_dir: at("state"),
            package: at("list"),
        }
    }

    fn install(&self) -> Plan {
        let program = self.0.path().join("program");
        let (layout, entry) = (self.layout(), Entry::new([]));
        plan_install(&InstallOptions { layout, conflist: None, entry, program, systemd: true, plugins_elsewhere: true })
            .unwrap()
    }

    fn uninstall(&self) -> Plan {
        plan_uninstall(&UninstallOptions { layout: self.layout(), ..UninstallOptions::default() }).unwrap()
    }

    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let layout = self.layout();
        let dirs = [layout.conf_dir, layout.bin_dir, layout.unit_dir];
        let paths = dirs.iter().flat_map(|dir| fs::read_dir(dir).unwrap()).map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
        files.sort();
        files
    }

    /// Asserts that the runtime finds a valid configuration, and ours among the plugins if it is named.
    fn works(&self) {
        let text = Text::read(&confdir::runtimes_choice(&self.layout().conf_dir).unwrap()).unwrap();
        let chain = text.chain().unwrap();
        assert!(chain.types().any(|kind| kind == "bridge"));
        assert!(chain.entry().is_none() || self.layout().program().exists(), "a plugin is named that is not there");
    }
}

#[test]
fn an_installation_killed_between_steps_can_be_gone_on_with_and_undone() {
    for (file, text) in FILES {
        let mut killed_after = 0;
        loop {
            let node = Node::with(file, text);
            let before = node.files();
            let (all, plan) = node.install().killed_after(killed_after);
            plan.apply().unwrap();
            drop(plan);
            node.works();
            if killed_after % 2 == 0 {
                node.install().apply().unwrap();
                node.works();
                assert!(node.install().is_empty(), "{file} after {killed_after}");
                assert_eq!(confdir::configurations(&node.layout().conf_dir).unwrap().len(), 1, "{file}");
            }
            node.uninstall().apply().unwrap();
            assert_eq!(node.files(), before, "{file} after {killed_after}");
            if killed_after == all {
                break;
            }
            killed_after += 1;
        }
        assert!(killed_after >= 7, "there are steps to be killed between");
    }
}

#[test]
fn an_undoing_killed_between_steps_can_be_gone_on_with_and_reversed() {
    for (file, text) in FILES {
        let mut killed_after = 0;
        loop {
            let node = Node::with(file, text);
            let before = node.files();
            node.install().apply().unwrap();
            let installed = node.files();
            let (all, plan) = node.uninstall().killed_after(killed_after);
            plan.apply().unwrap();
            drop(plan);
            node.works();
            if killed_after % 2 == 0 {
                node.install().apply().unwrap();
                assert_eq!(node.files(), installed, "{file} after {killed_after}");
            }
            node.uninstall().apply().unwrap();
            node.works();
            assert_eq!(node.files(), before, "{file} after {killed_after}");
            if killed_after == all {
                break;
            }
            killed_after += 1;
        }
    }
}
