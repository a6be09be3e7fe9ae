//! What a policy becomes: tables, chains and rules as data, and as nft text. Pure: nothing here knows how the kernel is
//! told.

mod alike;
pub mod bpf;
pub mod branches;
pub mod containment;
mod field;
pub mod held;
mod order;
pub mod reports;
pub mod ruleset;
pub mod senders;
mod text;
mod value;

/// Brings a table into the form in which it is loaded: rules that are alike put together, then those that begin alike in
/// branches, and in each what costs least is asked first. What passes stays the same.
pub fn arrange(table: &mut ruleset::Table) {
    alike::put_together(table);
    branches::branch_off(table);
    order::cheapest_first(table);
}
