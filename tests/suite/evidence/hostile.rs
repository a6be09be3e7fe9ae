//! Pods that would rather not be looked at.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::json;

use super::fuse::Fuse;
use super::{Collection, Process, sha256_of, with_evidence};
use crate::lab::{PATIENCE, Sandbox, Topology, eventually};

/// The program behind `sleep`, as one that runs by any name.
fn sleep() -> Vec<u8> {
    fs::read(fs::canonicalize("/bin/sleep").unwrap()).unwrap()
}

#[test]
fn names_that_would_deceive_are_shown_as_what_they_are() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("a\n\u{1b}[2J) R 1 \u{202e}exe");
    fs::copy("/bin/sleep", &program).unwrap();
    let process = Process::start(&topology.pod, program.to_str().unwrap(), &["1000"]);
    let collection = Collection::collect(&sandbox, &[]);
    let found = collection.process(process.pid());
    // The kernel keeps 15 bytes.
    assert_eq!(found["name"], "a\\u{a}\\u{1b}[2J) R 1 \\u{202e}");
    assert_eq!(found["parent"], std::process::id());
    let path = found["executable"]["path"].as_str().unwrap();
    assert!(path.ends_with("/a\\u{a}\\u{1b}[2J) R 1 \\u{202e}exe"), "{path}");
    let text = fs::read_to_string(collection.0.join("processes.json")).unwrap();
    assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'));
}

#[test]
fn an_executable_that_no_file_has_any_more_is_copied() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("implant");
    // Another content than the machine's own, so that it is its own hash.
    fs::write(&program, [&sleep()[..], b"deleted"].concat()).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let deleted_hash = sha256_of(&program);
    let deleted = Process::start(&topology.pod, program.to_str().unwrap(), &["1000"]);
    fs::remove_file(&program).unwrap();
    let mut memory = File::from(memfd_create(c"[kworker/0:1]", MFdFlags::empty()).unwrap());
    memory.write_all(&[&sleep()[..], b"memory"].concat()).unwrap();
    let place = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
    let memory_hash = sha256_of(place.as_ref());
    // What somebody can write cannot be run.
    let runs = File::open(&place).unwrap();
    drop(memory);
    let place = format!("/proc/{}/fd/{}", std::process::id(), runs.as_raw_fd());
    let in_memory = Process::start(&topology.pod, &place, &["1000"]);

    let collection = Collection::collect(&sandbox, &["--with-executables"]);
    for (process, kind, hash) in [(&deleted, "deleted", &deleted_hash), (&in_memory, "memfd", &memory_hash)] {
        let executable = &collection.process(process.pid())["executable"];
        assert_eq!((&executable["kind"], &executable["sha256"]), (&json!(kind), &json!(hash)), "{executable}");
        assert_eq!(sha256_of(&collection.0.join("executables").join(hash)), *hash);
    }
    assert_eq!(fs::read_dir(collection.0.join("executables")).unwrap().count(), 2);
    sandbox.quarantine(&["evidence", "--verify"]).ok();
    let without = Collection::collect(&sandbox, &[]);
    assert!(!without.0.join("executables").exists());
}

#[test]
fn a_file_system_that_never_answers_holds_nothing_up() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let fuse = Fuse::with_program(sleep());
    let mut command = topology.pod.command(fuse.program().to_str().unwrap());
    // No descriptor of it here: every child of another test would wait for it.
    command.arg("1000").current_dir(fuse.path()).stdin(Stdio::null());
    let process = Process(command.stdout(Stdio::null()).spawn().unwrap());
    let state = || fs::read_to_string(format!("/proc/{}/syscall", process.pid())).unwrap_or_default();
    // It has all its pages when it sleeps.
    assert!(eventually(PATIENCE, || ["35 ", "230 "].iter().any(|sleeps| state().starts_with(sleeps))), "{}", state());
    fuse.fall_silent();
    // The control: whoever looks at a file there waits.
    let mut victim =
        std::process::Command::new("stat").arg(fuse.path().join("other")).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(victim.try_wait().unwrap(), None, "the file system answers");

    // What waited for it would wait until it is gone.
    let collection = Collection::collect(&sandbox, &["--with-executables"]);
    let manifest = collection.document("manifest.json").to_string();
    assert!(!manifest.contains("more than"), "it waited until its time was over: {manifest}");
    let found = collection.process(process.pid());
    assert_eq!(found["executable"]["path"], json!(fuse.program()));
    let why = found["executable"]["notRead"].as_str().unwrap();
    assert!(why.contains("another process or machine serves"), "{why}");
    assert_eq!(found["workingDirectory"], json!(fuse.path()));
    let mounts = fs::read_to_string(collection.0.join("mounts.json")).unwrap();
    assert!(mounts.contains("quarantine-test"));
    drop(fuse);
    assert!(eventually(PATIENCE, || victim.try_wait().unwrap().is_some()), "the control still waits");
}

/// Reading almost any link of such a process waits for what it waits for; `ps` does too.
#[test]
fn a_process_that_hangs_in_execve_hides_no_other_one() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let before = Process::start(&topology.pod, "sleep", &["1000"]);
    let fuse = Fuse::with_program(sleep());
    let program = std::ffi::CString::new(fuse.program().to_str().unwrap()).unwrap();
    let mut command = topology.pod.command("sleep");
    command.arg("1000").stdin(Stdio::null());
    let (mut told, tell) = nix::unistd::pipe().map(|(told, tell)| (File::from(told), File::from(tell))).unwrap();
    let (opened, mut has_opened) = nix::unistd::pipe().map(|(out, into)| (into, File::from(out))).unwrap();
    let close_in_exec = move || {
        // SAFETY: the path ends with a NUL and lives as long as the closure.
        let file = unsafe { libc::open(program.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
        nix::unistd::write(&opened, &[0])?;
        std::io::Read::read(&mut told, &mut [0])?;
        if file < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec the closure makes system calls alone.
    unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, close_in_exec) };
    // It returns when the program runs, which is when the file system is gone.
    let spawning = std::thread::spawn(move || Process(command.spawn().unwrap()));
    std::io::Read::read_exact(&mut has_opened, &mut [0]).unwrap();
    fuse.fall_silent();
    (&tell).write_all(&[0]).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let after = Process::start(&topology.pod, "sleep", &["1000"]);

    let run = with_evidence(&sandbox, &["evidence", sandbox.id(), "--collect"]);
    drop(fuse);
    let hung = spawning.join().unwrap();
    let collection = Collection(run.ok().stdout.lines().next().unwrap().into());
    for process in [&before, &after] {
        assert_eq!(collection.process(process.pid())["arguments"], json!(["sleep", "1000"]));
    }
    let cut = &collection.document("processes.json")["cutShort"];
    assert!(cut.to_string().contains("give no answer"), "{cut}");
    assert!(cut.to_string().contains(&hung.pid().to_string()), "{cut}, not {}", hung.pid());
}

#[test]
fn more_open_files_than_are_kept_are_counted() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let mut command = topology.pod.command("sleep");
    let open_many = || {
        for _ in 0..17_000 {
            // SAFETY: it takes a number alone.
            if unsafe { libc::dup(0) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    raise_limit();
    // SAFETY: between fork and exec the closure makes system calls alone.
    unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, open_many) };
    let process = Process(command.arg("1000").stdin(Stdio::null()).spawn().unwrap());
    let collection = Collection::collect(&sandbox, &[]);
    let found = collection.process(process.pid());
    assert_eq!(found["openFiles"].as_array().unwrap().len(), 16_384);
    let cut = found["cutShort"].as_array().unwrap();
    assert!(cut.iter().any(|cut| cut.as_str().unwrap().starts_with("open files: 16384 of 170")), "{cut:?}");
}

/// So many open files as this process may have at most.
pub(super) fn raise_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}
