//! The CNI protocol, line by line of CNI.md (A1 … I37), against the product's binary: what it is given, and exactly what
//! it answers. What the rulesets let through is other modules' business.

mod add;
mod check;
mod concurrency;
mod config;
mod del;
mod environment;
mod gc;
mod hostile;
mod settings;
mod status;
mod vectors;
mod version;
