//! What the log says of a sandbox: lines of `key=value` pairs, whoever has them. Pure, over text that may hold anything.

use crate::model::names::Key;

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What stands before the pairs up to the program's name: mostly a time and a host.
    pub when: String,
    /// What happened.
    pub event: String,
    /// All other pairs.
    pub pairs: Vec<(String, String)>,
}

impl Entry {
    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

/// The lines about a sandbox, by its container ID or by marks of these names, in the order in which they stand.
#[must_use]
pub fn entries(text: &str, container_id: &str, keys: &[Key]) -> Vec<Entry> {
    let is_of = |entry: &Entry| {
        entry.get("container") == Some(container_id)
            || entry.get("mark").is_some_and(|mark| mark == container_id || keys.iter().any(|key| key.as_str() == mark))
    };
    text.lines().filter_map(entry).filter(is_of).collect()
}

fn entry(line: &str) -> Option<Entry> {
    let (before, rest) = line.split_at_checked(line.find("event=")?)?;
    let mut pairs = pairs(rest);
    let (_, event) = (!pairs.is_empty()).then(|| pairs.remove(0))?;
    let when = before.split(" quarantine").next().unwrap_or_default();
    Some(Entry { when: when.trim().to_owned(), event, pairs })
}

/// What `model::audit` writes, read again.
fn pairs(mut rest: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while let Some((key, behind)) = rest.split_once('=') {
        let (value, behind) = match behind.strip_prefix('"') {
            Some(quoted) => unquoted(quoted),
            None => {
                let end = behind.find(' ').unwrap_or(behind.len());
                (behind[..end].to_owned(), &behind[end..])
            }
        };
        found.push((key.trim().to_owned(), value));
        rest = behind;
    }
    found
}

/// Up to the closing quote, and what follows it.
fn unquoted(text: &str) -> (String, &str) {
    let (mut value, mut is_escaped) = (String::new(), false);
    for (at, c) in text.char_indices() {
        match c {
            '"' if !is_escaped => return (value, &text[at + 1..]),
            // The escapes of other characters than these two are shown as they are.
            '\\' if !is_escaped => is_escaped = true,
            c => {
                if is_escaped && c != '"' && c != '\\' {
                    value.push('\\');
                }
                value.push(c);
                is_escaped = false;
            }
        }
    }
    (value, "")
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub fn try_any(bytes: &[u8]) {
    let _ = entries(&String::from_utf8_lossy(bytes), "c1", &[]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::audit::Line;

    #[test]
    fn what_was_logged_is_read_again() {
        let reason = "a \"beacon\" \\ event=released container=c1\n";
        let line = Line::new("isolated").with("container", "c1").with("reason", reason).with("ms", "1.5");
        let text = format!("Nov 22 03:15:35 node1 quarantine[7]: {line}\nx\n\nevent=isolated container=c2\n");
        let found = entries(&text, "c1", &[]);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].when.as_str(), found[0].event.as_str()), ("Nov 22 03:15:35 node1", "isolated"));
        assert_eq!(found[0].get("reason"), Some("a \"beacon\" \\ event=released container=c1\\u{a}"));
        assert_eq!(found[0].get("ms"), Some("1.5"));
        let marked = "event=marked mark=uid-1 actor=alice";
        assert_eq!(entries(marked, "c1", &[Key::new("uid-1").unwrap()])[0].get("actor"), Some("alice"));
    }

    proptest::proptest! {
        #[test]
        fn no_log_makes_it_panic(text: String, value: String) {
            let _ = entries(&text, "c1", &[]);
            let _ = entries(&format!("event=x container=c1 a=\"{value}"), "c1", &[]);
        }
    }
}
