//! Installing onto a node and undoing it, on a node's directories made for each test.

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

#[test]
fn twice_in_and_out_again_leaves_every_configuration_as_it_was() {
    let files: Vec<_> = testdata("shipped").into_iter().chain(testdata("odd")).collect();
    assert!(files.len() > 30, "testdata is there");
    let entries =
        [Entry::new([]), Entry::new([("stateDir".into(), json!("/srv/q")), ("hostGuard".into(), json!("off"))])];
    for ((name, text), entry) in files.iter().flat_map(|file| entries.iter().map(move |entry| (file, entry))) {
        let node = Node::with(&format!("00-{name}"), text);
        let options = InstallOptions { entry: entry.clone(), ..node.installing() };
        let before = node.tree();
        let plan = plan_install(&options).unwrap_or_else(|error| panic!("{name}: {error}"));
        let diff = plan.diff();
        assert!(node.tree() == before, "{name}: planning changed something");
        plan.apply().unwrap();
        drop(plan);

        let list = format!("net.d/00-{}.conflist", name.rsplit_once('.').unwrap().0);
        let edited = node.read(&list);
        let old: Value = serde_json::from_slice(text).unwrap();
        let mut wanted = match old.get("plugins") {
            Some(_) => old,
            None => json!({ "cniVersion": old["cniVersion"], "name": old["name"], "plugins": [old] }),
        };
        wanted["plugins"].as_array_mut().unwrap().push(entry.to_json());
        assert_eq!(serde_json::from_str::<Value>(&edited).unwrap(), wanted, "{name}");
        if name.ends_with(".conflist") {
            assert_eq!(patched(str::from_utf8(text).unwrap(), &diff), edited, "{name}: {diff}");
        }
        let read_by_runtimes = |name: &str| name.starts_with("00-") && !name.ends_with(".before-quarantine");
        let names =
            fs::read_dir(node.path("net.d")).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|name| read_by_runtimes(name)).count(), 1, "{name}");

        let installed = node.tree();
        let again = done(plan_install(&options));
        assert!(again.is_empty(), "{name}: {again}");
        assert!(node.tree() == installed, "{name}: the second time changed something");
        drop(again);

        node.uninstall();
        assert!(node.tree() == before, "{name}: something is left, or was changed");
        assert!(node.uninstall().is_empty(), "{name}");
    }
}

#[test]
fn what_is_not_understood_is_refused_with_what_to_do() {
    let reasons = BTreeMap::from([
        ("another-case.conflist", "run `quarantine uninstall` first"),
        ("another-entry.conflist", "run `quarantine uninstall` first"),
        ("array.conflist", "not an object"),
        ("byte-order-mark.conflist", "byte order mark"),
        ("comment-inside.conflist", "is not JSON"),
        ("comment.conflist", "is not JSON"),
        ("cut-short.conflist", "is not JSON"),
        ("deep.conflist", "recursion limit"),
        ("duplicate-escaped-plugins.conflist", "\"plugins\" twice"),
        ("duplicate-plugins.conflist", "\"plugins\" twice"),
        ("duplicate-version.conflist", "\"cniVersion\" twice"),
        ("empty.conflist", "is not JSON"),
        ("list-as-single.conf", "named like a single plugin's configuration, but holds a chain"),
        ("loopback.conflist", "loopback"),
        ("no-chain.conflist", "no plugin to chain after"),
        ("no-name.conflist", "no \"name\""),
        ("no-plugins.conflist", "no \"plugins\" array"),
        ("no-version.conflist", "no \"cniVersion\""),
        ("not-utf-8.conflist", "utf-8"),
        ("plugins-object.conflist", "no \"plugins\" array"),
        ("single-as-list.conflist", "named like a conflist, but holds a single plugin"),
        ("single-without-type.json", "one \"type\""),
        ("single-without-version.conf", "no \"cniVersion\""),
        ("some-version.conflist", "\"9.0.0\""),
        ("trailing-comma.conflist", "is not JSON"),
        ("two-documents.conflist", "is not JSON"),
        ("two-entries.conflist", "leave at most one"),
        ("typed-twice.conflist", "one \"type\""),
        ("untyped.conflist", "element 1 in \"plugins\""),
        ("version-0.2.0.conflist", "\"0.2.0\""),
        ("version-2.conflist", "\"2.0.0\""),
        ("version-number.conflist", "\"1\""),
    ]);
    let files = testdata("refused");
    assert_eq!(files.len(), reasons.len(), "a reason for each file");
    for (name, text) in files {
        let node = Node::with(&format!("00-{name}"), text);
        let reason = reasons[name.as_str()];
        node.refuses(&node.installing(), reason);
        let named = InstallOptions { conflist: Some(node.path(&format!("net.d/00-{name}"))), ..node.installing() };
        node.refuses(&named, reason);
    }
}

#[test]
fn the_file_that_the_runtime_takes_is_edited() {
    let node = Node::with("20-b.conflist", plain());
    node.write("net.d/10-a.txt", plain());
    node.write("net.d/10-a.conflist~", plain());
    node.write("net.d/30-c.conf", SINGLE);
    fs::create_dir(node.path("net.d/00-dir.conflist")).unwrap();
    node.install();
    assert!(node.read("net.d/20-b.conflist").contains("quarantine"));
    assert_eq!(node.read("net.d/10-a.txt"), plain());
    assert_eq!(node.read("net.d/30-c.conf"), SINGLE);
}

#[test]
fn in_doubt_which_file_is_meant_none_is_edited() {
    let node = Node::with("10-a.conflist", "not JSON");
    node.write("net.d/20-b.conflist", plain());
    node.refuses(&node.installing(), "say which file is meant with --conflist");
    let named = InstallOptions { conflist: Some(node.path("net.d/20-b.conflist")), ..node.installing() };
    done(plan_install(&named));
    assert!(node.read("net.d/20-b.conflist").contains("quarantine"));
    node.uninstall();
    assert_eq!(node.read("net.d/20-b.conflist"), plain());
}

#[test]
fn a_directory_without_a_configuration_is_refused() {
    let node = Node::new();
    fs::remove_file(node.path("net.d/99-loopback.conf")).unwrap();
    node.refuses(&node.installing(), "install the cluster's network first");
    let elsewhere = Layout { conf_dir: node.path("nowhere"), ..node.layout() };
    node.refuses(&InstallOptions { layout: elsewhere, ..node.installing() }, "--conf-dir");
}

#[test]
fn what_others_can_change_is_refused() {
    let node = Node::with("10-a.conflist", plain());
    let path = node.path("net.d/10-a.conflist");
    for (path, mode) in [(&path, 0o644), (&node.path("net.d"), 0o755), (&node.path("bin"), 0o755)] {
        set_mode(path, mode | 0o020);
        node.refuses(&node.installing(), "chmod go-w");
        set_mode(path, mode | 0o002);
        node.refuses(&node.installing(), "chmod go-w");
        set_mode(path, mode);
        chown(path, Some(4242), None).unwrap();
        node.refuses(&node.installing(), "chown root:");
        chown(path, Some(0), None).unwrap();
    }
    fs::rename(&path, node.path("real")).unwrap();
    symlink(node.path("real"), &path).unwrap();
    node.refuses(&node.installing(), "symbolic link");
}

#[test]
fn owner_and_mode_of_the_file_stay() {
    let node = Node::with("10-a.conflist", plain());
    let path = node.path("net.d/10-a.conflist");
    set_mode(&path, 0o600);
    chown(&path, None, Some(4242)).unwrap();
    node.install();
    let metadata = fs::metadata(path).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o600, 0, 4242));
}

#[test]
fn a_chain_that_is_continued_in_a_directory_is_refused() {
    let node = Node::with("10-a.conflist", plain());
    fs::create_dir(node.path("net.d/n")).unwrap();
    node.refuses(&node.installing(), "loadOnlyInlinedPlugins");
    node.write("net.d/10-a.conflist", plain().replace("\"name\"", "\"loadOnlyInlinedPlugins\": true, \"name\""));
    node.install();
}

#[test]
fn a_single_plugin_keeps_its_place_among_the_files() {
    let node = Node::with("10-a.conf", SINGLE);
    node.write("net.d/10-a.conf-x.conflist", plain());
    node.refuses(&node.installing(), "stands between the two names");
    fs::remove_file(node.path("net.d/10-a.conf-x.conflist")).unwrap();
    node.write("net.d/10-a.conflist", plain());
    node.refuses(&node.installing(), "is there already");
    fs::remove_file(node.path("net.d/10-a.conflist")).unwrap();
    node.install();
    // The name that the file had still means it.
    let by_old_name = InstallOptions { conflist: Some(node.path("net.d/10-a.conf")), ..node.installing() };
    assert!(plan_install(&by_old_name).unwrap().is_empty());
    let by_old_name = UninstallOptions { conflist: Some(node.path("net.d/10-a.conf")), ..node.uninstalling() };
    done(plan_uninstall(&by_old_name));
    assert_eq!(node.read("net.d/10-a.conf"), SINGLE);
    assert!(!node.path("net.d/10-a.conflist").exists());
}

#[test]
fn a_newer_program_replaces_an_older_one_and_no_other() {
    let node = Node::with("10-a.conflist", plain());
    node.install();
    assert_eq!(fs::metadata(node.path("bin/quarantine")).unwrap().mode() & 0o7777, 0o755);
    node.program("two");
    let upgrade = node.install();
    assert!(upgrade.to_string().starts_with("replace the program at"), "{upgrade}");
    drop(upgrade);
    assert_eq!(node.read("bin/quarantine"), node.read("program"));

    node.write("bin/quarantine", "someone else's");
    node.refuses(&node.installing(), "is not this program");
    let plan = node.uninstall();
    assert!(plan.notes().iter().any(|note| note.contains("is not this program; it stays")), "{:?}", plan.notes());
    assert_eq!(node.read("bin/quarantine"), "someone else's");
    assert_eq!(node.read("net.d/10-a.conflist"), plain());
}

#[test]
fn the_debian_packages_files_stay() {
    let node = Node::with("10-a.conflist", plain());
    node.install();
    node.write("package.list", format!("/opt\n{}\n", node.path("bin/quarantine").display()));
    assert!(node.install().is_empty());
    node.program("two");
    node.refuses(&node.installing(), "upgrade that instead");
    let plan = node.uninstall();
    assert!(plan.notes().iter().any(|note| note.contains("apt")), "{:?}", plan.notes());
    assert!(node.path("bin/quarantine").exists());
    assert_eq!(node.read("net.d/10-a.conflist"), plain());
}

#[test]
fn the_program_stays_while_another_chain_names_it() {
    let node = Node::with("10-a.conflist", plain());
    let named = plain().replace("}\n  ]", "},\n    { \"type\": \"quarantine\" }\n  ]");
    node.write("net.d/20-b.conflist", &named);
    node.install();
    let plan = node.uninstall();
    assert!(plan.notes().iter().any(|note| note.contains("20-b.conflist names it")), "{:?}", plan.notes());
    drop(plan);
    assert_eq!(node.read("net.d/10-a.conflist"), plain());
    assert_eq!(node.read("net.d/20-b.conflist"), named, "it was not edited by an installation");
    assert!(node.path("bin/quarantine").exists());
    done(plan_uninstall(&UninstallOptions { conflist: Some(node.path("net.d/20-b.conflist")), ..node.uninstalling() }));
    assert_eq!(node.read("net.d/20-b.conflist"), plain());
    assert!(!node.path("bin/quarantine").exists());
}

#[test]
fn the_program_stays_while_sandboxes_may_need_it() {
    let node = Node::with("10-a.conflist", plain());
    node.install();
    fs::create_dir_all(node.path("state/attachments/abc")).unwrap();
    let plan = node.uninstall();
    assert!(plan.notes().iter().any(|note| note.contains("still run (1)")), "{:?}", plan.notes());
    drop(plan);
    assert_eq!(node.read("net.d/10-a.conflist"), plain());
    assert!(node.path("bin/quarantine").exists());
    fs::remove_dir(node.path("state/attachments/abc")).unwrap();
    node.uninstall();
    assert!(!node.path("bin/quarantine").exists());
}

#[test]
fn the_state_directory_that_the_entry_names_is_the_one_that_counts() {
    let node = Node::with("10-a.conflist", plain());
    let entry = Entry::new([("stateDir".into(), json!(node.path("elsewhere")))]);
    done(plan_install(&InstallOptions { entry, ..node.installing() }));
    fs::create_dir_all(node.path("elsewhere/attachments/abc")).unwrap();
    assert!(plan_uninstall(&UninstallOptions { purge: true, ..node.uninstalling() }).is_err());
    node.uninstall();
    assert!(node.path("bin/quarantine").exists());
}

#[test]
fn changes_that_others_made_in_between_stay() {
    let node = Node::with("10-a.conflist", plain());
    node.install();
    let theirs = |text: &str| {
        text.replace("\"name\": \"n\"", "\"name\": \"other\"")
            .replace("\n  ]", ",\n    { \"type\": \"istio-cni\" }\n  ]")
    };
    node.write("net.d/10-a.conflist", theirs(&node.read("net.d/10-a.conflist")));
    let again = node.install();
    assert!(again.is_empty());
    assert!(again.notes().iter().any(|note| note.contains("istio-cni runs after")), "{:?}", again.notes());
    drop(again);
    let plan = node.uninstall();
    assert!(plan.notes().iter().any(|note| note.contains("only the entry is taken out")), "{:?}", plan.notes());
    assert_eq!(node.read("net.d/10-a.conflist"), theirs(plain()));
    assert!(!node.path("net.d/10-a.conflist.before-quarantine").exists());
}

#[test]
fn a_converted_file_that_others_changed_stays_a_chain() {
    let node = Node::with("10-a.conf", SINGLE);
    node.install();
    let list = node.read("net.d/10-a.conflist");
    node.write("net.d/10-a.conflist", list.replace("bridge", "ptp"));
    node.uninstall();
    let left: Value = serde_json::from_str(&node.read("net.d/10-a.conflist")).unwrap();
    assert_eq!(left["plugins"].as_array().unwrap().len(), 1);
    assert_eq!(left["plugins"][0]["type"], "ptp");
    assert!(!node.path("net.d/10-a.conf").exists());
}

#[test]
fn a_file_that_was_written_anew_is_edited_again_and_stays_when_uninstalled() {
    let node = Node::with("10-a.conflist", plain());
    node.install();
    let anew = plain().replace("bridge", "ptp");
    node.write("net.d/10-a.conflist", &anew);
    assert!(!node.install().is_empty());
    node.uninstall();
    assert_eq!(node.read("net.d/10-a.conflist"), anew, "the newer one is what is restored");

    node.install();
    node.write("net.d/10-a.conflist", plain());
    let plan = node.uninstall();
    assert!(plan.notes().iter().any(|note| note.contains("written anew")), "{:?}", plan.notes());
    drop(plan);
    assert_eq!(node.read("net.d/10-a.conflist"), plain());
    assert!(!node.path("net.d/10-a.conflist.before-quarantine").exists());

    // The same where a single plugin had become a chain.
    let node = Node::with("10-a.conf", SINGLE);
    node.install();
    node.write("net.d/10-a.conf", SINGLE.replace("bridge", "ptp"));
    node.uninstall();
    assert_eq!(node.read("net.d/10-a.conf"), SINGLE.replace("bridge", "ptp"));
    assert!(!node.path("net.d/10-a.conflist").exists());
}

#[test]
fn writers_of_their_own_configuration_are_named() {
    for (name, text) in testdata("shipped") {
        let node = Node::with(&format!("00-{name}"), text);
        let notes = node.install().notes().join("\n");
        let known =
            ["flannel", "calico", "cilium", "aws", "kindnet", "multus"].iter().find(|known| name.contains(*known));
        assert_eq!(
            notes.contains("writes this file") || notes.contains("generates this file"),
            known.is_some(),
            "{name}: {notes}"
        );
    }
}

#[test]
fn units_come_and_go() {
    let node = Node::with("10-a.conflist", plain());
    let before = node.tree();
    let options = InstallOptions { systemd: true, ..node.installing() };
    done(plan_install(&options));
    let agent = node.read("systemd/quarantine-agent.service");
    let start = format!(
        "ExecStart={} agent --state-dir {}",
        node.path("bin/quarantine").display(),
        node.path("state").display()
    );
    assert!(agent.lines().any(|line| line == start), "{agent}");
    assert!(plan_install(&options).unwrap().is_empty());
    fs::create_dir(node.path("systemd/multi-user.target.wants")).unwrap();
    symlink(
        node.path("systemd/quarantine-agent.service"),
        node.path("systemd/multi-user.target.wants/quarantine-agent.service"),
    )
    .unwrap();
    node.uninstall();
    fs::remove_dir(node.path("systemd/multi-user.target.wants")).expect("the link is gone");
    assert!(node.tree() == before);

    node.write("systemd/quarantine-agent.service", "[Service]\n");
    node.refuses(&options, "was not put there by quarantine");
}

#[test]
fn units_are_sound_and_confined() {
    let node = Node::with("10-a.conflist", plain());
    set_mode(&node.path("program"), 0o755);
    done(plan_install(&InstallOptions { systemd: true, ..node.installing() }));
    let analyze = |arguments: &[&str], units: &[&str]| {
        let units = units.iter().map(|unit| node.path(&format!("systemd/{unit}")));
        let output = Command::new("systemd-analyze").args(arguments).args(units).output();
        let output = output.expect("systemd-analyze is needed (Debian: systemd)");
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        assert!(output.status.success(), "{text}");
        text
    };
    let units =
        ["quarantine-agent.service", "quarantine-sync.service", "quarantine-sync.path", "quarantine-sync.timer"];
    assert_eq!(analyze(&["verify", "--man=no"], &units), "", "systemd has nothing to say");
    // Exposure in tenths, of 100 for a service with no protection at all.
    analyze(&["security", "--offline=true", "--threshold=25"], &units[..1]);
    analyze(&["security", "--offline=true", "--threshold=25"], &units[1..2]);
}

#[test]
fn the_state_directory_goes_only_when_asked_and_unused() {
    let node = Node::with("10-a.conflist", plain());
    let before = node.tree();
    let state = |marks: &[&str]| {
        fs::create_dir_all(node.path("state/isolated")).unwrap();
        fs::create_dir_all(node.path("state/attachments")).unwrap();
        marks.iter().for_each(|mark| node.write(&format!("state/isolated/{mark}"), ""));
    };
    let purging = UninstallOptions { purge: true, ..node.uninstalling() };
    node.install();
    state(&["some-pod", ".temporary"]);
    node.uninstall();
    assert!(node.path("state/isolated/some-pod").exists());

    let error = plan_uninstall(&purging).unwrap_err().to_string();
    assert!(error.contains("1 isolated (some-pod)") && error.contains("--yes"), "{error}");
    done(plan_uninstall(&UninstallOptions { yes: true, ..purging.clone() }));
    assert!(node.tree() == before);

    state(&[]);
    node.write("state/precious", "not the plugin's");
    done(plan_uninstall(&purging));
    assert_eq!(node.read("state/precious"), "not the plugin's");
    assert!(!node.path("state/isolated").exists());
}

#[test]
fn a_file_that_is_written_anew_while_it_is_edited_is_not_overwritten() {
    let node = Node::with("10-a.conflist", plain());
    let plan = plan_install(&node.installing()).unwrap();
    let anew = plain().replace("bridge", "ptp");
    node.write("net.d/10-a.conflist", &anew);
    let error = plan.apply().unwrap_err().to_string();
    assert!(error.contains("changed meanwhile") && error.contains("run the same command again"), "{error}");
    drop(plan);
    assert_eq!(node.read("net.d/10-a.conflist"), anew);
    node.install();
    node.uninstall();
    assert_eq!(node.read("net.d/10-a.conflist"), anew);
    assert!(!node.tree().keys().any(|path| path.to_string_lossy().contains("quarantine-new")));
}

#[test]
fn two_at_once_do_not_mix() {
    let node = Node::with("10-a.conflist", plain());
    let first = plan_install(&node.installing()).unwrap();
    node.refuses(&node.installing(), "another installation");
    first.apply().unwrap();
    drop(first);
    assert!(node.install().is_empty());
}

#[test]
fn the_commands_install_themselves_and_go_again() {
    let node = Node::with("10-a.conflist", plain());
    let before = node.tree();
    let (succeeded, said) = quarantine(&node, &["install", "--dry-run", "--host-guard", "require"]);
    assert!(succeeded && said.contains("\n+    {\"type\":\"quarantine\",\"hostGuard\":\"require\"}\n"), "{said}");
    assert!(node.tree() == before, "a dry run changed something");

    let (succeeded, said) = quarantine(&node, &["install"]);
    assert!(succeeded && said.contains("Pods that run already are not covered"), "{said}");
    let version = Command::new(node.path("bin/quarantine")).arg("--version").output().unwrap();
    assert!(version.status.success(), "what was installed runs");
    let (succeeded, said) = quarantine(&node, &["install"]);
    assert!(succeeded && said.contains("nothing to do"), "{said}");

    let (succeeded, said) = quarantine(&node, &["install", "--host-guard", "off"]);
    assert!(!succeeded && said.starts_with("quarantine: ") && said.contains("uninstall"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");

    let (succeeded, said) = quarantine(&node, &["uninstall"]);
    assert!(succeeded, "{said}");
    assert!(node.tree() == before, "something is left, or was changed");
    let (succeeded, said) = quarantine(&node, &["uninstall"]);
    assert!(succeeded && said.contains("nothing to do"), "{said}");
}

#[test]
fn settings_that_the_plugin_would_refuse_are_refused() {
    let node = Node::with("10-a.conflist", plain());
    node.write("policy", r#"{ "probes": { "ports": [8080] } }"#);
    let policy = node.path("policy");
    let arguments = ["install", "--policy", policy.to_str().unwrap(), "--state-dir", "/srv/q"];
    let (succeeded, said) = quarantine(&node, &arguments);
    assert!(succeeded, "{said}");
    let list: Value = serde_json::from_str(&node.read("net.d/10-a.conflist")).unwrap();
    let wanted = json!({ "type": "quarantine", "stateDir": "/srv/q", "policy": { "probes": { "ports": [8080] } } });
    assert_eq!(list["plugins"][1], wanted);
    assert!(quarantine(&node, &["uninstall"]).0);

    let before = node.tree();
    node.write("policy", r#"{ "probe": true }"#);
    let (succeeded, said) = quarantine(&node, &arguments);
    assert!(!succeeded && said.contains("probe"), "{said}");
    node.write("policy", "{");
    let (succeeded, said) = quarantine(&node, &arguments);
    assert!(!succeeded && said.contains("is not JSON"), "{said}");
    let (succeeded, said) = quarantine(&node, &["install", "--state-dir", "relative"]);
    assert!(!succeeded && said.contains("absolute"), "{said}");
    node.write("policy", r#"{ "probes": { "ports": [8080] } }"#);
    assert!(node.tree() == before);
}
