//! Which file is edited, and what it is afterwards.

use super::*;

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
