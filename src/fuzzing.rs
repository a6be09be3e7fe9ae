//! The parsers that eat what others made, each with what holds of it whatever it is given: for property tests, for the seeds
//! in `fuzz/seeds/`, and for the programs in `fuzz/fuzz_targets/`, which search for what breaks it.
//!
//! Each parser says what that is beside itself, in a `try_any`. None of it is in the product.

use crate::{adopt, capture, evidence, install, kernel, model, plugin, report};

/// Reads any bytes; panics where something does not hold.
pub type Target = fn(&[u8]);

/// Their names, which are those of the programs and of the directories of seeds.
pub const TARGETS: [(&str, Target); 19] = [
    ("capture", capture::try_any),
    ("cni", plugin::cni::try_any),
    ("conflist", install::conflist::try_any),
    ("conntrack", kernel::conntrack::try_any),
    ("cri", adopt::try_any_cri),
    ("environment", plugin::cni::try_any_environment),
    ("escaped", model::escaped::try_any),
    ("history", report::try_any),
    ("host_pod", model::host_pod::try_any),
    ("libcni_cache", adopt::try_any),
    ("manifest", evidence::fuzzing::manifest),
    ("mark", model::mark::try_any),
    ("netlink", kernel::netlink::try_any),
    ("nflog", kernel::nflog::try_any),
    ("nft", kernel::nft::try_any),
    ("proc", evidence::fuzzing::proc),
    ("record", model::record::try_any),
    ("rtnetlink", kernel::rtnetlink::try_any),
    ("sock_diag", kernel::sock_diag::try_any),
];

/// Has the target of this name read `bytes`.
///
/// # Panics
/// Where something does not hold, or there is no such target.
#[cfg(fuzzing)]
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    assert!(target.is_some(), "no target is called {name}");
    target.iter().for_each(|(_, target)| target(bytes));
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn fuzz() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz"))
    }

    /// What was found by fuzzing is among them.
    #[test]
    fn every_seed_is_read() {
        for (name, target) in TARGETS {
            let seeds: Vec<_> = fs::read_dir(fuzz().join("seeds").join(name)).unwrap().collect();
            assert!(!seeds.is_empty(), "{name} has no seeds");
            for seed in seeds {
                target(&fs::read(seed.unwrap().path()).unwrap());
            }
        }
    }

    #[test]
    fn every_target_has_its_program_and_every_program_its_target() {
        let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
        let programs = manifest.lines().filter_map(|line| line.strip_prefix("path = \"fuzz_targets/"));
        let mut programs: Vec<_> = programs.filter_map(|line| line.strip_suffix(".rs\"")).collect();
        programs.sort_unstable();
        assert_eq!(programs, TARGETS.map(|(name, _)| name));
        for name in programs {
            let text = fs::read_to_string(fuzz().join(format!("fuzz_targets/{name}.rs"))).unwrap();
            assert!(text.contains(&format!("run_fuzz_target(\"{name}\", bytes)")), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_them_panic(bytes: Vec<u8>, target in proptest::sample::select(TARGETS.to_vec())) {
            target.1(&bytes);
        }
    }
}
