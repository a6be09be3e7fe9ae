//! The same work on many sandboxes, over all cores.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use crate::kernel::netlink::NetlinkError;
use crate::node::sandbox::Side;

/// Does `work` on each of `items` and returns the results in their order. Each thread has sockets of its own; one
/// item that takes long delays no other.
pub(super) fn on_each<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&mut Side, &T) -> R + Sync,
) -> Result<Vec<R>, NetlinkError> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    // Twice the cores: much of the time is waiting for the kernel's own locks.
    let threads = items.len().min(2 * cores);
    let next = AtomicUsize::new(0);
    let (done, results) = mpsc::channel();
    let sides: Vec<Side> = (0..threads).map(|_| Side::own()).collect::<Result<_, _>>()?;
    let mut indexed: Vec<(usize, R)> = thread::scope(|scope| {
        for mut host in sides {
            let (done, next, work) = (done.clone(), &next, &work);
            scope.spawn(move || {
                while let Some((index, item)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    items.get(index).map(|item| (index, item))
                } {
                    let _ = done.send((index, work(&mut host, item)));
                }
            });
        }
        drop(done);
        results.iter().collect()
    });
    indexed.sort_by_key(|(index, _)| *index);
    Ok(indexed.into_iter().map(|(_, result)| result).collect())
}
