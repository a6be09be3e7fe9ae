//! Bytes that others chose, as text that shows them whole and can do nothing: names of processes, files, interfaces.
//!
//! Pure. Readable text stays as it is. A control character, one that changes the direction of text or is not seen, and what
//! is no UTF-8 become escapes, and so does the backslash: different bytes stay different, and a terminal stays as it is.

use std::fmt;

use serde::{Serialize, Serializer};

/// Bytes, shown with escapes: `\xNN` for what is no UTF-8, `\u{…}` for what is not to be shown, `\\` for a backslash.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Escaped(pub Vec<u8>);

impl From<&[u8]> for Escaped {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl fmt::Display for Escaped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '\\' => f.write_str("\\\\")?,
                    _ if c.is_control() || is_unseen(c) => write!(f, "{}", c.escape_unicode())?,
                    _ => fmt::Write::write_char(f, c)?,
                }
            }
            chunk.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
        }
        Ok(())
    }
}

/// Text whose bytes need not be had back: what could deceive is escaped as above, and a backslash stays.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a>(pub &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            _ if c.is_control() || is_unseen(c) => write!(f, "{}", c.escape_unicode()),
            _ => fmt::Write::write_char(f, c),
        })
    }
}

impl Serialize for Escaped {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Line and paragraph separators, marks of direction, joiners, fillers, tags, variation selectors.
fn is_unseen(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub fn try_any(bytes: &[u8]) {
    let shown = Escaped::from(bytes).to_string();
    assert!(!shown.chars().any(|c| c.is_control() || is_unseen(c)));
    // As docs/evidence.md says to undo it.
    let (mut undone, mut rest) = (Vec::new(), shown.as_str());
    while let Some((before, escape)) = rest.split_once('\\') {
        undone.extend_from_slice(before.as_bytes());
        rest = if let Some(after) = escape.strip_prefix('\\') {
            undone.push(b'\\');
            after
        } else if let Some((digits, after)) = escape.strip_prefix("u{").and_then(|escape| escape.split_once('}')) {
            let c = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32);
            undone.extend(c.into_iter().flat_map(|c| c.to_string().into_bytes()));
            after
        } else {
            let digits = escape.strip_prefix('x').and_then(|escape| escape.split_at_checked(2));
            let (digits, after) = digits.unwrap_or_default();
            undone.extend(u8::from_str_radix(digits, 16));
            after
        };
    }
    undone.extend_from_slice(rest.as_bytes());
    assert_eq!(undone, bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_deceive_is_escaped_and_the_rest_is_not() {
        for (bytes, shown) in [
            (&b"/usr/bin/nginx -g x"[..], "/usr/bin/nginx -g x"),
            ("Grün ✓".as_bytes(), "Grün ✓"),
            (b"a\nevent=released\x1b[2J", "a\\u{a}event=released\\u{1b}[2J"),
            ("exe\u{202e}gnp.".as_bytes(), "exe\\u{202e}gnp."),
            (b"\xff\xfe\\n", "\\xff\\xfe\\\\n"),
            (b"", ""),
        ] {
            assert_eq!(Escaped::from(bytes).to_string(), shown);
        }
    }

    proptest::proptest! {
        #[test]
        fn different_bytes_stay_different_and_one_line(one: Vec<u8>, other: Vec<u8>) {
            let shown = |bytes: &[u8]| Escaped::from(bytes).to_string();
            assert_eq!(one == other, shown(&one) == shown(&other));
            assert!(!shown(&one).chars().any(|c| c.is_control()));
        }
    }
}
