//! The marks as they were last seen, so that they can be put back when the state directory was taken away.
//!
//! Removing a mark releases; removing the state directory does not: nobody means by it that all that is isolated is to
//! be let go, and a pod whose sandbox is recreated meanwhile would be free. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::mark::Mark;
use crate::model::names::Key;
use crate::model::policy::Policy;

/// What was last seen of each mark.
#[derive(Debug, Default)]
pub(super) struct SeenMarks(BTreeMap<Key, Seen>);

#[derive(Debug)]
struct Seen {
    content: Vec<u8>,
    gone: Option<Instant>,
}

impl SeenMarks {
    /// A mark stands; `None` for a content that cannot be read, which seals and is put back as a mark that does.
    pub(super) fn stands(&mut self, key: Key, content: Option<Vec<u8>>) {
        let sealed = || Mark { policy: Some(Policy::sealed()), ..Mark::default() }.to_json().to_string().into_bytes();
        self.0.insert(key, Seen { content: content.unwrap_or_else(sealed), gone: None });
    }

    /// A mark is gone. What was gone for longer than `grace` is forgotten: it was meant.
    pub(super) fn is_gone(&mut self, key: &Key, now: Instant, grace: Duration) {
        if let Some(seen) = self.0.get_mut(key) {
            seen.gone.get_or_insert(now);
        }
        self.0.retain(|_, seen| seen.gone.is_none_or(|gone| now < gone + grace));
    }

    /// The marks that stood, or went no longer ago than `grace`: those that went with the directory. (Whoever removes a
    /// directory removes what is in it first, one by one.)
    pub(super) fn lost(&self, now: Instant, grace: Duration) -> impl Iterator<Item = (&Key, &[u8])> {
        let is_lost = move |seen: &Seen| seen.gone.is_none_or(|gone| now < gone + grace);
        self.0.iter().filter(move |(_, seen)| is_lost(seen)).map(|(key, seen)| (key, &seen.content[..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_with_its_directory_is_known_and_what_was_removed_is_not() {
        const GRACE: Duration = Duration::from_millis(200);
        let key = |text: &str| Key::new(text).unwrap();
        let start = Instant::now();
        let mut marks = SeenMarks::default();
        for name in ["stays", "removed", "with-it"] {
            marks.stands(key(name), Some(name.as_bytes().to_vec()));
        }
        marks.stands(key("unreadable"), None);
        marks.is_gone(&key("removed"), start, GRACE);
        let later = start + Duration::from_millis(300);
        marks.is_gone(&key("with-it"), later, GRACE);
        let lost: Vec<_> = marks.lost(later + Duration::from_millis(5), GRACE).collect();
        let names: Vec<_> = lost.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(names, ["stays", "unreadable", "with-it"]);
        let sealed = Mark::read(lost[1].1).unwrap();
        assert_eq!(sealed.policy, Some(Policy::sealed()));
    }
}
