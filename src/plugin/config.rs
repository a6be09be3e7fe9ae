//! The plugin's entry in a conflist: checked whole, so that a typing error does not open a hole.
//!
//! Pure. What the CNI specification says of every configuration (name, version, prevResult) is the business of `cni`.

use std::path::{Path, PathBuf};

use log::LevelFilter;
use serde_json::Value;

use super::document::Document;
use crate::model::json::{At, Unexpected};
use crate::model::policy::Policy;
use crate::model::record::{Ebpf, HostGuard};
use crate::node::logging::{LogConfig, LogTarget};
use crate::node::state::DEFAULT_STATE_DIR;

/// The checked entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The state directory.
    pub state_dir: PathBuf,
    /// The policy of an isolated sandbox whose mark does not give one.
    pub policy: Policy,
    /// What is asked of the host guard.
    pub host_guard: HostGuard,
    /// What is asked of the eBPF layer.
    pub ebpf: Ebpf,
    /// Whether the first packets of what is dropped while a sandbox is isolated are kept.
    pub capture: bool,
    /// Where log lines go.
    pub log: LogConfig,
    /// Whether the agent takes in pods of this network that were made without the plugin.
    pub adopt: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from(DEFAULT_STATE_DIR),
            policy: Policy::default(),
            host_guard: HostGuard::default(),
            ebpf: Ebpf::default(),
            capture: true,
            log: LogConfig::default(),
            adopt: true,
        }
    }
}

impl Config {
    /// Reads the entry. Unknown keys at its top are left alone, since runtimes add their own.
    ///
    /// # Errors
    /// At the first value that is not allowed.
    pub fn read(entry: &Value) -> Result<Self, Unexpected> {
        let at = At::new("", entry);
        let mut config = Self::default();
        if let Some(state_dir) = at.get("stateDir")? {
            config.state_dir = read_state_dir(&state_dir)?;
        }
        if let Some(policy) = at.get("policy")? {
            config.policy = Policy::read(&policy)?;
        }
        if let Some(guard) = at.get("hostGuard")? {
            config.host_guard = guard
                .value()
                .as_str()
                .and_then(HostGuard::parse)
                .ok_or_else(|| guard.unexpected("\"auto\", \"require\" or \"off\""))?;
        }
        if let Some(capture) = at.get("capture")? {
            config.capture = capture.value().as_bool().ok_or_else(|| capture.unexpected("true or false"))?;
        }
        if let Some(ebpf) = at.get("ebpf")? {
            config.ebpf = ebpf
                .value()
                .as_str()
                .and_then(Ebpf::parse)
                .ok_or_else(|| ebpf.unexpected("\"auto\", \"always\" or \"off\""))?;
        }
        if let Some(log) = at.get("log")? {
            config.log = LogConfig::read(&log)?;
        }
        if let Some(adopt) = at.get("adopt")? {
            config.adopt = adopt.truth()?;
        }
        Ok(config)
    }

    /// The same of what was read for a call, which gives its policy away.
    ///
    /// # Errors
    /// At the first value that is not allowed.
    pub(super) fn of_document(document: &mut Document) -> Result<Self, Unexpected> {
        let config = Self::read(&document.value)?;
        Ok(match document.policy.take() {
            Some(policy) => Self { policy, ..config },
            None => config,
        })
    }

    /// What can be used of an entry that may be broken: DEL and GC have to clean up all the same.
    #[must_use]
    pub fn read_what_is_sound(entry: &Value) -> Self {
        let at = At::new("", entry);
        let part = |key| at.get(key).ok().flatten();
        let mut config = Self::default();
        if let Some(state_dir) = part("stateDir").and_then(|state_dir| read_state_dir(&state_dir).ok()) {
            config.state_dir = state_dir;
        }
        if let Some(log) = part("log").and_then(|log| LogConfig::read(&log).ok()) {
            config.log = log;
        }
        config
    }
}

fn read_state_dir(at: &At<'_>) -> Result<PathBuf, Unexpected> {
    let path = at.text().map(Path::new).map_err(|_| at.unexpected("an absolute path"))?;
    let usable = path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&0);
    if usable { Ok(path.to_owned()) } else { Err(at.unexpected("an absolute path")) }
}

impl LogConfig {
    fn read(at: &At<'_>) -> Result<Self, Unexpected> {
        at.object_of(&["target", "level"])?;
        let mut log = Self::default();
        if let Some(target) = at.get("target")? {
            log.target = target
                .value()
                .as_str()
                .and_then(LogTarget::parse)
                .ok_or_else(|| target.unexpected("\"syslog\" or \"stderr\""))?;
        }
        if let Some(level) = at.get("level")? {
            log.level =
                level.value().as_str().and_then(parse_level).ok_or_else(|| {
                    level.unexpected("\"off\", \"error\", \"warn\", \"info\", \"debug\" or \"trace\"")
                })?;
        }
        Ok(log)
    }
}

impl LogTarget {
    /// Reads `syslog` or `stderr`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "syslog" => Some(Self::Syslog),
            "stderr" => Some(Self::Stderr),
            _ => None,
        }
    }
}

/// Reads a level in lower case, as the configuration writes it.
#[must_use]
pub fn parse_level(text: &str) -> Option<LevelFilter> {
    text.parse().ok().filter(|level: &LevelFilter| level.as_str().to_ascii_lowercase() == text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn everything_but_the_type_is_optional() {
        assert_eq!(Config::read(&json!({"type": "quarantine", "unknown": 1})), Ok(Config::default()));
    }

    #[test]
    fn the_documented_example_is_taken() {
        let config = Config::read(&json!({
            "type": "quarantine",
            "stateDir": "/var/lib/cni/quarantine",
            "policy": {
                "loopback": true,
                "probes": true,
                "allow": [{"direction": "egress", "peer": "10.20.0.5/32", "protocol": "tcp", "ports": [443]}]
            },
            "hostGuard": "auto",
            "ebpf": "auto",
            "capture": true,
            "log": {"target": "syslog", "level": "info"},
            "adopt": true
        }))
        .unwrap();
        assert_eq!(config.policy.allow.len(), 1);
        assert_eq!(Config { policy: Policy::default(), ..config }, Config::default());
    }

    #[test]
    fn errors_name_key_and_value() {
        for (entry, start) in [
            (json!({"stateDir": "relative"}), "stateDir: \"relative\""),
            (json!({"stateDir": 1}), "stateDir: 1"),
            (json!({"stateDir": "/a\u{0}b"}), "stateDir: "),
            (json!({"hostGuard": "always"}), "hostGuard: \"always\""),
            (json!({"hostGuard": null}), "hostGuard: null"),
            (json!({"ebpf": "on"}), "ebpf: \"on\""),
            (json!({"capture": "no"}), "capture: \"no\""),
            (json!({"log": {"target": "file"}}), "log.target: \"file\""),
            (json!({"log": {"level": "INFO"}}), "log.level: \"INFO\""),
            (json!({"log": {"file": "x"}}), "log.file: \"x\""),
            (json!({"log": true}), "log: true"),
            (json!({"adopt": "no"}), "adopt: \"no\""),
            (json!({"policy": []}), "policy: []"),
        ] {
            let error = Config::read(&entry).unwrap_err().to_string();
            assert!(error.starts_with(start), "{entry}: {error}");
        }
    }

    #[test]
    fn what_is_sound_of_a_broken_entry_is_used() {
        let entry = json!({"stateDir": "/x", "policy": 7, "log": {"target": "stderr"}, "hostGuard": 3});
        let config = Config::read_what_is_sound(&entry);
        assert_eq!((config.state_dir, config.log.target), (PathBuf::from("/x"), LogTarget::Stderr));
    }
}
