//! Who may own and write the state directory.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use serde_json::json;

use crate::lab::Node;

/// ADD makes what is not there, for root alone, whatever the umask is: the directories above too, since who can write
/// those can put another one in its place.
#[test]
fn add_creates_it_for_root_alone() {
    let node = Node::new();
    let pod = node.pod();
    let state = node.state_dir().join("a/b/state");
    let mut config = pod.chained_config(&node);
    config["stateDir"] = json!(state);
    let text = config.to_string();
    let file = node.state_dir().join("config.json");
    std::fs::write(&file, text).unwrap();
    node.netns.sh(&format!(
        "umask 0; CNI_COMMAND=ADD CNI_CONTAINERID={} CNI_NETNS={} CNI_IFNAME=eth0 {} < {}",
        pod.id,
        pod.path().display(),
        crate::lab::program(),
        file.display()
    ));
    let mut pending = vec![node.state_dir().join("a")];
    while let Some(path) = pending.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!(metadata.uid(), 0, "{}", path.display());
        assert_eq!(metadata.mode() & 0o022, 0, "{}: {:o}", path.display(), metadata.mode());
        if metadata.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    assert_eq!(std::fs::metadata(&state).unwrap().mode() & 0o777, 0o700);
    assert!(state.join(format!("attachments/{}/eth0.json", pod.id)).is_file());
}

/// ADD and CHECK refuse (101) a directory that someone other than root can write; the message names it and its mode.
/// `sync` refuses too.
#[test]
fn one_that_others_can_write_is_refused() {
    for part in ["", "isolated", "attachments"] {
        for mode in [0o770, 0o707, 0o777, 0o1777] {
            let node = Node::new();
            let pod = node.pod();
            node.plugin("ADD", &pod).result();
            let directory = node.state_dir().join(part);
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::set_permissions(&directory, PermissionsExt::from_mode(mode)).unwrap();
            let named = directory.to_str().unwrap().trim_end_matches('/').to_owned();
            let other = node.pod();
            for (verb, pod) in [("ADD", &other), ("CHECK", &pod)] {
                let error = node.plugin(verb, pod).error();
                assert_eq!(error.code, 101, "{verb} {part:?} {mode:o}: {error:?}");
                error.says(&[&named, &format!("{mode:o}")]);
            }
            other.is_untouched();
            let sync = node.try_sync();
            assert!(!sync.status.success(), "{part:?} {mode:o}: {sync:?}");
        }
    }
}

/// The same for one that belongs to someone else, whatever its mode.
#[test]
fn one_of_someone_else_is_refused() {
    for part in ["", "isolated", "attachments"] {
        let node = Node::new();
        let pod = node.pod();
        let directory = node.state_dir().join(part);
        std::fs::create_dir_all(&directory).unwrap();
        chown(&directory, Some(1000), None).unwrap();
        let error = node.plugin("ADD", &pod).error();
        assert_eq!(error.code, 101, "{part:?}: {error:?}");
        error.says(&[directory.to_str().unwrap().trim_end_matches('/'), "1000"]);
        pod.is_untouched();
    }
}

/// That others may read it is the operator's choice.
#[test]
fn one_that_others_can_read_is_taken() {
    let node = Node::new();
    let pod = node.pod();
    for part in ["", "isolated", "attachments"] {
        let directory = node.state_dir().join(part);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).unwrap();
    }
    for verb in ["ADD", "CHECK", "DEL"] {
        assert!(node.plugin(verb, &pod).status.success(), "{verb}");
    }
}

/// What a link leads to counts: a directory that others can write is no better behind one.
#[test]
fn a_link_to_one_that_others_can_write_is_refused() {
    for part in ["isolated", "attachments"] {
        let node = Node::new();
        let pod = node.pod();
        let open = tempfile::tempdir().unwrap();
        std::fs::set_permissions(open.path(), PermissionsExt::from_mode(0o777)).unwrap();
        symlink(open.path(), node.state_dir().join(part)).unwrap();
        let error = node.plugin("ADD", &pod).error();
        assert_eq!(error.code, 101, "{part}: {error:?}");
        pod.is_untouched();
    }
}

/// A file where a directory should be, and no way to make one.
#[test]
fn one_that_cannot_be_is_refused() {
    let node = Node::new();
    let pod = node.pod();
    let file = node.state_dir().join("file");
    std::fs::write(&file, "").unwrap();
    for (path, in_the_way) in
        [(file.clone(), file.clone()), (file.join("below"), file), ("/proc/self/x".into(), "/proc/self/x".into())]
    {
        let mut config = pod.chained_config(&node);
        config["stateDir"] = json!(path);
        let error = node.call("ADD").sandbox(&pod).config(config).run().error();
        assert_eq!(error.code, 101, "{error:?}");
        error.says(&[in_the_way.to_str().unwrap()]);
        pod.is_untouched();
    }
}
