//! Who writes a network configuration anew, so that an entry appended on the node alone does not last.
//!
//! Facts about other projects, as their manifests and sources have them.

/// What to know about the file whose chain has these plugins and this network name; `None` where the file is the
/// node's own.
pub(super) fn rewritten_by<'t>(name: &str, types: impl Iterator<Item = &'t str>) -> Option<&'static str> {
    let types: Vec<&str> = types.collect();
    let has = |kind: &str| types.contains(&kind);
    match () {
        // First: it is also chained onto others, and writes the file then.
        () if has("cilium-cni") => Some(
            "Cilium's agent writes this file when it starts and, with its default cni.exclusive=true, again at every change in the \
             directory: the entry goes at once. Put it into Cilium's own configuration instead: Helm values \
             cni.customConf=true and cni.configMap=<a ConfigMap with the chain that the dry run shows>, and \
             cni.exclusive=false.",
        ),
        () if has("calico") => Some(
            "Calico's install-cni container writes this file whenever calico-node starts: the entry goes then. Append it to \
             cni_network_config in the ConfigMap calico-config as well (an operator's installation has no such key: \
             run `quarantine install` again after each start of calico-node).",
        ),
        () if has("aws-cni") => Some(
            "The AWS VPC CNI writes this file whenever aws-node starts, and has no setting for further plugins: the entry goes \
             then. Run `quarantine install` again after each start of aws-node.",
        ),
        () if has("flannel") => Some(
            "Flannel's install-cni container (k3s: k3s itself) writes this file whenever it starts: the entry goes then. Append \
             it to cni-conf.json in the ConfigMap kube-flannel-cfg as well (k3s: --flannel-cni-conf).",
        ),
        () if name == "kindnet" => Some(
            "kindnetd writes this file when it starts and when the node's pod subnet changes: the entry goes then. Run \
             `quarantine install` again after that.",
        ),
        () if has("multus") || has("multus-shim") => Some(
            "Multus generates this file from the one of the cluster's default network when it starts: the entry goes then. \
             Append it to that network's own file instead, by --conflist.",
        ),
        () => None,
    }
}
