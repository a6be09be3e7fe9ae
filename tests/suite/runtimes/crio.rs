//! CRI-O. Debian has no package of it, so nothing is claimed about it: this module only sees to it that the suite's
//! output says so, and that it is noticed when that changes.

/// Fails, when asked to run where there is a CRI-O: then the test is to be written, beside containerd's, on [`super::cri`].
#[test]
#[ignore = "CRI-O is not tested: Debian has no package of it"]
fn cri_o() {
    assert!(!super::has("crio"), "there is a CRI-O on this machine now: test it");
}
