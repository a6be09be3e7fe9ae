//! What isolated pods try, as it comes: a thread of its own, so that no flood of packets holds up whoever isolates.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::capture::{Recorder, Side};
use crate::kernel::nflog::{Drained, Handed, Nflog};
use crate::kernel::nft::{Batch, Nft};
use crate::model::audit::{Line, chain};
use crate::model::names::ContainerId;
use crate::rules::reports::{GROUP, LENGTH, prefix, trial_table};

const STACK: usize = 256 * 1024;
/// The kernel gathers no more in one datagram.
const BUFFER: usize = 128 * 1024;
/// Datagrams of one socket that are read in a row. Where more wait, somebody floods it, and the others come first.
const DATAGRAMS: usize = 4;
/// How long a socket is left alone then: the kernel loses what its queue has no room for.
const PAUSE: Duration = Duration::from_millis(200);
/// What is wrong with the disk is said no more often.
const SAID_EVERY: Duration = Duration::from_secs(60);

const CHANGED: u64 = 0;
const NODE: u64 = 1;
const FIRST_SANDBOX: u64 = 2;

enum Change {
    Watch(ContainerId, Option<Nflog>),
    Stop(ContainerId),
}

/// Keeps packets of sandboxes, in a thread that ends with it.
pub(super) struct Captures {
    changes: Sender<Change>,
    changed: Arc<EventFd>,
}

impl Captures {
    /// Listens in the calling thread's netns to what host guards hand over. Where somebody else does, that is said, and what
    /// pods hand over is kept all the same. `None` where this kernel hands nothing over.
    pub(super) fn start(state_dir: &Path) -> io::Result<Option<Self>> {
        if let Err(error) = Nft::open().and_then(|mut nft| nft.apply(&trial())) {
            log::warn!("{}", Line::new("not-captured").with("of", "all").with("error", chain(&error)));
            return Ok(None);
        }
        let node = bind_or_say("the node", || Nflog::bind(GROUP, LENGTH));
        let (changes, due) = channel();
        let changed = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let mut listener = Listener::new(state_dir.to_owned(), node, due, changed.clone())?;
        thread::Builder::new().name("captures".to_owned()).stack_size(STACK).spawn(move || listener.serve())?;
        Ok(Some(Self { changes, changed }))
    }

    /// Keeps what is dropped of this sandbox from now on; `pod` is bound in its netns.
    pub(super) fn watch(&self, container_id: ContainerId, pod: Option<Nflog>) {
        self.change(Change::Watch(container_id, pod));
    }

    /// Keeps nothing more of it, and lets its netns go.
    pub(super) fn stop(&self, container_id: &ContainerId) {
        self.change(Change::Stop(container_id.clone()));
    }

    fn change(&self, change: Change) {
        let _ = self.changes.send(change);
        let _ = self.changed.write(1);
    }
}

impl Drop for Captures {
    fn drop(&mut self) {
        let (closed, _) = channel();
        self.changes = closed;
        let _ = self.changed.write(1);
    }
}

/// Makes a table with a rule that hands packets over, which sleeps, and deletes it: it has the kernel load what such rules need,
/// so that no isolation waits for it.
fn trial() -> Batch {
    let table = trial_table();
    let mut batch = Batch::default();
    batch.add_table(&table);
    batch.delete_table(table.family, &table.name);
    batch
}

/// Binds, or says why not.
pub(super) fn bind_or_say<E: std::error::Error + 'static>(
    whose: impl std::fmt::Display,
    bind: impl FnOnce() -> Result<Nflog, E>,
) -> Option<Nflog> {
    bind()
        .inspect_err(|error| {
            log::warn!("{}", Line::new("not-captured").with("of", whose).with("error", chain(error)));
        })
        .ok()
}

struct Scene {
    number: u64,
    pod: Option<Nflog>,
    recorder: Recorder,
    said: Option<Instant>,
}

impl Scene {
    fn take(&mut self, container_id: &ContainerId, side: Side, handed: &Handed<'_>) {
        let Err(error) = self.recorder.take(side, handed, SystemTime::now()) else { return };
        if self.said.is_none_or(|said| said.elapsed() >= SAID_EVERY) {
            self.said = Some(Instant::now());
            log::warn!("{}", Line::new("not-captured").with("of", container_id).with("error", error));
        }
    }
}

struct Listener {
    state_dir: PathBuf,
    node: Option<Nflog>,
    due: Receiver<Change>,
    changed: Arc<EventFd>,
    epoll: Epoll,
    scenes: BTreeMap<ContainerId, Scene>,
    by_number: BTreeMap<u64, ContainerId>,
    next_number: u64,
    /// Sockets that are left alone, and until when.
    paused: BTreeMap<u64, Instant>,
    buffer: Vec<u8>,
}

impl Listener {
    fn new(
        state_dir: PathBuf,
        node: Option<Nflog>,
        due: Receiver<Change>,
        changed: Arc<EventFd>,
    ) -> Result<Self, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&changed, EpollEvent::new(EpollFlags::EPOLLIN, CHANGED))?;
        let listener = Self {
            state_dir,
            node,
            due,
            changed,
            epoll,
            scenes: BTreeMap::new(),
            by_number: BTreeMap::new(),
            next_number: FIRST_SANDBOX,
            paused: BTreeMap::new(),
            buffer: vec![0; BUFFER],
        };
        listener.hear(NODE);
        Ok(listener)
    }

    fn serve(&mut self) {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let next = self.paused.values().min().map(|when| when.saturating_duration_since(Instant::now()));
            let timeout = next.map_or(EpollTimeout::NONE, |wait| {
                EpollTimeout::from(u16::try_from(wait.as_millis() + 1).unwrap_or(u16::MAX))
            });
            let ready = match self.epoll.wait(&mut events, timeout) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(errno) => {
                    log::error!("{}", Line::new("not-captured").with("of", "all").with("error", errno));
                    return;
                }
            };
            for event in &events[..ready] {
                match event.data() {
                    CHANGED if !self.change() => return,
                    CHANGED => {}
                    number => self.packets(number),
                }
            }
            let now = Instant::now();
            let over: Vec<_> =
                self.paused.iter().filter(|(_, when)| **when <= now).map(|(number, _)| *number).collect();
            for number in over {
                self.paused.remove(&number);
                self.hear(number);
            }
        }
    }

    /// Takes what is to be changed; false where nobody is left to change anything.
    fn change(&mut self) -> bool {
        let _ = self.changed.read();
        loop {
            match self.due.try_recv() {
                Ok(Change::Watch(container_id, pod)) => self.watch(container_id, pod),
                Ok(Change::Stop(container_id)) => self.stop(&container_id),
                Err(std::sync::mpsc::TryRecvError::Empty) => return true,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn watch(&mut self, container_id: ContainerId, pod: Option<Nflog>) {
        self.stop(&container_id);
        let number = self.next_number;
        self.next_number += 1;
        let recorder = Recorder::new(&self.state_dir, &container_id, SystemTime::now());
        self.by_number.insert(number, container_id.clone());
        self.scenes.insert(container_id, Scene { number, pod, recorder, said: None });
        self.hear(number);
    }

    fn stop(&mut self, container_id: &ContainerId) {
        // What it has sent until now is kept.
        if let Some(number) = self.scenes.get(container_id).map(|scene| scene.number) {
            self.packets(number);
        }
        self.packets(NODE);
        if let Some(scene) = self.scenes.remove(container_id) {
            self.by_number.remove(&scene.number);
            self.paused.remove(&scene.number);
        }
    }

    fn socket(&self, number: u64) -> Option<&Nflog> {
        if number == NODE {
            return self.node.as_ref();
        }
        self.scenes.get(self.by_number.get(&number)?)?.pod.as_ref()
    }

    fn hear(&self, number: u64) {
        if let Some(socket) = self.socket(number) {
            let _ = self.epoll.add(socket.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, number));
        }
    }

    fn packets(&mut self, number: u64) {
        let drained = if number == NODE { self.packets_of_node() } else { self.packets_of_pod(number) };
        if drained.more && !self.paused.contains_key(&number) {
            if let Some(socket) = self.socket(number) {
                let _ = self.epoll.delete(socket.as_fd());
            }
            self.paused.insert(number, Instant::now() + PAUSE);
        }
    }

    fn packets_of_pod(&mut self, number: u64) -> Drained {
        let scene = self.by_number.get(&number).and_then(|id| Some((id, self.scenes.get_mut(id)?)));
        let Some((container_id, scene)) = scene else { return Drained::default() };
        let Some(pod) = scene.pod.take() else { return Drained::default() };
        let drained = pod.drain(&mut self.buffer, DATAGRAMS, |handed| scene.take(container_id, Side::Pod, &handed));
        scene.pod = Some(pod);
        if drained.lost {
            scene.recorder.lost();
        }
        drained
    }

    /// What host guards hand over says whose it is; what says anything else is another's.
    fn packets_of_node(&mut self) -> Drained {
        let Some(node) = &self.node else { return Drained::default() };
        let scenes = &mut self.scenes;
        let drained = node.drain(&mut self.buffer, DATAGRAMS, |handed| {
            let mut scenes = scenes.iter_mut();
            if let Some((container_id, scene)) = scenes.find(|(id, _)| prefix(id).as_bytes() == handed.prefix) {
                scene.take(container_id, Side::Node, &handed);
            }
        });
        if drained.lost {
            scenes.values_mut().for_each(|scene| scene.recorder.lost());
        }
        drained
    }
}
