//! Who is meant: the names under which a runtime, an operator and the kernel speak of one sandbox.
//!
//! Every name is checked once, where it enters, and then carried by a type that cannot hold a bad one: most of them
//! become file names below the state directory or names of kernel objects. Pure: nothing here opens or asks anything.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize, Serializer};
use thiserror::Error;

/// The longest container ID that is still a file name (`NAME_MAX` 255) and, behind `quarantine-`, a table name
/// (`NFT_NAME_MAXLEN` 256 with its NUL). Kubernetes' own names are shorter but for those of pods, 253.
const ID_LENGTH_MAX: usize = 240;
/// The longest file name.
const NAME_LENGTH_MAX: usize = 255;

/// A name that cannot be taken.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NameError {
    /// The text is not of the form that the field has.
    #[error("{value:?} is not a valid {what}: {allowed}")]
    Invalid {
        /// What the text was meant to be.
        what: &'static str,
        /// The text.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// It is of the right form and longer than what can be made of it here: a file name, the name of a table.
    #[error("{value:?} is too long a {what}: no more than {max} bytes can be a file name and part of a table's name")]
    TooLong {
        /// What the text was meant to be.
        what: &'static str,
        /// The text.
        value: String,
        /// The most that is taken.
        max: usize,
    },
}

/// `[A-Za-z0-9][A-Za-z0-9_.-]*`, as the CNI specification has it for container IDs and network names: nothing of
/// that form can leave a directory or be hidden in it.
fn is_plain_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

macro_rules! plain_name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $length_max:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(&text)
            }
        }

        impl $name {
            /// Checks `text`.
            ///
            /// # Errors
            /// When it is not a letter or digit followed by letters, digits, `_`, `.` or `-`, or too long.
            pub fn new(text: &str) -> Result<Self, NameError> {
                let value = text.to_owned();
                if !is_plain_name(text) {
                    let allowed = "a letter or digit, then letters, digits, '_', '.' or '-'";
                    Err(NameError::Invalid { what: $what, value, allowed })
                } else if text.len() > $length_max {
                    Err(NameError::TooLong { what: $what, value, max: $length_max })
                } else {
                    Ok(Self(value))
                }
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

plain_name! {
    /// The sandbox's container ID (`CNI_CONTAINERID`).
    ContainerId, "container ID", ID_LENGTH_MAX
}
plain_name! {
    /// The name of a CNI network (`name` of the conflist).
    NetworkName, "network name", NAME_LENGTH_MAX
}
plain_name! {
    /// A pod's UID (`K8S_POD_UID`).
    PodUid, "pod UID", NAME_LENGTH_MAX
}
plain_name! {
    /// A pod's namespace or name (`K8S_POD_NAMESPACE`, `K8S_POD_NAME`).
    PodName, "pod namespace or name", NAME_LENGTH_MAX
}
plain_name! {
    /// The file name of a mark: a container ID, a pod UID, or `<namespace>_<pod name>`.
    Key, "mark", NAME_LENGTH_MAX
}

impl From<&ContainerId> for Key {
    fn from(id: &ContainerId) -> Self {
        Self(id.0.clone())
    }
}

impl From<&PodUid> for Key {
    fn from(uid: &PodUid) -> Self {
        Self(uid.0.clone())
    }
}

/// The name of a network interface (`CNI_IFNAME`, `IFLA_IFNAME`). Bytes, not text: whoever is root in a pod can call
/// an interface almost anything, and must not get out of the guard's sight by that.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct IfName(Vec<u8>);

impl IfName {
    /// The loopback interface, which has the same name in every netns.
    #[must_use]
    pub fn lo() -> Self {
        Self(b"lo".to_vec())
    }

    /// Checks `name` by the kernel's own rule (`dev_valid_name`).
    ///
    /// # Errors
    /// When it is empty, longer than 15 bytes, `.` or `..`, or holds `/`, `:` or white space.
    pub fn new(name: impl AsRef<[u8]>) -> Result<Self, NameError> {
        let name = name.as_ref();
        let valid = (1..=15).contains(&name.len())
            && name != b"."
            && name != b".."
            && !name.iter().any(|&byte| b"/:\0\x0b".contains(&byte) || byte.is_ascii_whitespace());
        if valid {
            Ok(Self(name.to_owned()))
        } else {
            Err(NameError::Invalid {
                what: "interface name",
                value: String::from_utf8_lossy(name).into_owned(),
                allowed: "1 to 15 bytes, not '.' or '..', without '/', ':' and white space",
            })
        }
    }

    /// The name as the kernel has it.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<String> for IfName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl Serialize for IfName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Display for IfName {
    /// With escapes for what is not printable ASCII, so that different names stay different.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The broadcast address.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// The zero address, which an ARP request carries as its target.
    pub const ZERO: Self = Self([0; 6]);

    /// Reads `aa:bb:cc:dd:ee:ff`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part =
                parts.next().filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        parts.next().is_none().then_some(Self(bytes))
    }
}

impl TryFrom<String> for Mac {
    type Error = NameError;

    fn try_from(value: String) -> Result<Self, NameError> {
        let allowed = "six pairs of hexadecimal digits, as \"02:00:00:00:00:01\"";
        Self::parse(&value).ok_or(NameError::Invalid { what: "Ethernet address", value, allowed })
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What the runtime says of the pod that the sandbox belongs to. Each part may be unknown: only Kubernetes'
/// runtimes say all three.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// `K8S_POD_NAMESPACE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<PodName>,
    /// `K8S_POD_NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<PodName>,
    /// `K8S_POD_UID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<PodUid>,
}

impl Pod {
    /// The key of a mark by name, `<namespace>_<pod name>`, where both are known.
    #[must_use]
    pub fn name_key(&self) -> Option<Key> {
        let (namespace, name) = (self.namespace.as_ref()?, self.name.as_ref()?);
        Key::new(&format!("{namespace}_{name}")).ok()
    }

    /// Whether a mark of this name is one by its name.
    #[must_use]
    pub fn is_named(&self, key: &Key) -> bool {
        let (Some(namespace), Some(name)) = (&self.namespace, &self.name) else { return false };
        let rest = key.as_str().strip_prefix(namespace.as_str()).and_then(|rest| rest.strip_prefix('_'));
        rest == Some(name.as_str())
    }
}

impl Pod {
    /// The key of a mark that outlives a sandbox of this pod: by UID, else by name.
    #[must_use]
    pub fn lasting_key(&self) -> Option<Key> {
        self.uid.as_ref().map(Key::from).or_else(|| self.name_key())
    }

    /// Whether both are one pod, as far as is known: by UID; where neither has one, by namespace and name.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.uid == other.uid
            && (self.uid.is_some() || self.name_key().is_some_and(|name| other.name_key() == Some(name)))
    }
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.namespace, &self.name) {
            (Some(namespace), Some(name)) => write!(f, "{namespace}/{name}"),
            (None, Some(name)) => write!(f, "{name}"),
            _ => f.write_str("-"),
        }
    }
}

/// An interface of the sandbox as it was when its ADD ended: the identity that the policy lets speak. It is pinned
/// then, because whoever is root in the pod can give the interface another pod's addresses, or routes, later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxInterface {
    /// Its name in the sandbox.
    pub name: IfName,
    /// Its Ethernet address, where it has one.
    pub mac: Option<Mac>,
    /// Its own addresses, link-local ones included.
    pub addresses: Vec<IpAddr>,
    /// The routes that lead out of it.
    pub routes: Vec<Route>,
}

/// A route of the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where it leads.
    pub destination: IpNetwork,
    /// The next hop; none where the destination is on the link.
    #[serde(deserialize_with = "Option::deserialize")]
    pub gateway: Option<IpAddr>,
}

/// One (network name, container ID, interface name): what one ADD made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttachmentId {
    /// The sandbox.
    pub container_id: ContainerId,
    /// The interface name that the runtime asked for.
    pub ifname: IfName,
}

/// Where the runtime says that the sandbox's network namespace is (`CNI_NETNS`). Whether one is there is for `netns`
/// to prove.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "PathBuf")]
pub struct NetnsPath(PathBuf);

impl NetnsPath {
    /// Checks `path`.
    ///
    /// # Errors
    /// When it is not absolute.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, NameError> {
        let path = path.into();
        if path.is_absolute() {
            Ok(Self(path))
        } else {
            let value = path.display().to_string();
            Err(NameError::Invalid { what: "network namespace path", value, allowed: "an absolute path" })
        }
    }

    /// The path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<PathBuf> for NetnsPath {
    type Error = NameError;

    fn try_from(path: PathBuf) -> Result<Self, NameError> {
        Self::new(path)
    }
}

impl Serialize for NetnsPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for NetnsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.display())
    }
}

/// Reads an address as `prevResult` writes it: with or without a prefix length.
#[must_use]
pub fn parse_address(text: &str) -> Option<IpAddr> {
    text.parse::<IpNetwork>().ok().map(|network| network.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_ids_follow_the_specification() {
        for good in ["a", "0", "A_b.c-d", &"x".repeat(240)] {
            assert!(ContainerId::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-a", "_a", ".a", "a/b", "a b", "a\n", "ä", "a\0", &"x".repeat(241)] {
            assert!(ContainerId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn interface_names_follow_the_kernel() {
        for good in ["e", "eth0", "a.b", "...", "123456789012345", "\"$(x)"] {
            assert!(IfName::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "a\u{b}b", "1234567890123456"] {
            assert!(IfName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ethernet_addresses_are_read_as_they_are_printed() {
        let mac = Mac([0xee, 0, 1, 0xab, 9, 0xff]);
        assert_eq!(Mac::parse(&mac.to_string()), Some(mac));
        for bad in ["", "ee:00", "ee:00:01:ab:09:ff:00", "ee:00:01:ab:09:f", "ee:00:01:ab:09:+f", "gg:00:01:ab:09:ff"] {
            assert_eq!(Mac::parse(bad), None, "{bad}");
        }
    }
}
