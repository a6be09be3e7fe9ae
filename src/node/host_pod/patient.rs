//! Questions about processes that may never be answered: the kernel lets whoever asks about a process wait that is in the middle of an
//! execve, and a pod can make that last (a file of a FUSE that never answers is closed in it).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// One that takes longer is passed over, and its thread left behind.
const PATIENCE: Duration = Duration::from_millis(200);
/// So many are left behind; who makes more of them wait is not told from who does not answer.
const LEFT_BEHIND_MAX: usize = 8;

/// Asks of each path, in order, until `enough` says of an answer that it is. `None` where nobody answered.
pub(super) fn ask_each<T: Send + 'static>(
    paths: Vec<PathBuf>,
    ask: impl Fn(&PathBuf) -> T + Send + Sync + 'static,
    enough: impl Fn(&T) -> bool,
) -> Vec<(PathBuf, Option<T>)> {
    let mut answers: Vec<Option<T>> = paths.iter().map(|_| None).collect();
    let (paths, ask, next) = (Arc::new(paths), Arc::new(ask), Arc::new(AtomicUsize::new(0)));
    let (answered, answer) = channel();
    let begin = || {
        let (paths, ask, next, answered) = (paths.clone(), ask.clone(), next.clone(), answered.clone());
        let asks = move || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(path) = paths.get(number) else { return };
                if answered.send((number, ask(path))).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("asks".to_owned()).spawn(asks).is_ok()
    };
    let (mut open, mut left_behind) = (paths.len(), 0);
    let mut is_asked = begin();
    while open > left_behind && is_asked {
        match answer.recv_timeout(PATIENCE) {
            Ok((number, said)) => {
                open -= 1;
                let is_enough = enough(&said);
                answers[number] = Some(said);
                if is_enough {
                    break;
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                left_behind += 1;
                is_asked = left_behind < LEFT_BEHIND_MAX && begin();
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    // Nobody asks on.
    next.store(paths.len(), Ordering::Relaxed);
    paths.iter().cloned().zip(answers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(number: usize) -> Vec<PathBuf> {
        (0..number).map(|number| PathBuf::from(number.to_string())).collect()
    }

    #[test]
    fn who_never_answers_is_passed_over() {
        let ask = |path: &PathBuf| match path.to_str() {
            Some("1" | "3") => loop {
                thread::park();
            },
            _ => path.clone(),
        };
        let answers = ask_each(paths(6), ask, |_| false);
        let unanswered: Vec<_> = answers.iter().filter(|(_, answer)| answer.is_none()).map(|(path, _)| path).collect();
        assert_eq!(unanswered, [&PathBuf::from("1"), &PathBuf::from("3")]);
    }

    #[test]
    fn no_more_is_asked_than_is_needed() {
        let answers = ask_each(paths(1000), Clone::clone, |path| path.as_os_str() == "0");
        assert_eq!(answers[0].1, Some(PathBuf::from("0")));
        assert!(ask_each(Vec::new(), Clone::clone, |_: &PathBuf| false).is_empty());
    }
}
