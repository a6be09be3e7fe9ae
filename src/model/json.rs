//! Reading JSON strictly: what is wrong is said by key, value and what is allowed there.
//!
//! serde's derived errors name a line and a column of a document that the operator never sees (the runtime assembles
//! it), so the few structures that people write are read by hand with this. Not for what machines write to each other.

use serde_json::{Map, Value};
use thiserror::Error;

/// A value that is not what its key allows.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{key}: {value} is not allowed here: {allowed}")]
pub struct Unexpected {
    /// Where it is, as `policy.allow[0].ports[1]`.
    pub key: String,
    /// What is there, as JSON (cut short when long).
    pub value: String,
    /// What may be there.
    pub allowed: String,
}

/// A value and the path that leads to it, which is put together only where something is wrong.
#[derive(Debug, Clone)]
pub struct At<'a> {
    step: Step<'a>,
    value: &'a Value,
}

/// The last step to a value.
#[derive(Debug, Clone)]
enum Step<'a> {
    From(&'a str),
    Key(&'a At<'a>, &'a str),
    Index(&'a At<'a>, usize),
}

impl<'a> At<'a> {
    /// The value at `path` (which is only said, not looked up).
    #[must_use]
    pub fn new(path: &'a str, value: &'a Value) -> Self {
        Self { step: Step::From(path), value }
    }

    fn path(&self) -> String {
        match self.step {
            Step::From(path) => path.to_owned(),
            Step::Key(above, key) => match above.path() {
                path if path.is_empty() => key.to_owned(),
                path => format!("{path}.{key}"),
            },
            Step::Index(above, index) => format!("{}[{index}]", above.path()),
        }
    }

    /// That this value is not what is `allowed`.
    #[must_use]
    pub fn unexpected(&self, allowed: impl Into<String>) -> Unexpected {
        let mut value = self.value.to_string();
        if let Some((cut, _)) = value.char_indices().nth(80) {
            value.truncate(cut);
            value.push('…');
        }
        let path = self.path();
        let key = if path.is_empty() { "the document".to_owned() } else { path };
        Unexpected { key, value, allowed: allowed.into() }
    }

    /// The value itself.
    #[must_use]
    pub fn value(&self) -> &'a Value {
        self.value
    }

    /// The value as an object.
    ///
    /// # Errors
    /// When it is none.
    pub fn object(&self) -> Result<&'a Map<String, Value>, Unexpected> {
        self.value.as_object().ok_or_else(|| self.unexpected("an object"))
    }

    /// The value as an object that has no keys but `keys`.
    ///
    /// # Errors
    /// When it is none, or has another key: a key with a typing error must not go unseen.
    pub fn object_of(&self, keys: &[&str]) -> Result<&'a Map<String, Value>, Unexpected> {
        let object = self.object()?;
        match object.iter().find(|(key, _)| !keys.contains(&key.as_str())) {
            None => Ok(object),
            Some((key, value)) => {
                let at = self.child(key, value);
                Err(at.unexpected(format!("the key is unknown; known are {}", keys.join(", "))))
            }
        }
    }

    /// The value below `key`, where there is one.
    ///
    /// # Errors
    /// When this value is no object.
    pub fn get<'s>(&'s self, key: &'s str) -> Result<Option<At<'s>>, Unexpected> {
        Ok(self.object()?.get(key).map(|value| self.child(key, value)))
    }

    /// The value below `key`.
    ///
    /// # Errors
    /// When this value is no object, or there is nothing below `key`.
    pub fn required<'s>(&'s self, key: &'s str) -> Result<At<'s>, Unexpected> {
        self.get(key)?.ok_or_else(|| self.unexpected(format!("{key:?} is missing")))
    }

    /// The value as text.
    ///
    /// # Errors
    /// When it is none.
    pub fn text(&self) -> Result<&'a str, Unexpected> {
        self.value.as_str().ok_or_else(|| self.unexpected("a string"))
    }

    /// The value as a truth value.
    ///
    /// # Errors
    /// When it is none.
    pub fn truth(&self) -> Result<bool, Unexpected> {
        self.value.as_bool().ok_or_else(|| self.unexpected("true or false"))
    }

    /// The values of a list, in order.
    ///
    /// # Errors
    /// When it is no list.
    pub fn list(&self) -> Result<Vec<At<'_>>, Unexpected> {
        let values = self.value.as_array().ok_or_else(|| self.unexpected("a list"))?.iter();
        Ok(values.enumerate().map(|(index, value)| At { step: Step::Index(self, index), value }).collect())
    }

    fn child<'s>(&'s self, key: &'s str, value: &'s Value) -> At<'s> {
        At { step: Step::Key(self, key), value }
    }
}
