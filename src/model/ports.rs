//! The ports that a policy opens: of a peer, of the pod, of probes.
//!
//! Pure. What else a policy says is the business of `policy`.

use std::fmt;

use serde_json::{Value, json};

use crate::model::json::{At, Unexpected};

/// A non-empty set of ports, as sorted ranges that neither touch nor overlap, without port 0.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ports(Ranges);

/// First and last port of each. A policy has hundreds of these, and nearly all are one port: that takes no memory of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Ranges {
    One([(u16, u16); 1]),
    Several(Vec<(u16, u16)>),
}

impl Ports {
    /// Every port.
    #[must_use]
    pub fn any() -> Self {
        Self(Ranges::One([(1, u16::MAX)]))
    }

    /// The ports of `ranges` (first and last), where there is one and each is sound.
    #[must_use]
    pub fn new(ranges: impl IntoIterator<Item = (u16, u16)>) -> Option<Self> {
        let mut ranges = ranges.into_iter();
        let first = ranges.next().filter(is_sound)?;
        let Some(second) = ranges.next() else { return Some(Self(Ranges::One([first]))) };
        let mut sorted = vec![first, second];
        sorted.extend(ranges);
        if !sorted.iter().all(is_sound) {
            return None;
        }
        sorted.sort_unstable();
        sorted.dedup_by(|next, before| {
            let touches = u32::from(next.0) <= u32::from(before.1) + 1;
            if touches {
                before.1 = before.1.max(next.1);
            }
            touches
        });
        match sorted[..] {
            [one] => Some(Self(Ranges::One([one]))),
            _ => Some(Self(Ranges::Several(sorted))),
        }
    }

    /// The ranges: first and last port.
    #[must_use]
    pub fn ranges(&self) -> &[(u16, u16)] {
        match &self.0 {
            Ranges::One(one) => one,
            Ranges::Several(ranges) => ranges,
        }
    }

    /// Whether `port` is one of them.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.ranges().iter().any(|&(first, last)| (first..=last).contains(&port))
    }

    pub(super) fn read(at: &At<'_>) -> Result<Self, Unexpected> {
        const ALLOWED: &str = "a port from 1 to 65535, or a range of them as \"from-to\"";
        let mut ranges = Vec::new();
        for port in at.list()? {
            let range = match port.value() {
                Value::Number(number) => number.as_u64().and_then(|n| u16::try_from(n).ok()).map(|n| (n, n)),
                Value::String(text) => parse_range(text),
                _ => None,
            };
            match range.filter(is_sound) {
                Some(range) => ranges.push(range),
                None => return Err(port.unexpected(ALLOWED)),
            }
        }
        Self::new(ranges).ok_or_else(|| at.unexpected(format!("at least one of: {ALLOWED}")))
    }

    pub(super) fn to_json(&self) -> Value {
        self.ranges()
            .iter()
            .map(|&(first, last)| if first == last { json!(first) } else { json!(format!("{first}-{last}")) })
            .collect()
    }
}

fn is_sound(&(first, last): &(u16, u16)) -> bool {
    first != 0 && first <= last
}

/// Reads `443` or `8000-8100`.
#[must_use]
pub fn parse_range(text: &str) -> Option<(u16, u16)> {
    let number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
    match text.split_once('-') {
        Some((first, last)) => Some((number(first)?, number(last)?)),
        None => number(text).map(|port| (port, port)),
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, &(first, last)) in self.ranges().iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_merge() {
        assert_eq!(
            Ports::new([(5, 6), (1, 2), (3, 3), (6, 9), (65535, 65535)]).unwrap().ranges(),
            [(1, 3), (5, 9), (65535, 65535)]
        );
        // What is the same is equal, however it was put together.
        assert_eq!(Ports::new([(1, 9), (2, 3), (10, u16::MAX)]), Some(Ports::any()));
        for none in [&[][..], &[(0, 1)], &[(2, 1)], &[(1, 1), (0, 1)], &[(1, 1), (2, 2), (4, 3)]] {
            assert!(Ports::new(none.iter().copied()).is_none(), "{none:?}");
        }
    }
}
