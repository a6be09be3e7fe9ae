//! The lines that an auditor greps: an event and `key=value` pairs, one line each, whatever a pod is called.

use std::error::Error;
use std::fmt::{self, Display, Write as _};

/// Longer values are cut, so that no reason or pod name can flood the log.
const VALUE_MAX: usize = 256;

/// One line, built pair by pair.
#[derive(Debug, Clone)]
pub struct Line(String);

impl Line {
    /// A line about `event`.
    #[must_use]
    pub fn new(event: &str) -> Self {
        Self(format!("event={event}"))
    }

    /// Adds a pair. The key is a word of ours; the value may be anybody's, and is quoted where it is not plain.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Display) -> Self {
        let mut begun = Beginning(String::new());
        let _ = write!(begun, "{value}");
        let _ = write!(self.0, " {key}={}", Value(&begun.0));
        self
    }

    /// Adds a pair where there is a value.
    #[must_use]
    pub fn with_some(self, key: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }
}

impl Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text until it is longer than what is said of it: a policy may have hundreds of entries.
struct Beginning(String);

impl fmt::Write for Beginning {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.push_str(text);
        // No character has more bytes than four.
        if self.0.len() > 4 * VALUE_MAX { Err(fmt::Error) } else { Ok(()) }
    }
}

struct Value<'a>(&'a str);

impl Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.:/+,@%".contains(c);
        let (text, cut) = match self.0.char_indices().nth(VALUE_MAX) {
            Some((end, _)) => (&self.0[..end], true),
            None => (self.0, false),
        };
        if !text.is_empty() && !cut && text.chars().all(plain) {
            return f.write_str(text);
        }
        f.write_char('"')?;
        for c in text.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                ' '..='~' => f.write_char(c)?,
                // Line ends of every alphabet, terminal controls, letters that look like others.
                _ => write!(f, "{}", c.escape_unicode())?,
            }
        }
        f.write_str(if cut { "…\"" } else { "\"" })
    }
}

/// An error and its causes, in one line.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.ends_with(&text) {
            message = format!("{message}: {text}");
        }
        cause = error.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_can_forge_a_pair_or_a_line() {
        let line = Line::new("isolated")
            .with("pod", "a b\" actor=root\nevent=released \u{1b}[2J\u{2028}ä")
            .with("uid", "1-2")
            .with("case", "");
        assert_eq!(
            line.to_string(),
            r#"event=isolated pod="a b\" actor=root\u{a}event=released \u{1b}[2J\u{2028}\u{e4}" uid=1-2 case="""#
        );
        assert!(Line::new("x").with("reason", "r".repeat(10_000)).to_string().len() < 300);
    }

    #[test]
    fn of_what_is_long_no_more_is_put_together_than_is_said() {
        struct Long(std::cell::Cell<usize>);
        impl Display for Long {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                (0..10_000).try_for_each(|number| {
                    self.0.set(number);
                    write!(f, "ä{number},")
                })
            }
        }
        let (long, whole) = (Long(0.into()), Long(0.into()).to_string());
        let line = Line::new("x").with("policy", &long);
        assert_eq!(line.to_string(), Line::new("x").with("policy", whole).to_string());
        assert!(line.to_string().ends_with("…\"") && long.0.get() < 1000);
    }
}
