//! What is wrong with a file of the state directory: a mark, which then seals, or a record, which then says nothing.

use serde::{Serialize, Serializer};
use thiserror::Error;

use crate::model::json::Unexpected;

/// What is wrong with it.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It is no JSON; why.
    #[error("not JSON: {0}")]
    NotJson(String),
    /// A key or a value is not one that may be there.
    #[error(transparent)]
    Unexpected(#[from] Unexpected),
    /// It is not a whole record; what is missing or wrong.
    #[error("{0}")]
    Incomplete(String),
    /// The file cannot be read; why.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// It is the record of another sandbox than its directory says.
    #[error("it is another sandbox's")]
    Misplaced,
}

impl Serialize for Fault {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
