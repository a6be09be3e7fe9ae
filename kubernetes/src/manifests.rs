//! What is applied to a cluster: the definition, and the files of `manifests/`, in one.

/// All of it, as `conf/kubernetes/quarantine.yaml` has it.
///
/// # Errors
/// Where the definition cannot be written as YAML.
pub fn all() -> Result<String, serde_saphyr::ser::Error> {
    let parts = [
        include_str!("../manifests/10-namespace.yaml"),
        &crate::api::definition_as_yaml()?,
        include_str!("../manifests/20-access.yaml"),
        include_str!("../manifests/30-admission.yaml"),
        include_str!("../manifests/40-workloads.yaml"),
    ];
    let head = "# Made by `quarantine-kube manifests` out of kubernetes/manifests/ and the Rust types.\n";
    Ok(format!("{head}{}", parts.map(|part| format!("---\n{part}")).concat()))
}

#[cfg(test)]
mod tests {
    /// `quarantine-kube manifests > conf/kubernetes/quarantine.yaml` makes it anew.
    #[test]
    fn the_file_in_conf_is_what_the_parts_give() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../conf/kubernetes/quarantine.yaml");
        assert_eq!(std::fs::read_to_string(path).unwrap(), super::all().unwrap());
    }
}
