//! docs/protocol.md, part D: ADD.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::vectors::{VERSIONS, Vector};
use crate::lab::{Node, Pod, Run, Tables, lone_interface, ruleset, tables};

/// A result as text, `cniVersion` apart: key order, array order and numbers count as they are written.
fn split(result: &Value) -> (String, Value) {
    let mut rest = result.clone();
    let version = rest.as_object_mut().unwrap().shift_remove("cniVersion").unwrap_or_default();
    (rest.to_string(), version)
}

/// D19: no prevResult is code 7 (there is nothing to chain to); one that is no object 6 or 7.
#[test]
fn without_a_prev_result_it_refuses() {
    let node = Node::new();
    let pod = node.pod();
    let error = node.call("ADD").sandbox(&pod).config(node.config()).run().error();
    assert_eq!(error.code, 7, "{error:?}");
    error.says(&["prevResult"]);
    for (value, allowed) in [
        (Value::Null, &[7][..]),
        (json!("x"), &[6, 7]),
        (json!(7), &[6, 7]),
        (json!([]), &[6, 7]),
        (json!(true), &[6, 7]),
    ] {
        let mut config = node.config();
        config["prevResult"] = value.clone();
        let error = node.call("ADD").sandbox(&pod).config(config).run().error();
        assert!(allowed.contains(&error.code), "{value}: {error:?}");
        error.says(&["prevResult"]);
    }
    node.is_untouched();
    pod.is_untouched();
}

/// D19: a prevResult whose parts have the wrong type is refused in the same way, or passed through; nothing else.
#[test]
fn a_prev_result_with_parts_of_the_wrong_type() {
    let node = Node::new();
    let pod = node.pod();
    for part in [
        json!({ "interfaces": 7 }),
        json!({ "interfaces": [7] }),
        json!({ "interfaces": [{ "name": 7 }] }),
        json!({ "interfaces": [{ "name": "../x", "sandbox": pod.path() }] }),
        json!({ "interfaces": [{ "name": "eth0", "sandbox": 7 }] }),
        json!({ "ips": {} }),
        json!({ "ips": [{ "address": 7 }] }),
        json!({ "ips": [{ "address": "not an address" }] }),
        json!({ "ips": [{ "address": "10.0.0.1/24", "interface": 99 }] }),
        json!({ "ips": [{ "address": "10.0.0.1/24", "interface": -1 }] }),
        json!({ "ips": [{ "address": "10.0.0.1/24", "interface": "0" }] }),
        json!({ "cniVersion": 7 }),
    ] {
        let mut config = node.config();
        config["prevResult"] = part.clone();
        let outcome = node.call("ADD").sandbox(&pod).config(config).run();
        if outcome.status.success() {
            outcome.result();
            node.plugin("DEL", &pod).succeeded_silently();
        } else {
            let error = outcome.error();
            assert!([6, 7].contains(&error.code), "{part}: {error:?}");
        }
        node.is_untouched();
        pod.is_untouched();
    }
}

/// D20, D21, D22, B16: the vectors of every version; what comes out is what went in, in the config's version.
#[test]
fn the_result_is_the_prev_result() {
    for version in VERSIONS {
        let node = Node::new();
        for vector in Vector::of(version) {
            let pod = node.pod();
            let config = vector.config(&node, &pod);
            let outcome = node.call("ADD").sandbox(&pod).config(config).run();
            if vector.name.ends_with("/other-family") && !outcome.status.success() {
                assert!([6, 7].contains(&outcome.error().code), "{}: {outcome:?}", vector.name);
                continue;
            }
            let (printed, wanted) = (outcome.result(), vector.result(&pod));
            if vector.name.ends_with("/other-family") {
                // A key that is added has no place of its own.
                assert_eq!(printed, wanted, "{}", vector.name);
            } else {
                assert_eq!(split(&printed), split(&wanted), "{}", vector.name);
            }
            assert_eq!(pod.tables(), Tables::Released, "{}", vector.name);
            node.plugin("DEL", &pod).succeeded_silently();
        }
        node.is_untouched();
    }
}

/// D20: one document also when it is large (a result that does not fit a pipe at once).
#[test]
fn a_large_result_is_printed_whole() {
    let node = Node::new();
    let pod = node.pod();
    let mut config = pod.chained_config(&node);
    config["prevResult"]["x-large"] = json!("x".repeat(1 << 20));
    config["prevResult"]["routes"] =
        (0..5000).map(|n| json!({ "dst": format!("10.{}.{}.0/24", n / 256, n % 256) })).collect();
    let outcome = node.call("ADD").sandbox(&pod).config(config.clone()).run();
    assert_eq!(split(&outcome.result()), split(&config["prevResult"]));
}

/// Marked before ADD, the sandbox is awake when ADD returns; not marked, dormant.
#[test]
fn it_installs_awake_where_marked() {
    let node = Node::new();
    let (released, isolated) = (node.pod(), node.pod());
    node.mark(&isolated.id, "");
    for pod in [&released, &isolated] {
        assert!(pod.reaches_node(&node), "the control");
        node.plugin("ADD", pod).result();
    }
    assert_eq!(released.tables(), Tables::Released);
    assert!(released.reaches_node(&node));
    assert_eq!(isolated.tables(), Tables::Isolated);
    assert!(isolated.is_cut_off_from(&node));
    assert!(isolated.loopback_passes());
}

/// ADD again for the same attachment, as runtimes do that lost their cache: it succeeds and CHECK does.
#[test]
fn it_can_be_repeated() {
    let node = Node::new();
    let pod = node.pod();
    for _ in 0..3 {
        node.plugin("ADD", &pod).result();
        node.plugin("CHECK", &pod).succeeded_silently();
    }
    node.plugin("DEL", &pod).succeeded_silently();
    node.is_untouched();
    pod.is_untouched();
}

#[track_caller]
fn refuses_netns(outcome: &Run, path: &Path) {
    let error = outcome.error();
    assert!([3, 4, 8].contains(&error.code) || error.code >= 100, "{}: {error:?}", path.display());
    error.says(&[path.to_str().unwrap()]);
}

/// D23: what is no network namespace is refused, and nothing is left behind.
#[test]
fn what_is_no_netns_is_refused() {
    let node = Node::new();
    let pod = node.pod();
    let file = node.state_dir().join("file");
    std::fs::write(&file, "").unwrap();
    let fifo = node.state_dir().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let paths: [PathBuf; 10] = [
        "/run/netns/quarantine-protocol-missing".into(),
        file.clone(),
        file.join("below"),
        fifo,
        node.state_dir().into(),
        "/dev/null".into(),
        "/proc/self/ns/mnt".into(),
        "/proc/self/ns/uts".into(),
        "/proc/self/ns/user".into(),
        "relative/path".into(),
    ];
    for path in paths {
        for verb in ["ADD", "CHECK"] {
            let outcome = node.call(verb).sandbox(&pod).env("CNI_NETNS", &path).config(pod.chained_config(&node)).run();
            refuses_netns(&outcome, &path);
        }
        node.is_untouched();
    }
    pod.is_untouched();
}

/// D24: the plugin's own namespace is the node's: refused before anything is done, with one JSON document.
#[test]
fn the_nodes_own_netns_is_refused() {
    let node = Node::new();
    lone_interface(&node.netns, "eth0");
    let pod = node.pod();
    for (index, path) in
        [node.netns.path(), "/proc/self/ns/net".into(), "/proc/thread-self/ns/net".into()].iter().enumerate()
    {
        for marked in [false, true] {
            if marked {
                node.mark(&pod.id, "");
            }
            for given in [None, Some("0"), Some("false"), Some("yes"), Some("")] {
                let mut call = node.call("ADD").sandbox(&pod).env("CNI_NETNS", path).config(pod.chained_config(&node));
                if let Some(given) = given {
                    call = call.env("CNI_NETNS_OVERRIDE", given);
                }
                let error = call.run().error();
                assert!([4, 8].contains(&error.code), "{index} {given:?}: {error:?}");
                assert_eq!(node.records(), [""; 0]);
                assert_eq!(ruleset(&node.netns), "");
            }
        }
    }
    // DEL for it neither fails nor touches the node (E27).
    node.call("DEL").sandbox(&pod).env("CNI_NETNS", node.netns.path()).run().succeeded_silently();
    assert_eq!(ruleset(&node.netns), "");
}

/// D24: CNI_NETNS_OVERRIDE=1 or true, in any case, allows it.
#[test]
fn the_nodes_own_netns_can_be_allowed() {
    for value in ["1", "true", "TRUE", "True"] {
        let node = Node::new();
        lone_interface(&node.netns, "eth0");
        let pod = node.pod();
        let call = |verb| {
            let path = node.netns.path();
            node.call(verb)
                .sandbox(&pod)
                .env("CNI_NETNS", path)
                .env("CNI_NETNS_OVERRIDE", value)
                .config(pod.chained_config(&node))
                .run()
        };
        call("ADD").result();
        assert_eq!(tables(&node.netns), Tables::Released, "{value}");
        call("CHECK").succeeded_silently();
        call("DEL").succeeded_silently();
        node.is_untouched();
    }
}

/// A process that lives in a namespace, so that `/proc/<pid>/ns/net` is one.
struct Inhabitant(Child);

impl Inhabitant {
    fn of(pod: &Pod) -> Self {
        Self(pod.netns.command("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Inhabitant {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A bind mount of a namespace, as Docker and CRI-O make theirs.
struct BindMount(tempfile::TempDir);

impl BindMount {
    fn of(pod: &Pod) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("4f3c9d");
        File::create(&file).unwrap();
        assert!(Command::new("mount").arg("--bind").arg(pod.path()).arg(&file).status().unwrap().success());
        Self(directory)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("4f3c9d")
    }
}

impl Drop for BindMount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

/// D25: every kind of path that runtimes use; the calls have neither PATH nor HOME.
#[test]
fn every_kind_of_netns_path_works() {
    let node = Node::new();
    let pod = node.pod();
    let inhabitant = Inhabitant::of(&pod);
    let mount = BindMount::of(&pod);
    let linked = mount.0.path().join("link");
    std::os::unix::fs::symlink(pod.path(), &linked).unwrap();
    let paths = [
        pod.path(),
        Path::new("/var/run/netns").join(pod.netns.name()),
        format!("/proc/{}/ns/net", inhabitant.0.id()).into(),
        format!("/proc/{0}/task/{0}/ns/net", inhabitant.0.id()).into(),
        mount.path(),
        linked,
    ];
    for path in paths {
        for verb in ["ADD", "CHECK", "DEL"] {
            let mut config = pod.chained_config(&node);
            config["prevResult"]["interfaces"][1]["sandbox"] = json!(path);
            let outcome = node.call(verb).sandbox(&pod).env("CNI_NETNS", &path).config(config).run();
            assert!(outcome.status.success(), "{verb} {}: {outcome:?}", path.display());
            let expected = if verb == "DEL" { Tables::Absent } else { Tables::Released };
            assert_eq!(pod.tables(), expected, "{verb} {}", path.display());
        }
    }
}

/// D26: a result that nobody can have read is no success. What it did is undone, by itself or by DEL.
#[test]
fn a_result_that_is_not_written_is_a_failure() {
    let node = Node::new();
    let pod = node.pod();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    for stdout in [Stdio::from(File::options().write(true).open("/dev/full").unwrap()), Stdio::from(writer)] {
        let outcome = node.call("ADD").sandbox(&pod).config(pod.chained_config(&node)).stdout(stdout).run();
        assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
        assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
        node.plugin("DEL", &pod).succeeded_silently();
        node.is_untouched();
        pod.is_untouched();
    }
    let full = File::options().write(true).open("/dev/full").unwrap();
    let version = node.call("VERSION").stdout(full).run();
    assert_eq!(version.status.code(), Some(1), "{version:?}");
}

/// D26: without privileges it is a clean error.
#[test]
fn unprivileged_is_a_clean_error() {
    let node = Node::new();
    let pod = node.pod();
    let (_guard, program) = super::status::reachable_program();
    for verb in ["ADD", "CHECK"] {
        let call = node.call(verb).sandbox(&pod).config(pod.chained_config(&node)).unprivileged(&program);
        let outcome = call.run();
        let error = outcome.error();
        assert!(error.code >= 100 || [3, 5, 8].contains(&error.code), "{verb}: {error:?}");
        assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
    }
    node.is_untouched();
    pod.is_untouched();
}

/// A failure undoes what it did. (`hostGuard: require` on a macvlan, which has no end on the host, while
/// marked.)
#[test]
fn a_failed_add_leaves_nothing() {
    let node = Node::new();
    let pod = node.pod();
    node.mark(&pod.id, "");
    node.netns.ip(&format!("link add link h0 name lone0 netns {} type macvlan mode bridge", pod.netns.name()));
    pod.netns.ip("link set lone0 up");
    let mut config = pod.chained_config(&node);
    config["hostGuard"] = json!("require");
    config["prevResult"]["interfaces"][1]["name"] = json!("lone0");
    let error = node.call("ADD").sandbox(&pod).env("CNI_IFNAME", "lone0").config(config).run().error();
    assert_eq!(error.code, 103, "{error:?}");
    assert_eq!(node.records(), [""; 0]);
    assert_eq!(ruleset(&node.netns), "");
    pod.is_untouched();
    assert_eq!(node.marks(), [pod.id.as_str()]);
}

/// Logs never reach stdout, as talkative as they may be.
#[test]
fn logs_stay_off_stdout() {
    let node = Node::new();
    let pod = node.pod();
    node.mark(&pod.id, "junk");
    for target in ["stderr", "syslog"] {
        let mut config = pod.chained_config(&node);
        config["log"] = json!({ "target": target, "level": "trace" });
        let call = |verb| node.call(verb).sandbox(&pod).config(config.clone()).run();
        call("ADD").result();
        call("CHECK").succeeded_silently();
        call("STATUS").succeeded_silently();
        call("GC").succeeded_silently();
        call("DEL").succeeded_silently();
    }
}
