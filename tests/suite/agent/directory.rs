//! The state directory: taken away, replaced, full, on file systems of every kind.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

use super::{Agent, added, added_as, await_kernel, await_tables};
use crate::lab::{Node, Pod, Tables};

fn isolated(node: &Node, pod: &Pod, why: &str) {
    node.mark(&pod.id, "");
    await_tables(pod, Tables::Isolated, why);
}

fn released(node: &Node, pod: &Pod, why: &str) {
    fs::remove_file(node.mark_path(&pod.id)).unwrap();
    await_tables(pod, Tables::Released, why);
}

/// All marks are gone with their directory; those in a new one hold.
#[test]
fn isolated_is_deleted_and_made_anew() {
    let node = Node::new();
    let pod = added(&node);
    let _agent = Agent::on(&node);
    for round in 0..5 {
        isolated(&node, &pod, "marked");
        fs::remove_dir_all(node.state_dir().join("isolated")).unwrap();
        await_tables(&pod, Tables::Released, &format!("deleted, {round}"));
    }
    isolated(&node, &pod, "in the new one");
    assert!(pod.is_cut_off_from(&node));
    released(&node, &pod, "in the new one");
}

/// A directory with marks is put in the other one's place.
#[test]
fn isolated_is_replaced() {
    let node = Node::new();
    let (one, two) = (added(&node), added(&node));
    let _agent = Agent::on(&node);
    isolated(&node, &one, "in the first");
    let path = node.state_dir().join("isolated");
    let (away, prepared) = (node.state_dir().join("away"), node.state_dir().join("prepared"));
    fs::create_dir(&prepared).unwrap();
    fs::write(prepared.join(&two.id), "").unwrap();
    fs::rename(&path, &away).unwrap();
    // The agent may have made one meanwhile; an empty directory can be renamed over.
    fs::rename(&prepared, &path).unwrap();
    await_tables(&two, Tables::Isolated, "in the second");
    await_tables(&one, Tables::Released, "no more marked");
    isolated(&node, &one, "in the second");
    released(&node, &two, "in the second");
    // What happens in the one that was taken away is nothing to it.
    fs::remove_file(away.join(&one.id)).unwrap();
    released(&node, &one, "at last");
}

/// A sandbox without a record stays as it is; it is found again when its record is back.
#[test]
fn attachments_are_replaced() {
    let node = Node::new();
    let (one, two) = (added_as(&node, "uid-1"), added(&node));
    let agent = Agent::on(&node);
    isolated(&node, &one, "before");
    let (path, away) = (node.state_dir().join("attachments"), node.state_dir().join("away"));
    fs::rename(&path, &away).unwrap();
    // The agent makes a new one; ADD writes there.
    assert!(await_kernel(|| path.exists()), "{:#?}", agent.lines());
    let three = added(&node);
    isolated(&node, &three, "added meanwhile");
    assert_eq!(one.tables(), Tables::Isolated, "no record is no release");
    fs::rename(path.join(&three.id), away.join(&three.id)).unwrap();
    fs::rename(&path, node.state_dir().join("empty")).unwrap();
    let _ = fs::remove_dir(&path);
    fs::rename(&away, &path).unwrap();
    isolated(&node, &two, "the records are back");
    for pod in [&one, &two, &three] {
        released(&node, pod, "the records are back");
    }
}

/// The whole state directory goes and comes back; meanwhile nobody is released.
#[test]
fn the_state_directory_is_taken_away() {
    let node = Node::new();
    let (one, two) = (added(&node), added(&node));
    let agent = Agent::on(&node);
    isolated(&node, &one, "before");
    let away = node.state_dir().with_extension("away");
    fs::rename(node.state_dir(), &away).unwrap();
    // It finds that it is gone, and makes one, or waits.
    let marker = added_elsewhere(&node, &agent);
    assert!(marker, "{:#?}", agent.lines());
    assert_eq!(one.tables(), Tables::Isolated);
    let _ = fs::remove_dir_all(node.state_dir());
    fs::rename(&away, node.state_dir()).unwrap();
    isolated(&node, &two, "it is back");
    released(&node, &one, "it is back");
}

/// The agent has noticed that the state directory is not there.
fn added_elsewhere(node: &Node, agent: &Agent) -> bool {
    await_kernel(|| node.state_dir().join("isolated").exists() || agent.count(&["event=state-directory-lost"]) > 0)
}

/// More happens than the kernel keeps for a reader that is not there: it looks at everything then.
#[test]
fn events_are_lost() {
    let node = Node::new();
    let (one, two) = (added(&node), added(&node));
    let agent = Agent::on(&node);
    isolated(&node, &one, "before");
    agent.signal(Signal::SIGSTOP);
    let limit: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    let (junk, other) = (node.mark_path("junk-1"), node.mark_path("junk-2"));
    // Each turn makes four events at least.
    for _ in 0..limit / 4 + 100 {
        fs::write(&junk, "").unwrap();
        fs::rename(&junk, &other).unwrap();
        fs::remove_file(&other).unwrap();
    }
    // Of these nothing is heard any more.
    node.mark(&two.id, "");
    fs::remove_file(node.mark_path(&one.id)).unwrap();
    agent.signal(Signal::SIGCONT);
    await_tables(&two, Tables::Isolated, "marked unheard");
    await_tables(&one, Tables::Released, "released unheard");
    isolated(&node, &one, "heard again");
}

/// Anything else that lies in the directories is ignored.
#[test]
fn junk_is_passed_over() {
    let node = Node::new();
    let pod = added(&node);
    let litter = |round: &str| {
        let isolated = node.mark_path("x").parent().unwrap().to_owned();
        let attachments = node.state_dir().join("attachments");
        for directory in [&isolated, &attachments] {
            fs::write(directory.join(OsStr::from_bytes(b"\xff\xfe name")), "").unwrap();
            fs::write(directory.join(format!("{round} with\nall \"sorts\"")), "{}").unwrap();
            fs::write(directory.join("x".repeat(255)), "").unwrap();
            let _ = symlink(directory, directory.join("loop"));
        }
        let _ = fs::create_dir(attachments.join("half-a-sandbox"));
        let _ = nix::unistd::mkfifo(&attachments.join("half-a-sandbox/eth0.json"), Mode::S_IRWXU);
        let _ = fs::create_dir(attachments.join("empty"));
        fs::write(attachments.join(&pod.id).join(format!("{round}.json")), "{\"junk\": 1}").unwrap();
    };
    litter("before");
    let _agent = Agent::on(&node);
    isolated(&node, &pod, "junk was there");
    litter("after");
    released(&node, &pod, "junk came");
    isolated(&node, &pod, "junk came");
}

/// A damaged record releases nobody.
#[test]
fn a_spoilt_record_releases_nobody() {
    let node = Node::new();
    let (pod, other) = (added(&node), added(&node));
    let agent = Agent::on(&node);
    isolated(&node, &pod, "before");
    let record = node.record_path(&pod);
    let whole = fs::read(&record).unwrap();
    let replace = |content: &[u8]| {
        let temporary = record.with_file_name(".new");
        fs::write(&temporary, content).unwrap();
        fs::rename(temporary, &record).unwrap();
    };
    replace(b"{");
    fs::write(node.mark_path(&pod.id), "").unwrap();
    agent.signal(Signal::SIGHUP);
    isolated(&node, &other, "what came after");
    assert_eq!(pod.tables(), Tables::Isolated);
    replace(&whole);
    released(&node, &pod, "the record is back");
}

/// The mark goes while the record cannot be read: this is noticed once it can be, also by an agent that never could.
#[test]
fn a_release_waits_for_the_record() {
    for has_restarted in [false, true] {
        let node = Node::new();
        let (pod, other) = (added(&node), added(&node));
        let mut agent = Agent::on(&node);
        isolated(&node, &pod, "before");
        let record = node.record_path(&pod);
        let whole = fs::read(&record).unwrap();
        fs::write(&record, "{").unwrap();
        agent.signal(Signal::SIGHUP);
        fs::remove_file(node.mark_path(&pod.id)).unwrap();
        isolated(&node, &other, "what came after");
        assert_eq!(pod.tables(), Tables::Isolated);
        if has_restarted {
            agent.kill();
            agent = Agent::on(&node);
        }
        let temporary = record.with_file_name(".new");
        fs::write(&temporary, whole).unwrap();
        fs::rename(temporary, &record).unwrap();
        await_tables(&pod, Tables::Released, "the record is back");
        drop(agent);
    }
}

/// Runs `body` with a node whose state directory is a file system of its own, in a mount namespace of its own.
fn on_file_system(make: impl FnOnce(&Path) + Send, body: impl FnOnce(&Node) + Send) {
    let outcome = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            // What others unmount goes here too; what is mounted here stays here.
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>).unwrap();
            let node = Node::new();
            make(node.state_dir());
            body(&node);
        });
        inside.join()
    });
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn tmpfs(at: &Path, options: &str) {
    let options = format!("mode=0700,{options}");
    mount(Some("quarantine"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
}

fn marks_are_obeyed(node: &Node) {
    let pod = added_as(node, "uid-1");
    assert!(pod.reaches_node(node), "the control");
    let _agent = Agent::on(node);
    for key in ["uid-1", "shop_web", pod.id.as_str()] {
        for text in ["", r#"{"reason": "x"}"#] {
            node.mark(key, text);
            await_tables(&pod, Tables::Isolated, key);
            assert!(pod.is_cut_off_from(node), "{key}");
            fs::remove_file(node.mark_path(key)).unwrap();
            await_tables(&pod, Tables::Released, key);
        }
    }
    fs::remove_dir_all(node.state_dir().join("isolated")).unwrap();
    await_kernel(|| node.state_dir().join("isolated").exists());
    isolated(node, &pod, "in a new directory");
}

#[test]
fn on_tmpfs() {
    on_file_system(|at| tmpfs(at, "size=1m"), marks_are_obeyed);
}

#[test]
fn on_overlayfs() {
    let overlay = |at: &Path| {
        // Its layers have to lie on a file system that can bear them; the lower one has the directories already.
        tmpfs(at, "size=4m");
        let layer = |name: &str| {
            let path = at.join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let (lower, upper, work) = (layer("lower"), layer("upper"), layer("work"));
        for name in ["isolated", "attachments"] {
            fs::create_dir(lower.join(name)).unwrap();
        }
        for path in [&lower, &upper, &lower.join("isolated"), &lower.join("attachments")] {
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        }
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        mount(Some("overlay"), at, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
    };
    on_file_system(overlay, marks_are_obeyed);
}

/// Nothing can be written any more: a mark that could be made isolates, even one that stayed empty, and what could not be
/// made is reported.
#[test]
fn on_a_full_disk() {
    on_file_system(
        |at| tmpfs(at, "size=256k,nr_inodes=64"),
        |node| {
            let (one, two) = (added(node), added(node));
            assert!(one.reaches_node(node) && two.reaches_node(node), "the control");
            let agent = Agent::on(node);
            isolated(node, &one, "before it is full");
            released(node, &one, "before it is full");
            let fill = || {
                let mut number = 0;
                // First the bytes, then the names.
                let _ = fs::write(node.state_dir().join("ballast"), vec![0; 1 << 20]);
                while fs::write(node.state_dir().join(format!("ballast{number}")), "").is_ok() {
                    number += 1;
                }
            };
            fill();
            // One name is left: `touch` works, and what is written to it does not get there.
            fs::remove_file(node.state_dir().join("ballast0")).unwrap();
            let mark = node.mark_path(&one.id);
            // A program that another test is just starting may hold what was removed until it runs.
            let is_made = await_kernel(|| {
                fs::write(&mark, r#"{"policy": {"probes": false}}"#).unwrap_err();
                mark.exists()
            });
            assert!(is_made && fs::read(&mark).unwrap().is_empty(), "the control: full but for one name");
            await_tables(&one, Tables::Isolated, "a mark that could be made but not written");
            assert!(one.is_cut_off_from(node));
            // No name is left.
            fs::write(node.mark_path(&two.id), "").unwrap_err();
            let state_dir = node.state_dir().to_str().unwrap();
            let run = crate::lab::quarantine(&node.netns, &["isolate", &two.id, "--state-dir", state_dir]);
            assert!(!run.status.success(), "{run:?}");
            assert!(run.stderr.contains("No space left"), "{run:?}");
            assert_eq!(two.tables(), Tables::Released);
            // The agent is started anew on the full disk, and releases and isolates.
            agent.kill();
            let _agent = Agent::on(node);
            assert_eq!(one.tables(), Tables::Isolated);
            released(node, &one, "on a full disk");
            // What the agent keeps of the first (captures, what its connections were held by) may have taken its name.
            (1..9).for_each(|number| fs::remove_file(node.state_dir().join(format!("ballast{number}"))).unwrap());
            isolated(node, &two, "by a name that is free now");
        },
    );
}

/// The state directory is removed under a running agent: nobody is released, and its marks come back with it, so that a
/// new sandbox of the same pod is isolated before its first packet.
#[test]
fn marks_come_back_with_the_state_directory() {
    let node = Node::new();
    let (pod, next) = (added_as(&node, "uid-1"), node.pod());
    // What went with the directory is told by its age from what was removed before.
    let agent = Agent::start_with(&node.netns, node.state_dir(), &["--release-after", "2s"]);
    node.mark("uid-1", r#"{"reason": "beacon"}"#);
    await_tables(&pod, Tables::Isolated, "marked");
    // It may be filled again while it is being removed.
    assert!(await_kernel(|| fs::remove_dir_all(node.state_dir()).is_ok() || !node.state_dir().exists()));
    agent.await_line(&["event=mark-put-back", "mark=uid-1"]);
    assert_eq!(fs::read_to_string(node.mark_path("uid-1")).unwrap(), r#"{"reason": "beacon"}"#);
    assert_eq!(pod.tables(), Tables::Isolated, "no record is no release");
    node.call("ADD").sandbox(&next).pod_uid("uid-1").config(next.chained_config(&node)).run().result();
    assert_eq!(next.tables(), Tables::Isolated);
    // The control: a mark that is removed by itself does not come back.
    fs::remove_file(node.mark_path("uid-1")).unwrap();
    await_tables(&next, Tables::Released, "unmarked");
    assert!(!node.mark_path("uid-1").exists());
}

/// Others have used up the inotify instances of the user: the agent lists the state directory every second, and says so.
#[test]
fn without_an_inotify_instance_it_polls() {
    let node = Node::new();
    // In a user namespace of its own, which has limits of its own, and in a netns of that. The pod is out of its reach
    // there: that it tries is what shows that it saw the mark.
    let limit = "echo 0 >/proc/sys/user/max_inotify_instances; exec \"$@\"";
    let agent = Agent::start_below(
        &node.netns,
        node.state_dir(),
        &["unshare", "--user", "--map-root-user", "--net", "sh", "-c", limit, "sh"],
    );
    agent.await_line(&["event=polling", "max_inotify_instances"]);
    let pod = added(&node);
    node.mark(&pod.id, "");
    agent.await_line(&["event=failed", &pod.id, "cannot enter the network namespace"]);
}
