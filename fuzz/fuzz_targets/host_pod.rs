#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cni_quarantine::internals::run_fuzz_target("host_pod", bytes));
