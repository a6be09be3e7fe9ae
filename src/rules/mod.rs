//! What a policy becomes: tables, chains and rules as data, and as nft text. Pure: nothing here knows how the kernel is
//! told.

pub mod bpf;
pub mod branches;
pub mod containment;
mod field;
pub mod held;
pub mod reports;
pub mod ruleset;
pub mod senders;
mod text;
