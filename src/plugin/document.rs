//! Standard input to the document that a verb needs: how much of it is read, and how, not what it says, which is for `cni` and `config`.
//!
//! Pure. Every pod's start and end pay for what is read here, and a policy may be long. So it is read as what it is, without a tree
//! of values in between, which takes a quarter of the time. Where that fails, the whole document is read as a tree, in which `config`
//! finds what is wrong, and where.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::de::Read;
use serde_json::{Deserializer, Map, Value};

use super::cni::Call;
use crate::model::policy::Policy;

/// What was read of standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// All of it; without its policy, where that is beside it or was passed over.
    pub value: Value,
    /// Its policy, where nothing is wrong with it.
    pub policy: Option<Policy>,
}

impl From<Value> for Document {
    fn from(value: Value) -> Self {
        Self { value, policy: None }
    }
}

/// Reads a network configuration. What takes away needs no policy, and passes it over.
///
/// # Errors
/// Where it is no JSON.
pub(super) fn read_document(input: &[u8], call: &Call) -> Result<Document, serde_json::Error> {
    if matches!(call, Call::Del { .. } | Call::DelOfNothing | Call::Gc) {
        return read_once(Deserializer::from_slice(input), PolicyIs::PassedOver);
    }
    // Text is looked at once as a whole, and not string by string.
    let text = std::str::from_utf8(input).ok();
    match text.and_then(|text| read_once(Deserializer::from_str(text), PolicyIs::Read).ok()) {
        Some(document) => Ok(document),
        None => serde_json::from_slice::<Value>(input).map(Document::from),
    }
}

fn read_once<'de>(mut reader: Deserializer<impl Read<'de>>, policy: PolicyIs) -> Result<Document, serde_json::Error> {
    let document = reader.deserialize_map(policy)?;
    reader.end().map(|()| document)
}

/// An object, of which the policy is read apart from the rest.
enum PolicyIs {
    Read,
    PassedOver,
}

impl<'de> Visitor<'de> for PolicyIs {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Document, A::Error> {
        let (mut object, mut policy) = (Map::new(), None);
        while let Some(key) = entries.next_key::<String>()? {
            match (key.as_str(), &self) {
                // Of what is said twice, the last counts.
                ("policy", Self::Read) => policy = Some(entries.next_value()?),
                ("policy", Self::PassedOver) => drop(entries.next_value::<IgnoredAny>()?),
                _ => drop(object.insert(key, entries.next_value()?)),
            }
        }
        Ok(Document { value: Value::Object(object), policy })
    }
}

/// What holds of any bytes (`fuzzing`): a policy that is read as what it is is the one that is found in the tree, and the rest is the
/// rest of that.
#[cfg(any(test, fuzzing))]
pub(super) fn try_any(bytes: &[u8], call: &Call) {
    use crate::model::json::At;
    // What serde_json itself calls a number in a tree: an object that begins with it is none there.
    if String::from_utf8_lossy(bytes).contains("$serde_json::private") {
        return;
    }
    let said = |error: serde_json::Error| error.to_string();
    let careful = serde_json::from_slice::<Value>(bytes).map_err(said);
    match (read_document(bytes, call).map_err(said), careful) {
        (Ok(Document { value, policy: Some(policy) }), Ok(mut careful)) => {
            let of_tree = careful.as_object_mut().and_then(|object| object.shift_remove("policy")).unwrap_or_default();
            assert_eq!(Policy::read(&At::new("policy", &of_tree)), Ok(policy));
            assert_eq!(value.to_string(), careful.to_string());
        }
        (read, careful) => {
            assert_eq!(read.map(|document| document.value.to_string()), careful.map(|value| value.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::config::Config;
    use super::*;

    #[test]
    fn what_takes_away_reads_all_but_the_policy() {
        let text = br#"{"name": "n", "policy": {"allow": [1, {"x": "\u0041"}]}, "stateDir": "/x", "big": 18446744073709551616}"#;
        let whole = read_document(text, &Call::Status).unwrap().value;
        let Document { value: mut less, policy } = read_document(text, &Call::Gc).unwrap();
        assert_eq!((less.get("policy"), policy), (None, None));
        less["policy"] = whole["policy"].clone();
        assert_eq!(less, whole);
        for wrong in [&b""[..], b"[]", b"1", b"{} {}", b"{\"policy\": {}", b"{\"policy\": }", b"{\"a\": 1,}"] {
            assert!(read_document(wrong, &Call::Gc).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_as_of_the_tree() {
        for policy in [
            "null",
            "[]",
            "7",
            "{\"loopbak\": true}",
            "{\"loopback\": 1}",
            "{\"loopback\": true, \"loopback\": false}",
            "{\"probes\": null}",
            "{\"allow\": [{\"direction\": \"out\", \"peer\": \"10.0.0.1\", \"protocol\": \"tcp\"}]}",
            "{\"allow\": [{\"direction\": \"egress\", \"peer\": \"10.0.0.1\", \"protocol\": \"tcp\", \"ports\": [443, 0]}]}",
            "{\"allow\": [{\"direction\": \"egress\", \"peer\": \"10.0.0.1\", \"protocol\": \"tcp\", \"ports\": [-0]}]}",
            "{\"allow\": [{\"direction\": \"egress\", \"peer\": \"10.0.0.1\", \"protocol\": \"tcp\", \"ports\": [4e2]}]}",
            "{\"allow\": [{\"direction\": \"egress\", \"peer\": \"\\ud800\", \"protocol\": \"tcp\"}]}",
            "{\"allow\": [1,]}",
            "{\"allow\": [",
        ] {
            for text in [
                format!("{{\"stateDir\": \"relative\", \"policy\": {policy}}}"),
                format!("{{\"policy\": {policy}, \"hostGuard\": 3}}"),
                format!("{{\"policy\": {{}}, \"policy\": {policy}, \"x\": \"\\u0041\"}}"),
                format!("{{\"policy\": {policy}, \"policy\": {{}}}}"),
                format!("{{\"policy\": {policy}}} {{}}"),
            ] {
                try_any(text.as_bytes(), &Call::Status);
                let said = read_document(text.as_bytes(), &Call::Status)
                    .map_err(|error| error.to_string())
                    .and_then(|mut document| Config::of_document(&mut document).map_err(|error| error.to_string()));
                let of_tree = serde_json::from_str::<Value>(&text)
                    .map_err(|error| error.to_string())
                    .and_then(|tree| Config::read(&tree).map_err(|error| error.to_string()));
                assert_eq!(said, of_tree, "{text}");
            }
        }
    }

    /// Values that a policy may have, and others, at each of its places.
    fn policies() -> impl Strategy<Value = Value> {
        let word = |words: &'static [&'static str]| prop::sample::select(words).prop_map(|word| json!(word));
        let other = || prop::sample::select(vec![json!(null), json!(1), json!("x"), json!([]), json!({}), json!(-1.5)]);
        let port = prop_oneof![
            8 => (0_u32..70_000).prop_map(|port| json!(port)),
            4 => (0_u16..9, 0_u16..9).prop_map(|(first, last)| json!(format!("{first}-{last}"))),
            1 => other(),
        ];
        let ports = prop_oneof![8 => prop::collection::vec(port, 0..4).prop_map(Value::from), 1 => other()];
        let peer = prop_oneof![
            4 => word(&["10.20.0.5/32", "10.20.0.5", "10.20.0.5/8", "fd00::1/64", "::/0", "::ffff:1.2.3.4"]),
            1 => word(&["10.20.0.5/33", "10.20.0", "web", "", "10.20.0.5/255.255.0.0", "010.1.1.1"]),
            1 => other(),
        ];
        let entry = (
            prop_oneof![8 => word(&["ingress", "egress"]), 1 => other()],
            peer,
            prop_oneof![8 => word(&["tcp", "udp"]), 1 => other()],
            prop::option::of(ports),
            prop::option::weighted(0.1, prop::sample::select(vec!["direction", "peer", "protocol", "ports", "port"])),
        );
        let allow = entry.prop_map(|(direction, peer, protocol, ports, other)| {
            let mut entry = json!({"direction": direction, "peer": peer, "protocol": protocol});
            ports.into_iter().for_each(|ports| entry["ports"] = ports);
            // Missing, or not known.
            if let Some(object) = entry.as_object_mut().filter(|_| other.is_some()) {
                let key = other.unwrap_or_default();
                if object.remove(key).is_none() {
                    object.insert(key.to_owned(), json!(1));
                }
            }
            entry
        });
        let probes = prop_oneof![
            8 => any::<bool>().prop_map(Value::from),
            4 => (1_u16..9).prop_map(|port| json!({"ports": [port]})),
            1 => other(),
        ];
        (prop::option::of(any::<bool>()), prop::option::of(probes), prop::collection::vec(allow, 0..6)).prop_map(
            |(loopback, probes, allow)| {
                let mut policy = json!({ "allow": allow });
                loopback.into_iter().for_each(|loopback| policy["loopback"] = json!(loopback));
                probes.into_iter().for_each(|probes| policy["probes"] = probes);
                policy
            },
        )
    }

    proptest! {
        #[test]
        fn both_ways_of_reading_agree(policy in policies(), cut in any::<prop::sample::Index>(), is_cut in prop::bool::weighted(0.2)) {
            let text = json!({"cniVersion": "1.0.0", "name": "n", "policy": policy, "prevResult": {"ips": [{"x": 1.50}]}}).to_string();
            let text = &text.as_bytes()[..if is_cut { cut.index(text.len()) } else { text.len() }];
            try_any(text, &Call::Status);
            // Where the tree has a policy, it is not read twice.
            let read = serde_json::from_slice::<Value>(text).is_ok_and(|tree| Config::read(&tree).is_ok());
            prop_assert_eq!(read_document(text, &Call::Status).is_ok_and(|document| document.policy.is_some()), read);
        }
    }
}
