//! What runs inside a booted kernel: the tests that `scripts/test-kernels` reads the results of.
//!
//! The guest is a node of its own: the program is started by the guest's init in its root network namespace, makes a pod and
//! a peer beside it (`lab`), and prints one line for each check, which the script collects from the serial line. `facts`
//! asks the kernel, with nft alone, what the design rests on; `containment` runs the product, and `host_network` runs it on a pod without a
//! namespace of its own. It is an example and no test
//! because it treats the machine that it runs on as its own: never run it outside of a guest.
#![allow(missing_docs, clippy::print_stdout)]

mod containment;
mod datapath;
mod facts;
mod host_network;
mod lab;
mod sets;
mod wire;

use std::error::Error;
use std::time::Instant;

/// What a check ends in: nothing, or what it saw instead.
type Outcome = Result<(), Box<dyn Error>>;

/// Checks of one kind by name, in the order of their running.
type Checks<T> = [(&'static str, fn(&T) -> Outcome)];

/// Fails the check with this message where a condition doesn't hold.
macro_rules! ensure {
    ($condition:expr, $($sentence:tt)+) => {
        if !$condition {
            return Err(format!($($sentence)+).into());
        }
    };
}
pub(crate) use ensure;

/// Prints the line for one check, in the form that `scripts/test-kernels` reads: fields separated by tabs.
fn check(group: &str, name: &str, run: impl FnOnce() -> Outcome) {
    let start = Instant::now();
    let (verdict, detail) = match run() {
        Ok(()) => ("pass", String::new()),
        Err(error) => ("FAIL", error.to_string().replace(['\n', '\t'], " ")),
    };
    println!("check\t{group}\t{name}\t{verdict}\t{} ms\t{detail}", start.elapsed().as_millis());
}

/// Prints a line that is no check: something that was measured, or that differs from kernel to kernel.
fn note(text: &str) {
    println!("note\t{}", text.replace(['\n', '\t'], " "));
}

fn main() -> Outcome {
    ensure!(
        std::process::id() != 1 && std::path::Path::new("/guest").exists(),
        "this program only runs in the guest of scripts/test-kernels"
    );
    let groups: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |group: &str| groups.is_empty() || groups.iter().any(|name| name == group);
    if wanted("facts") {
        facts::check_all()?;
    }
    if wanted("containment") {
        containment::check_all()?;
    }
    if wanted("host-network") {
        host_network::check_all()?;
    }
    Ok(())
}
