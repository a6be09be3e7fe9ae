//! The CNI protocol: environment and standard input to a [`Call`], results and failures to JSON.
//!
//! Pure, and the only place that knows the specification's versions and error codes. The checks come in the order that
//! the reference implementation has: environment (4), reading (5), decoding (6), name (7), version and verb (1); the
//! plugin's own settings (7) follow in `config`.

use std::ffi::{OsStr, OsString};
use std::fmt;

use serde_json::{Map, Value, json};

use super::document::Document;
use crate::model::names::{AttachmentId, ContainerId, IfName, NameError, NetnsPath, NetworkName, Pod, PodName, PodUid};

/// The versions of the specification that are spoken, oldest first. 0.3.0 has the wire format of 0.3.1.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What a failure means to the runtime, with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The version is not spoken, or has no such verb.
    IncompatibleVersion = 1,
    /// A variable of the environment is missing or bad.
    InvalidEnvironment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// Standard input is no JSON object of the form it must have.
    Decoding = 6,
    /// The configuration is not allowed.
    InvalidConfig = 7,
    /// What CNI_NETNS names is not a network namespace to act in.
    InvalidNetns = 8,
    /// Somebody else is at work on the sandbox: the runtime may try again.
    TryAgain = 11,
    /// The plugin cannot serve ADD now.
    NotAvailable = 50,
    /// The kernel refused, or could not be asked.
    Kernel = 100,
    /// The state directory is not sound.
    State = 101,
    /// CHECK found something that is not as it should be.
    Altered = 102,
    /// The configuration requires a host guard and the pod has no host-side peer.
    NoHostPeer = 103,
}

/// Why a verb failed, as the runtime is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What it means.
    pub code: Code,
    /// What failed, on what, and what to do.
    pub message: String,
    /// What is said besides.
    pub details: Option<String>,
}

impl Failure {
    /// A failure without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: None }
    }

    /// The one JSON document of a call that failed; `version` is the configuration's, where one could be read.
    #[must_use]
    pub fn to_json(&self, version: Option<&str>) -> Value {
        let newest = VERSIONS[VERSIONS.len() - 1];
        let mut object = json!({
            "cniVersion": version.unwrap_or(newest),
            "code": self.code as u32,
            "msg": self.message,
        });
        if let Some(details) = &self.details {
            object["details"] = json!(details);
        }
        object
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.message, self.code as u32)
    }
}

/// A call, with all that its verb needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Make an attachment.
    Add(Target),
    /// See whether it is as it should be.
    Check(Target),
    /// Take it away.
    Del {
        /// Which one.
        attachment: AttachmentId,
        /// Where its netns was; runtimes leave it out once it is closed.
        netns: Option<NetnsPath>,
        /// The pod, as far as it was said well.
        pod: Pod,
    },
    /// Take away what is no longer valid.
    Gc,
    /// Take away what could never have been added: the container ID is valid and longer than ADD takes.
    DelOfNothing,
    /// Say whether ADD can be served.
    Status,
    /// Say which versions are spoken.
    Version,
}

/// What ADD and CHECK are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Which attachment.
    pub attachment: AttachmentId,
    /// Where its netns is.
    pub netns: NetnsPath,
    /// The pod.
    pub pod: Pod,
    /// Whether the netns may be the plugin's own (`CNI_NETNS_OVERRIDE`).
    pub own_netns_allowed: bool,
}

impl Call {
    /// Reads the environment; a variable that is empty counts as missing, since libcni sets all of them.
    ///
    /// # Errors
    /// Code 4; the message names each variable.
    pub fn from_environment(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, Failure> {
        let lookup = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let verb = lookup("CNI_COMMAND").unwrap_or_default();
        let require = |names: &[&str]| {
            let missing: Vec<_> = names.iter().copied().filter(|name| lookup(name).is_none()).collect();
            if missing.is_empty() {
                Ok(())
            } else {
                let message = format!("required environment variables missing: {}", missing.join(", "));
                Err(Failure::new(Code::InvalidEnvironment, message))
            }
        };
        let attachment = || {
            Ok(AttachmentId {
                container_id: variable("CNI_CONTAINERID", lookup("CNI_CONTAINERID"), ContainerId::new)?,
                ifname: variable("CNI_IFNAME", lookup("CNI_IFNAME"), |text| IfName::new(text))?,
            })
        };
        let target = || {
            require(&["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])?;
            Ok(Target {
                attachment: attachment()?,
                netns: NetnsPath::new(lookup("CNI_NETNS").unwrap_or_default())
                    .map_err(|error| Failure::new(Code::InvalidEnvironment, format!("CNI_NETNS: {error}")))?,
                pod: read_args(lookup("CNI_ARGS").as_deref())?,
                own_netns_allowed: lookup("CNI_NETNS_OVERRIDE")
                    .is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true")),
            })
        };
        match verb.as_encoded_bytes() {
            b"ADD" => Ok(Self::Add(target()?)),
            b"CHECK" => Ok(Self::Check(target()?)),
            b"DEL" => {
                require(&["CNI_CONTAINERID", "CNI_IFNAME"])?;
                let id = lookup("CNI_CONTAINERID").unwrap_or_default();
                if matches!(id.to_str().map(ContainerId::new), Some(Err(NameError::TooLong { .. }))) {
                    return Ok(Self::DelOfNothing);
                }
                Ok(Self::Del {
                    attachment: attachment()?,
                    netns: lookup("CNI_NETNS").and_then(|path| NetnsPath::new(path).ok()),
                    pod: read_args(lookup("CNI_ARGS").as_deref()).unwrap_or_default(),
                })
            }
            b"GC" => Ok(Self::Gc),
            b"STATUS" => Ok(Self::Status),
            b"VERSION" => Ok(Self::Version),
            _ => {
                let message =
                    format!("CNI_COMMAND {verb:?} is unknown; known are ADD, CHECK, DEL, GC, STATUS and VERSION");
                Err(Failure::new(Code::InvalidEnvironment, message))
            }
        }
    }

    /// The first version of the specification that has the verb.
    fn since(&self) -> Version {
        match self {
            Self::Add(_) | Self::Del { .. } | Self::DelOfNothing | Self::Version => Version(0),
            Self::Check(_) => Version(2),
            Self::Gc | Self::Status => Version(4),
        }
    }
}

fn variable<T, E: fmt::Display>(
    name: &str,
    value: Option<OsString>,
    check: impl Fn(&str) -> Result<T, E>,
) -> Result<T, Failure> {
    let value = value.unwrap_or_default();
    let invalid = |error: String| Failure::new(Code::InvalidEnvironment, format!("{name}: {error}"));
    let text = value.to_str().ok_or_else(|| invalid(format!("{value:?} is not UTF-8")))?;
    check(text).map_err(|error| invalid(error.to_string()))
}

/// Reads what CNI_ARGS (`KEY=value;KEY=value`) says of the pod. Other keys are other plugins'.
fn read_args(args: Option<&OsStr>) -> Result<Pod, Failure> {
    let invalid = |error: String| Failure::new(Code::InvalidEnvironment, format!("CNI_ARGS: {error}"));
    let mut pod = Pod::default();
    let Some(args) = args else { return Ok(pod) };
    let args = args.to_str().ok_or_else(|| invalid(format!("{args:?} is not UTF-8")))?;
    for pair in args.split(';').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| invalid(format!("{pair:?} is not KEY=value")))?;
        if value.is_empty() {
            continue;
        }
        let named = |error: NameError| invalid(format!("{key}: {error}"));
        match key {
            "K8S_POD_NAMESPACE" => pod.namespace = Some(PodName::new(value).map_err(named)?),
            "K8S_POD_NAME" => pod.name = Some(PodName::new(value).map_err(named)?),
            "K8S_POD_UID" => pod.uid = Some(PodUid::new(value).map_err(named)?),
            _ => {}
        }
    }
    Ok(pod)
}

/// A version of the specification, by its place in [`VERSIONS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(usize);

impl Version {
    /// As the configuration writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        VERSIONS[self.0]
    }

    /// Whether results say of each address which family it has (`ips[].version`), as they did before 1.0.0.
    fn names_family_of_addresses(self) -> bool {
        self.0 < 3
    }
}

/// A network configuration: what the specification says of it, and the document for the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The version that the runtime speaks.
    pub version: Version,
    /// The network's name.
    pub name: NetworkName,
    /// The document.
    pub document: Document,
}

impl Network {
    /// Takes what was read of standard input for `call`.
    ///
    /// # Errors
    /// Codes 6, 7 and 1, in this order.
    pub fn of_document(document: Result<Document, serde_json::Error>, call: &Call) -> Result<Self, Failure> {
        let decoding = |message: String| Failure::new(Code::Decoding, format!("the network configuration {message}"));
        let document = document.map_err(|error| decoding(format!("is not JSON: {error}")))?;
        let Some(object) = document.value.as_object() else {
            return Err(decoding("is not a JSON object".to_owned()));
        };
        let text = |key: &str| match object.get(key) {
            None | Some(Value::Null) => Ok(""),
            Some(Value::String(text)) => Ok(text.as_str()),
            Some(other) => Err(decoding(format!("has {other} as its {key}, which must be a string"))),
        };
        let (version, name) = (text("cniVersion")?, text("name")?);
        let name =
            NetworkName::new(name).map_err(|error| Failure::new(Code::InvalidConfig, format!("name: {error}")))?;
        // What says no version is 0.1.0, the first that had none to say.
        let version = if version.is_empty() { "0.1.0" } else { version };
        let incompatible = |message: &str| Failure {
            code: Code::IncompatibleVersion,
            message: message.to_owned(),
            details: Some(format!("config is {version:?}, plugin supports {VERSIONS:?}")),
        };
        let known = VERSIONS.iter().position(|&known| known == version).map(Version);
        let version = known.ok_or_else(|| incompatible("the configuration's cniVersion is not supported"))?;
        if version < call.since() {
            return Err(incompatible("the configuration's cniVersion does not have this CNI_COMMAND"));
        }
        Ok(Self { version, name, document })
    }

    /// The previous plugin's result.
    ///
    /// # Errors
    /// Code 7 where there is none or it is of no form that a result has.
    pub fn previous_result(&self) -> Result<PreviousResult, Failure> {
        let invalid = |message: &str| Failure::new(Code::InvalidConfig, format!("prevResult {message}"));
        match self.document.value.get("prevResult") {
            None | Some(Value::Null) => Err(invalid(
                "is missing: quarantine runs behind another plugin; put it after the main plugin of a conflist",
            )),
            Some(Value::Object(result)) => PreviousResult::read(result.clone()).map_err(|message| invalid(&message)),
            Some(_) => Err(invalid("is not a JSON object")),
        }
    }

    /// The attachments that `cni.dev/valid-attachments` names, `None` where it is not said.
    ///
    /// # Errors
    /// Code 7 where it is no list of attachments: nothing may be removed by guess.
    pub fn valid_attachments(&self) -> Result<Option<Vec<AttachmentId>>, Failure> {
        const KEY: &str = "cni.dev/valid-attachments";
        match self.document.value.get(KEY) {
            None => Ok(None),
            // A nil slice of Go: CRI-O with no pods.
            Some(Value::Null) => Ok(Some(Vec::new())),
            Some(Value::Array(entries)) => {
                entries.iter().map(read_valid_attachment).collect::<Result<Vec<_>, _>>().map(Some)
            }
            Some(_) => Err(Failure::new(Code::InvalidConfig, format!("{KEY} is not a list"))),
        }
    }
}

fn read_valid_attachment(entry: &Value) -> Result<AttachmentId, Failure> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
    let attachment = ContainerId::new(text("containerID"))
        .and_then(|container_id| Ok(AttachmentId { container_id, ifname: IfName::new(text("ifname"))? }));
    attachment
        .map_err(|error| Failure::new(Code::InvalidConfig, format!("cni.dev/valid-attachments: {entry}: {error}")))
}

/// A result of the plugin before, kept as it came: unknown fields, order and numbers of any size included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviousResult(Map<String, Value>);

impl PreviousResult {
    fn read(result: Map<String, Value>) -> Result<Self, String> {
        for key in ["interfaces", "ips", "routes"] {
            let list = match result.get(key) {
                None | Some(Value::Null) => continue,
                Some(list) => list.as_array().ok_or_else(|| format!("has {key} that is not a list"))?,
            };
            if !list.iter().all(Value::is_object) {
                return Err(format!("has an entry in {key} that is not an object"));
            }
        }
        Ok(Self(result))
    }

    fn list(&self, key: &str) -> &[Value] {
        self.0.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }

    /// The names of the interfaces that it places in a sandbox, each with the sandbox's path.
    pub fn sandbox_interfaces(&self) -> impl Iterator<Item = (IfName, &str)> {
        self.list("interfaces").iter().filter_map(|interface| {
            let text = |key: &str| interface.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
            Some((IfName::new(text("name")?).ok()?, text("sandbox")?))
        })
    }

    /// The addresses that it gave to the interface `name`; those that name no interface are everybody's.
    pub fn addresses_of<'a>(&'a self, name: &'a IfName) -> impl Iterator<Item = std::net::IpAddr> + 'a {
        self.list("ips").iter().filter_map(move |ip| {
            let index = ip.get("interface").and_then(Value::as_u64).and_then(|index| usize::try_from(index).ok());
            let interface = index.and_then(|index| self.list("interfaces").get(index));
            let named = interface.and_then(|interface| interface.get("name")).and_then(Value::as_str);
            let is_its = named.is_none_or(|named| named.as_bytes() == name.as_bytes());
            is_its
                .then(|| ip.get("address").and_then(Value::as_str).and_then(crate::model::names::parse_address))
                .flatten()
        })
    }

    /// The result that is passed on: this one in the configuration's version. Only what differs between the families
    /// of the specification is changed: before 1.0.0 each address says its family.
    #[must_use]
    pub fn into_result(mut self, version: Version) -> Value {
        if let Some(ips) = self.0.get_mut("ips").and_then(Value::as_array_mut) {
            for ip in ips.iter_mut().filter_map(Value::as_object_mut) {
                if !version.names_family_of_addresses() {
                    ip.shift_remove("version");
                } else if !ip.contains_key("version") {
                    let address =
                        ip.get("address").and_then(Value::as_str).and_then(crate::model::names::parse_address);
                    if let Some(address) = address {
                        ip.insert("version".to_owned(), json!(if address.is_ipv6() { "6" } else { "4" }));
                    }
                }
            }
        }
        let mut result = self.0;
        if let Some(said) = result.get_mut("cniVersion") {
            *said = json!(version.as_str());
        } else {
            result.shift_insert(0, "cniVersion".to_owned(), json!(version.as_str()));
        }
        Value::Object(result)
    }
}

/// The answer to VERSION.
#[must_use]
pub fn versions(said: Option<&str>) -> Value {
    json!({ "cniVersion": said.unwrap_or(VERSIONS[VERSIONS.len() - 1]), "supportedVersions": VERSIONS })
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub fn try_any(bytes: &[u8]) {
    let variables = [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c1"), ("CNI_NETNS", "/n"), ("CNI_IFNAME", "eth0")];
    let lookup = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
    let Ok(call) = Call::from_environment(lookup) else { return };
    super::document::try_any(bytes, &call);
    let Ok(network) = Network::of_document(super::document::read_document(bytes, &call), &call) else { return };
    let _ = super::config::Config::read_what_is_sound(&network.document.value);
    let _ = network.valid_attachments();
    if let Ok(previous) = network.previous_result() {
        for (name, _) in previous.sandbox_interfaces() {
            let _ = previous.addresses_of(&name).count();
        }
        let result = previous.into_result(network.version);
        assert_eq!(result["cniVersion"], network.version.as_str());
    }
}

/// What holds of any bytes (`fuzzing`), taken as what the environment says of a call.
#[cfg(any(test, fuzzing))]
pub fn try_any_environment(bytes: &[u8]) {
    use std::os::unix::ffi::OsStrExt;
    let mut values = bytes.split(|&byte| byte == 0).map(|value| OsStr::from_bytes(value).to_owned());
    let names = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"];
    let values: Vec<OsString> = names.iter().map(|_| values.next().unwrap_or_default()).collect();
    let lookup = |name: &str| names.iter().position(|known| *known == name).map(|at| values[at].clone());
    if let Ok(Call::Add(Target { attachment, pod, .. })) = Call::from_environment(lookup) {
        // They become names of files.
        let container_id = attachment.container_id.as_str();
        assert!(!container_id.contains('/') && !container_id.starts_with('.'));
        assert!(!attachment.ifname.as_bytes().contains(&b'/'));
        let keys = [pod.lasting_key(), pod.name_key()];
        assert!(keys.iter().flatten().all(|key| !key.as_str().contains('/') && !key.as_str().starts_with('.')));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(variables: &[(&str, &str)]) -> Result<Call, Failure> {
        Call::from_environment(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn missing_variables_are_all_named() {
        let failure = call(&[("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", ""), ("CNI_IFNAME", "eth0")]).unwrap_err();
        assert_eq!(failure.code, Code::InvalidEnvironment);
        assert!(failure.message.contains("CNI_CONTAINERID, CNI_NETNS") && !failure.message.contains("CNI_IFNAME"));
    }

    #[test]
    fn pods_are_read_in_any_order_among_other_keys() {
        let pod =
            read_args(Some(OsStr::new("IgnoreUnknown=1;K8S_POD_UID=u-1;X=/;K8S_POD_NAME=n;;K8S_POD_NAMESPACE=ns")))
                .unwrap();
        assert_eq!(pod.name_key().unwrap().as_str(), "ns_n");
        assert_eq!(pod.uid.unwrap().as_str(), "u-1");
        for bad in ["K8S_POD_UID=../x", "K8S_POD_NAME=a/b", "K8S_POD_NAMESPACE=.", "novalue"] {
            assert!(read_args(Some(OsStr::new(bad))).unwrap_err().message.starts_with("CNI_ARGS: "), "{bad}");
        }
    }

    #[test]
    fn results_keep_everything_but_what_the_version_changes() {
        let text = r#"{"ips":[{"address":"10.0.0.2/24","version":"4","x":[1.50]}],"z":18446744073709551616,"a":null}"#;
        let previous = PreviousResult::read(serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!(
            previous.clone().into_result(Version(2)).to_string(),
            format!("{{\"cniVersion\":\"0.4.0\",{}", &text[1..])
        );
        assert_eq!(
            previous.into_result(Version(4)).to_string(),
            r#"{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.2/24","x":[1.50]}],"z":18446744073709551616,"a":null}"#
        );
    }
}
