//! The attack suite: everything that a pod which is cut off may try, and what others may try on it.
//!
//! Each attack is fired at a released pod first and must arrive, so that its silence later means something. What counts
//! is what arrived on the other side. The tests know the product by its public face only: ADD, marks, `sync`, `status`.

mod allow;
mod basic;
mod burst;
mod churn;
mod datapaths;
mod ebpf;
mod ebpf_datapaths;
mod ebpf_ready;
mod interfaces;
mod oracle;
mod prober;
mod probes;
mod raw;
mod reported;
mod root;
mod saved;
mod sequences;
mod standing;
mod translated;
mod verdicts;
