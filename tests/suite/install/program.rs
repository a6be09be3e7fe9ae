//! What lies beside the configuration: the program, the units, the state directory.

use super::*;

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
    analyze(&["security", "--offline=true", "--threshold=26"], &units[..1]);
    analyze(&["security", "--offline=true", "--threshold=26"], &units[1..2]);
}

#[test]
fn the_state_directory_goes_only_when_asked_and_unused() {
    let node = Node::with("10-a.conflist", plain());
    let before = node.tree();
    let state = |marks: &[&str]| {
        fs::create_dir_all(node.path("state/isolated")).unwrap();
        fs::create_dir_all(node.path("state/attachments")).unwrap();
        fs::create_dir_all(node.path("state/index")).unwrap();
        node.write("state/index/c1", "");
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
fn the_commands_install_themselves_and_go_again() {
    let node = Node::with("10-a.conflist", plain());
    let before = node.tree();
    let (succeeded, said) = quarantine(&node, &["install", "--dry-run", "--host-guard", "require"]);
    assert!(succeeded && said.contains("\n+    {\"type\":\"quarantine\",\"hostGuard\":\"require\"}\n"), "{said}");
    assert!(node.tree() == before, "a dry run changed something");

    let (succeeded, said) = quarantine(&node, &["install", "--dry-run", "--no-adopt"]);
    assert!(succeeded && said.contains("\n+    {\"type\":\"quarantine\",\"adopt\":false}\n"), "{said}");
    assert!(!said.contains("so does the agent"), "{said}");

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
