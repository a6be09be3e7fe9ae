//! Work on many sandboxes, on several threads: each has sockets of its own in the host's netns and takes one piece of work at
//! a time from a queue, so that what hangs holds one thread and nothing else.

use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use crate::kernel::netlink::NetlinkError;
use crate::node::sandbox::Side;

/// How many threads are worth having: twice the cores, since much of the time is waiting for the kernel's own locks.
#[must_use]
pub fn count() -> usize {
    2 * thread::available_parallelism().map_or(1, NonZero::get)
}

/// What a thread that panicked held was not left half done: these are lists that are only pushed to and popped from.
pub fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Work that waits for a thread. What was put off is done when nothing else waits, and what is of least concern when nothing was
/// put off either.
#[derive(Debug)]
pub struct Queue<T> {
    state: Mutex<Waiting<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Waiting<T> {
    work: VecDeque<T>,
    put_off: VecDeque<T>,
    last: VecDeque<T>,
    /// Whether more may come.
    is_open: bool,
}

impl<T> Queue<T> {
    /// One that work can be put into for as long as it is there.
    #[must_use]
    pub fn open() -> Self {
        Self {
            state: Mutex::new(Waiting {
                work: VecDeque::new(),
                put_off: VecDeque::new(),
                last: VecDeque::new(),
                is_open: true,
            }),
            changed: Condvar::new(),
        }
    }

    /// One that has all of its work.
    pub fn of(work: impl IntoIterator<Item = T>) -> Self {
        let work = work.into_iter().collect();
        let waiting = Waiting { work, put_off: VecDeque::new(), last: VecDeque::new(), is_open: false };
        Self { state: Mutex::new(waiting), changed: Condvar::new() }
    }

    /// Puts work at the end.
    pub fn push(&self, work: T) {
        hold(&self.state).work.push_back(work);
        self.changed.notify_one();
    }

    /// Puts work behind all that is not put off.
    pub fn put_off(&self, work: T) {
        hold(&self.state).put_off.push_back(work);
        self.changed.notify_one();
    }

    /// Puts work behind all other.
    pub fn put_last(&self, work: T) {
        hold(&self.state).last.push_back(work);
        self.changed.notify_one();
    }

    /// Takes what waits and was not put off, without waiting for any.
    pub fn take_waiting(&self, most: usize) -> Vec<T> {
        let work = &mut hold(&self.state).work;
        let count = work.len().min(most);
        work.drain(..count).collect()
    }

    /// Does what is in it, piece by piece, in the calling thread; ends when nothing is left and nothing more can come.
    pub fn serve(&self, mut work: impl FnMut(T)) {
        self.serve_many(1, |next| next.into_iter().for_each(&mut work));
    }

    /// The same with so many pieces at a time, where more than one waits; of what is of least concern, one.
    pub fn serve_many(&self, most: usize, mut work: impl FnMut(Vec<T>)) {
        while let Some(next) = self.next(most) {
            work(next);
        }
    }

    fn next(&self, most: usize) -> Option<Vec<T>> {
        let mut state = hold(&self.state);
        loop {
            let Waiting { work, put_off, .. } = &mut *state;
            for waiting in [work, put_off] {
                let count = waiting.len().min(most);
                if count > 0 {
                    return Some(waiting.drain(..count).collect());
                }
            }
            match state.last.pop_front() {
                None if state.is_open => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                next => return next.map(|next| vec![next]),
            }
        }
    }
}

/// Does `work` on each of `items` and returns the results in their order.
///
/// # Errors
/// Where the threads' sockets cannot be opened; then nothing was done.
pub fn on_each<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&mut Side, &T) -> R + Sync,
) -> Result<Vec<R>, NetlinkError> {
    let sides = (0..threads_for(items)).map(|_| Side::own()).collect::<Result<_, _>>()?;
    Ok(share_out(items, sides, work))
}

/// The same of work that needs no sockets.
pub fn beside_each_other<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    share_out(items, vec![(); threads_for(items)], |(), item| work(item))
}

/// For one piece of work nobody need count the cores.
fn threads_for<T>(items: &[T]) -> usize {
    if items.len() > 1 { items.len().min(count()) } else { items.len() }
}

/// Has a thread for each of `tools`, or the calling one where there is no more than one.
fn share_out<T: Sync, S: Send, R: Send>(
    items: &[T],
    mut tools: Vec<S>,
    work: impl Fn(&mut S, &T) -> R + Sync,
) -> Vec<R> {
    if let [tool] = &mut tools[..] {
        return items.iter().map(|item| work(tool, item)).collect();
    }
    let queue = Queue::of(items.iter().enumerate());
    let (done, results) = mpsc::channel();
    let mut indexed: Vec<(usize, R)> = thread::scope(|scope| {
        for mut tool in tools {
            let (done, queue, work) = (done.clone(), &queue, &work);
            scope.spawn(move || {
                queue.serve(|(index, item)| {
                    let _ = done.send((index, work(&mut tool, item)));
                });
            });
        }
        drop(done);
        results.iter().collect()
    });
    indexed.sort_by_key(|(index, _)| *index);
    indexed.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_closed_queue_is_done_once_and_in_order() {
        let queue = Queue::of([1, 2, 3]);
        queue.push(4);
        let mut done = Vec::new();
        queue.serve(|number| done.push(number));
        assert_eq!(done, [1, 2, 3, 4]);
        queue.serve(|_| panic!("it was done before"));
    }

    #[test]
    fn what_was_put_off_is_done_last_and_what_is_of_least_concern_one_at_a_time() {
        let queue = Queue::of([1, 2, 3]);
        queue.put_last(10);
        queue.put_last(11);
        queue.put_off(8);
        queue.put_off(9);
        let mut done = Vec::new();
        queue.serve_many(2, |some| {
            if some == [1, 2] {
                queue.push(4);
            }
            done.push(some);
        });
        assert_eq!(done, [vec![1, 2], vec![3, 4], vec![8, 9], vec![10], vec![11]]);
        assert!(queue.take_waiting(2).is_empty());
    }

    #[test]
    fn an_open_queue_is_waited_at() {
        let queue = Queue::open();
        let (done, results) = mpsc::channel();
        thread::scope(|scope| {
            // It never ends: a thread that is left behind, like the agent's.
            let queue: &'static Queue<u32> = Box::leak(Box::new(queue));
            thread::spawn(move || {
                queue.serve(|number| {
                    let _ = done.send(number);
                });
            });
            scope.spawn(move || (0..5).for_each(|number| queue.push(number)));
            assert_eq!(results.iter().take(5).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        });
    }
}
