//! Which of the node's own connections to an isolated pod are let through: to which ports, and whose.

use std::fmt;

use serde_json::{Value, json};

use crate::model::cgroup::CgroupPath;
use crate::model::json::{At, Unexpected};
use crate::model::policy::Ports;

/// The connections that processes of the node may open to the pod, by TCP.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Probes {
    /// None.
    Off,
    /// These.
    On {
        /// To these ports; to every port where there are none.
        ports: Option<Ports>,
        /// Whose they are.
        prober: Prober,
    },
}

/// Whose connections are probes: of root's processes on the node, these.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Prober {
    /// All of them, those of pods with `hostNetwork` too.
    Root,
    /// Those in the cgroup of the kubelet, which is found by its process.
    Kubelet,
    /// Those in this cgroup, or below.
    Cgroup(CgroupPath),
}

/// What a policy says for [`Prober::Kubelet`]. A cgroup of this name at the root is written with a slash in front.
const KUBELET: &str = "kubelet";

impl Prober {
    /// Reads what a policy says.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            KUBELET => Some(Self::Kubelet),
            path => CgroupPath::new(path).map(Self::Cgroup),
        }
    }

    /// As a policy says it; nothing where it says nothing.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Root => None,
            Self::Kubelet => Some(KUBELET.to_owned()),
            Self::Cgroup(path) if path.as_str() == KUBELET => Some(format!("/{KUBELET}")),
            Self::Cgroup(path) => Some(path.to_string()),
        }
    }
}

impl Probes {
    /// Those of every root process of the node, to every port.
    #[must_use]
    pub fn any() -> Self {
        Self::On { ports: None, prober: Prober::Root }
    }

    /// The same to these ports.
    #[must_use]
    pub fn to_ports(ports: Ports) -> Self {
        Self::On { ports: Some(ports), prober: Prober::Root }
    }

    /// Whose connections are to be told from those of root's other processes.
    #[must_use]
    pub fn prober(&self) -> Option<&Prober> {
        match self {
            Self::Off | Self::On { prober: Prober::Root, .. } => None,
            Self::On { prober, .. } => Some(prober),
        }
    }

    pub(super) fn read(at: &At<'_>) -> Result<Self, Unexpected> {
        match at.value() {
            Value::Bool(true) => Ok(Self::any()),
            Value::Bool(false) => Ok(Self::Off),
            Value::Object(_) => {
                at.object_of(&["ports", "cgroup"])?;
                let prober = match at.get("cgroup")? {
                    None => Prober::Root,
                    Some(cgroup) => Prober::parse(cgroup.text()?).ok_or_else(|| {
                        cgroup.unexpected(
                            "\"kubelet\", or the path of a cgroup below the root, as \"system.slice/kubelet.service\"",
                        )
                    })?,
                };
                let ports = match (at.get("ports")?, &prober) {
                    (Some(ports), _) => Some(Ports::read(&ports)?),
                    (None, Prober::Root) => Some(Ports::read(&at.required("ports")?)?),
                    (None, _) => None,
                };
                Ok(Self::On { ports, prober })
            }
            _ => Err(at.unexpected("true, false or {\"ports\": […], \"cgroup\": \"…\"}")),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        match self {
            Self::Off => json!(false),
            Self::On { ports, prober } => match (ports, prober.text()) {
                (None, None) => json!(true),
                (Some(ports), None) => json!({ "ports": ports.to_json() }),
                (None, Some(cgroup)) => json!({ "cgroup": cgroup }),
                (Some(ports), Some(cgroup)) => json!({ "ports": ports.to_json(), "cgroup": cgroup }),
            },
        }
    }
}

impl fmt::Display for Probes {
    /// As a word of a policy.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::On { ports, prober } = self else { return Ok(()) };
        f.write_str("probes")?;
        if let Some(ports) = ports {
            write!(f, ":{ports}")?;
        }
        prober.text().map_or(Ok(()), |cgroup| write!(f, "@{cgroup}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Probes, String> {
        let value: Value = serde_json::from_str(text).unwrap();
        Probes::read(&At::new("probes", &value)).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_is_read_back() {
        for (text, words) in [
            ("true", "probes"),
            ("false", ""),
            (r#"{"ports":[8080,"9000-9010"]}"#, "probes:8080,9000-9010"),
            (r#"{"cgroup":"kubelet"}"#, "probes@kubelet"),
            (r#"{"cgroup":"/kubelet"}"#, "probes@/kubelet"),
            (r#"{"cgroup":"system.slice/kubelet.service"}"#, "probes@system.slice/kubelet.service"),
            (r#"{"cgroup":"kubelet.slice","ports":[8080]}"#, "probes:8080@kubelet.slice"),
        ] {
            let probes = read(text).unwrap();
            assert_eq!(probes.to_json(), serde_json::from_str::<Value>(text).unwrap());
            assert_eq!(probes.to_string(), words);
        }
        let given = |path: &str| read(&json!({ "cgroup": path }).to_string()).unwrap();
        assert_eq!(given("/kubelet.slice"), given("kubelet.slice"));
        assert_ne!(given("/kubelet"), given("kubelet"));
    }

    #[test]
    fn a_cgroup_is_a_path_of_plain_names_below_the_root() {
        for path in ["", "/", "//x", "x/", "x//y", "..", "x/../y", "x y", "x\"", "x\n"] {
            assert!(read(&json!({ "cgroup": path }).to_string()).is_err(), "{path:?}");
        }
        assert!(read(r#"{"cgroup":true}"#).is_err());
        assert!(read(r#"{"cgroup":"x","port":1}"#).is_err());
    }
}
