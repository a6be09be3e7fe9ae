//! How long the kernel waits before it gives an established connection up: the settings of a netns that say so, and what they
//! were before it was isolated. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A setting of a netns, of TCP over both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// For how many retransmissions nothing may be acknowledged.
    TcpRetries2,
    /// Seconds without a packet before a connection that asks for keepalive probes sends one.
    TcpKeepaliveTime,
    /// How many of these probes may stay without an answer.
    TcpKeepaliveProbes,
}

impl Setting {
    /// All of them. Not `tcp_orphan_retries`: connections that no process has any more count against a limit of the whole node.
    pub const ALL: [Self; 3] = [Self::TcpRetries2, Self::TcpKeepaliveTime, Self::TcpKeepaliveProbes];

    /// Its name below `net.ipv4`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TcpRetries2 => "tcp_retries2",
            Self::TcpKeepaliveTime => "tcp_keepalive_time",
            Self::TcpKeepaliveProbes => "tcp_keepalive_probes",
        }
    }

    /// What it is while a sandbox is isolated, where it is not more already: the most that every kernel takes. Counts are bytes since
    /// 5.13; of the time more is an overflow in the kernel's ticks.
    #[must_use]
    pub fn patient(self) -> u32 {
        match self {
            Self::TcpRetries2 | Self::TcpKeepaliveProbes => 255,
            Self::TcpKeepaliveTime => 32_767,
        }
    }

    /// Reads its value as the kernel writes it; `None` for what is no value of it. Root in the pod may have set it.
    #[must_use]
    pub fn read(text: &str) -> Option<u32> {
        text.trim().parse().ok().filter(|value| i32::try_from(*value).is_ok())
    }
}

/// What was found in a netns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    /// In which one: another may be at its path by now.
    pub netns_cookie: u64,
    /// Of what was changed.
    pub values: BTreeMap<Setting, u32>,
    /// Since when it is released and waits for connections to go on before it is put back, in seconds of the node's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_since: Option<u64>,
}

impl Found {
    /// Reads what `serde_json` writes of it; `None` for a file that nobody here has written.
    #[must_use]
    pub fn read(text: &[u8]) -> Option<Self> {
        let found: Self = serde_json::from_slice(text).ok()?;
        found.values.values().all(|value| i32::try_from(*value).is_ok()).then_some(found)
    }

    /// What has to be raised, where these are the values now; that it has been found so is kept, but not over what was
    /// found before.
    pub fn raise(&mut self, now: &[(Setting, u32)]) -> Vec<Setting> {
        let low = now.iter().filter(|(setting, value)| *value < setting.patient());
        low.map(|&(setting, value)| {
            self.values.entry(setting).or_insert(value);
            setting
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_first_is_kept_and_nothing_is_lowered() {
        let mut found = Found::default();
        let now = [(Setting::TcpRetries2, 15), (Setting::TcpKeepaliveTime, 100_000), (Setting::TcpKeepaliveProbes, 9)];
        assert_eq!(found.raise(&now), [Setting::TcpRetries2, Setting::TcpKeepaliveProbes]);
        // Root in the pod has lowered it since.
        assert_eq!(found.raise(&[(Setting::TcpRetries2, 0)]), [Setting::TcpRetries2]);
        assert_eq!(found.values, BTreeMap::from([(Setting::TcpRetries2, 15), (Setting::TcpKeepaliveProbes, 9)]));
        let text = serde_json::to_vec(&found).unwrap();
        assert_eq!(Found::read(&text), Some(found));
    }

    #[test]
    fn a_value_is_a_number_that_the_kernel_could_have_written() {
        assert_eq!(Setting::read("15\n"), Some(15));
        for text in ["", "-1", "15 16", "0x10", "4294967295", "\u{1b}[2J"] {
            assert_eq!(Setting::read(text), None, "{text:?}");
        }
        for text in [
            &b"{}"[..],
            br#"{"netnsCookie": 1, "values": {"tcp_rmem": 1}}"#,
            br#"{"netnsCookie": 1, "values": {"tcp_retries2": 4294967295}}"#,
            br#"{"netnsCookie": 1, "values": {"tcp_retries2": "15"}}"#,
        ] {
            assert_eq!(Found::read(text), None, "{}", String::from_utf8_lossy(text));
        }
    }
}
