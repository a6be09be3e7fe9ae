//! Standard input to the document that a verb needs: how much of it is read, not what it says, which is for `cni` and `config`.
//!
//! Pure. Every pod's end pays for what is read here.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::cni::Call;

/// Reads a network configuration. What takes away needs no policy, which may be long, and passes it over.
///
/// # Errors
/// Where it is no JSON.
pub(super) fn read_document(input: &[u8], call: &Call) -> Result<Value, serde_json::Error> {
    if !matches!(call, Call::Del { .. } | Call::DelOfNothing | Call::Gc) {
        return serde_json::from_slice(input);
    }
    let mut reader = serde_json::Deserializer::from_slice(input);
    let document = reader.deserialize_map(WithoutPolicy)?;
    reader.end().map(|()| document)
}

/// An object without its policy.
struct WithoutPolicy;
impl<'de> Visitor<'de> for WithoutPolicy {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if key == "policy" {
                entries.next_value::<IgnoredAny>()?;
            } else {
                object.insert(key, entries.next_value()?);
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_away_reads_all_but_the_policy() {
        let text = br#"{"name": "n", "policy": {"allow": [1, {"x": "\u0041"}]}, "stateDir": "/x", "big": 18446744073709551616}"#;
        let whole = read_document(text, &Call::Status).unwrap();
        let mut less = read_document(text, &Call::Gc).unwrap();
        assert_eq!(less.get("policy"), None);
        less["policy"] = whole["policy"].clone();
        assert_eq!(less, whole);
        for wrong in [&b""[..], b"[]", b"1", b"{} {}", b"{\"policy\": {}", b"{\"policy\": }", b"{\"a\": 1,}"] {
            assert!(read_document(wrong, &Call::Gc).is_err(), "{wrong:?}");
        }
    }
}
