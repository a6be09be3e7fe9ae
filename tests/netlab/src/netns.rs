//! A named network namespace that lives as long as its value.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::Pid;

use crate::Links;

/// Where `ip` looks for the names of network namespaces.
const DIRECTORY: &str = "/run/netns";

/// A network namespace at a path, mostly `/run/netns/<name>`.
///
/// Drop kills the processes that are left in one that [`Netns::new`] made, and deletes it.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    is_ours: bool,
}

impl Netns {
    /// A new one, with `lo` up and IPv6 usable at once (no duplicate address detection). `label` is part of its name,
    /// for people who look at a hanging test.
    #[must_use]
    pub fn new(label: &str) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("q{}-{number}-{label}", std::process::id());
        add(&name);
        let mut netns = Self::named(&name);
        netns.is_ours = true;
        netns
    }

    /// One that somebody else made under this name, and will remove.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self::at(name, Path::new(DIRECTORY).join(name))
    }

    /// One that somebody else holds at this path.
    #[must_use]
    pub fn at(name: &str, path: impl Into<PathBuf>) -> Self {
        Self { name: name.to_owned(), path: path.into(), is_ours: false }
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    pub(crate) fn open(&self) -> File {
        File::open(&self.path).unwrap_or_else(|error| panic!("{}: {error}", self.path.display()))
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets made there stay there and may be used outside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = self.open();
        let outcome = std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
                    drop(file);
                    work()
                })
                .join()
        });
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Its interfaces, addresses and routes.
    #[must_use]
    pub fn links(&self) -> Links {
        self.run(Links::open)
    }

    /// A command whose process runs inside the namespace; the mounts are those of the caller.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let file = self.open();
        let mut command = Command::new(program);
        // Each isolation would start a process more; the tests of that turn it on.
        command.env("QUARANTINE_EVIDENCE", "off");
        let enter = move || setns(&file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        // SAFETY: between fork and exec the closure makes one system call and does not allocate.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a shell script inside, stops at its first error, panics if it fails; gives its stdout.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.try_sh(script).unwrap_or_else(|error| panic!("in {}: {script}\n{error}", self.name))
    }

    /// Like [`Netns::sh`], but gives a failure's output as the error.
    pub fn try_sh(&self, script: &str) -> Result<String, String> {
        let output = self.command("sh").args(["-ec", script]).stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("sh: {error}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(format!("{}: {}{}", output.status, text(&output.stdout), text(&output.stderr)))
        }
    }

    /// Runs `ip` commands inside, one a line, in one process: what somebody does to the network, not what it is made by.
    #[track_caller]
    pub fn ip(&self, commands: &str) {
        self.sh(&format!("ip -batch - <<'END'\n{commands}\nEND"));
    }

    /// Sets a kernel parameter of the namespace. The dots separate; an interface name with a dot in it won't do.
    pub fn sysctl(&self, key: &str, value: &str) {
        self.run(|| set(key, value));
    }

    /// Deletes it before its time: what is bound to it only by the name is gone.
    pub fn delete(&self) {
        if self.is_ours && self.path.exists() {
            self.kill_processes();
            let _ = remove(&self.name);
        }
    }

    /// Kills what the caller left running inside: its descendants, and those whose parent has gone.
    pub fn kill_processes(&self) {
        let Ok(own) = fs::metadata(&self.path) else { return };
        let parents = parents();
        for &pid in parents.keys().filter(|&&pid| is_left_by_us(pid, &parents)) {
            let is_inside = fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|netns| (netns.dev(), netns.ino()) == (own.dev(), own.ino()));
            if is_inside {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

/// The parent of each process.
fn parents() -> HashMap<i32, i32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let with_parent = pids.filter_map(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        Some((pid, parent.trim().parse().ok()?))
    });
    with_parent.collect()
}

/// Others' processes are not asked for their namespace: the kernel answers only when one of them that is just being
/// executed is done with that, and until then the question hangs.
fn is_left_by_us(pid: i32, parents: &HashMap<i32, i32>) -> bool {
    let own = std::process::id().cast_signed();
    let mut ancestors = std::iter::successors(parents.get(&pid), |parent| parents.get(*parent));
    pid != own && (parents.get(&pid) == Some(&1) || ancestors.any(|&ancestor| ancestor == own))
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.is_ours {
            self.remove_pins();
        }
        self.delete();
    }
}

impl Netns {
    /// What was pinned for it in the bpffs, by the cookie of the netns: a sandbox that was not deleted leaves it.
    fn remove_pins(&self) {
        let Ok(file) = File::open(&self.path) else { return };
        let cookie = std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET).ok()?;
                let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::empty(), None).ok()?;
                cookie(socket.as_raw_fd())
            });
            inside.join().ok().flatten()
        });
        let Some(cookie) = cookie else { return };
        let directory = Path::new("/sys/fs/bpf/quarantine").join(cookie.to_string());
        for sandbox in fs::read_dir(&directory).into_iter().flatten().flatten() {
            for pin in fs::read_dir(sandbox.path()).into_iter().flatten().flatten() {
                let _ = fs::remove_file(pin.path());
            }
            let _ = fs::remove_dir(sandbox.path());
        }
        let _ = fs::remove_dir(directory);
    }
}

/// The cookie of a socket's netns (Linux 5.14).
fn cookie(socket: RawFd) -> Option<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let (mut cookie, mut length) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the option is a number of 64 bits, and the length says so.
    let status = unsafe {
        let value: *mut u64 = &raw mut cookie;
        libc::getsockopt(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE, value.cast(), &raw mut length)
    };
    (status == 0).then_some(cookie)
}

/// Makes a network namespace of this name, as `ip netns add` does, with `lo` up and IPv6 usable at once.
#[track_caller]
pub fn add(name: &str) {
    static SHARED: OnceLock<()> = OnceLock::new();
    SHARED.get_or_init(|| share_directory().unwrap_or_else(|error| panic!("{DIRECTORY}: {error}")));
    let path = Path::new(DIRECTORY).join(name);
    let made = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path).and_then(|_| {
        let on_a_thread_of_its_own = std::thread::scope(|scope| scope.spawn(|| hold_new(&path)).join());
        on_a_thread_of_its_own.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    made.unwrap_or_else(|error| panic!("the network namespace {name}: {error}"));
}

/// Removes the name, and with it the namespace, where nothing else holds that.
pub fn remove(name: &str) -> io::Result<()> {
    let path = Path::new(DIRECTORY).join(name);
    umount2(&path, MntFlags::MNT_DETACH)?;
    fs::remove_file(&path)
}

/// Moves the calling thread into a new network namespace, and mounts that at the path.
fn hold_new(path: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Links::open().up("lo");
    set("net.ipv6.conf.all.accept_dad", "0");
    set("net.ipv6.conf.default.accept_dad", "0");
    Ok(())
}

/// Makes the directory a mount that shares what is mounted in it: a namespace that is deleted here must not live on in the
/// mounts of a process that was given a copy of them.
fn share_directory() -> io::Result<()> {
    fs::create_dir_all(DIRECTORY)?;
    // `ip` and other tests do the same, perhaps now.
    let _lock = Flock::lock(File::open(DIRECTORY)?, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    let share = || mount(None::<&str>, DIRECTORY, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    if share().is_err() {
        // It is no mount yet.
        mount(Some(DIRECTORY), DIRECTORY, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
        share()?;
    }
    Ok(())
}

/// Sets a kernel parameter in the calling thread's namespace.
fn set(key: &str, value: &str) {
    let path = Path::new("/proc/sys").join(key.replace('.', "/"));
    fs::write(&path, value).unwrap_or_else(|error| panic!("{key}: {error}"));
}
