//! Cgroups: where one is in the tree of version 2, and which of them are pods', by the names that the kubelet gives them. Pure.

use std::fmt;

use super::names::PodUid;

/// What the kubelet calls the cgroup that it keeps all pods below.
const PODS: &str = "kubepods";

/// Where a cgroup is in the tree of version 2, without the slash in front: `kubelet.slice/kubelet.service`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CgroupPath(String);

impl CgroupPath {
    /// No longer than a path may be in the kernel, with what it is mounted at in front.
    const LONGEST: usize = 1024;

    /// This path, where it is one: of plain names, the root not among them, which has every process below it.
    #[must_use]
    pub fn new(path: &str) -> Option<Self> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let is_plain = |name: &str| {
            !matches!(name, "" | "." | "..")
                && !name.contains(|c: char| c.is_control() || c.is_whitespace() || c == '"')
        };
        (path.len() <= Self::LONGEST && path.split('/').all(is_plain)).then(|| Self(path.to_owned()))
    }

    /// As it is written below the mount point.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How deep in the tree it is; the root is 0.
    #[must_use]
    pub fn level(&self) -> u32 {
        u32::try_from(self.0.split('/').count()).unwrap_or(u32::MAX)
    }

    /// Whether it is this one, or below it.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.strip_prefix(&other.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Whether pods are kept below it, as it is called and what is right below it.
    #[must_use]
    pub fn holds_pods(&self, children: &[String]) -> bool {
        let is_root = self.0.rsplit('/').next().is_some_and(is_root_of_pods);
        let is_of_pod = |name: &String| is_class_of_pods(name) || pod_of_cgroup(name).is_some();
        is_root || children.iter().any(|name| is_root_of_pods(name) || self.is_of_pods() && is_of_pod(name))
    }

    /// Whether it is one that the kubelet keeps pods below, or is below such a one.
    #[must_use]
    pub fn is_of_pods(&self) -> bool {
        // By systemd's rules each level's name has those above it in front.
        let is_below =
            |name: &str| name.strip_suffix(".slice").is_some_and(|slice| slice.split('-').any(|part| part == PODS));
        self.0.split('/').any(|name| name == PODS || is_below(name))
    }
}

/// A cgroup as it is now. One that is made anew has another ID.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cgroup {
    /// Where it is.
    pub path: CgroupPath,
    /// The kernel's ID of it: the inode number of its directory.
    pub id: u64,
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The pod whose cgroup has this name, as the kubelet makes it: `pod<UID>`, or `…-pod<UID>.slice` by systemd's rules, in which a
/// hyphen is one more level and a UID's are written as underscores.
#[must_use]
pub fn pod_of_cgroup(name: &str) -> Option<PodUid> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit('-').next()?.strip_prefix("pod")?.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    // By itself it would be another's name.
    PodUid::new(&uid).ok().filter(|uid| !uid.as_str().ends_with(".slice"))
}

/// Whether a cgroup of this name is the one that the kubelet keeps all pods below.
#[must_use]
pub fn is_root_of_pods(name: &str) -> bool {
    name == PODS || name.strip_suffix(".slice").is_some_and(|slice| slice.rsplit('-').next() == Some(PODS))
}

/// Whether a cgroup of this name, below that one, holds pods of a class.
#[must_use]
pub fn is_class_of_pods(name: &str) -> bool {
    const CLASSES: [&str; 3] = ["guaranteed", "burstable", "besteffort"];
    let last = name.strip_suffix(".slice").and_then(|slice| slice.rsplit('-').next()).unwrap_or(name);
    CLASSES.contains(&last)
}

/// Of any text: what is taken for a pod's can be a file name, and is found again by both names that the kubelet would give it.
#[cfg(any(test, fuzzing))]
pub(super) fn try_any(text: &str) {
    for name in text.lines() {
        let _ = (is_root_of_pods(name), is_class_of_pods(name));
        if let Some(path) = CgroupPath::new(name) {
            assert!(path.is_within(&path) && path.level() > 0);
        }
        let Some(uid) = pod_of_cgroup(name) else { continue };
        assert!(!uid.as_str().contains('/') && !uid.as_str().starts_with('.'));
        assert_eq!(pod_of_cgroup(&format!("pod{uid}")).as_ref(), Some(&uid));
        let escaped = uid.as_str().replace('-', "_");
        if !uid.as_str().contains('_') {
            assert_eq!(pod_of_cgroup(&format!("kubepods-burstable-pod{escaped}.slice")), Some(uid));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> CgroupPath {
        CgroupPath::new(text).unwrap()
    }

    #[test]
    fn a_path_has_a_level_and_is_within_others() {
        let service = path("/a/b.service");
        assert_eq!((service.level(), service.to_string()), (2, "a/b.service".to_owned()));
        assert!(service.is_within(&path("a")) && service.is_within(&service));
        assert!(!service.is_within(&path("a/b")) && !path("a").is_within(&service));
    }

    #[test]
    fn what_is_below_the_root_of_pods_is_pods() {
        for text in [
            "kubepods",
            "x/kubepods.slice",
            "kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/y",
            "kubepods-pod1.slice",
        ] {
            assert!(path(text).is_of_pods(), "{text}");
        }
        for text in ["kubelet.slice/kubelet.service", "system.slice/kubelet.service", "mykubepods"] {
            assert!(!path(text).is_of_pods(), "{text}");
        }
        for (text, children) in [
            ("kubepods", &[][..]),
            ("x", &["kubepods.slice"]),
            ("kubepods", &["burstable"]),
            ("kubepods.slice/kubepods-burstable.slice", &["kubepods-burstable-pod0f9d.slice"]),
        ] {
            let children: Vec<_> = children.iter().map(|name| (*name).to_owned()).collect();
            assert!(path(text).holds_pods(&children), "{text}");
        }
        // That of one pod, and the kubelet's.
        for (text, child) in [("kubepods/burstable/pod0f9d", "container"), ("kubelet.service", "pod1")] {
            assert!(!path(text).holds_pods(&[child.to_owned()]), "{text}");
        }
    }

    const UID: &str = "0f9d6b52-6f0a-4a43-9d1c-0123456789ab";

    #[test]
    fn a_pod_is_found_by_the_name_of_its_cgroup() {
        let found = |name: &str| pod_of_cgroup(name).map(|uid| uid.to_string());
        let escaped = UID.replace('-', "_");
        for name in [
            format!("pod{UID}"),
            format!("kubepods-pod{escaped}.slice"),
            format!("kubepods-burstable-pod{escaped}.slice"),
            format!("kubelet-kubepods-besteffort-pod{escaped}.slice"),
        ] {
            assert_eq!(found(&name).as_deref(), Some(UID), "{name}");
        }
        // A static pod's.
        assert_eq!(found("pod0123456789abcdef0123456789abcdef").as_deref(), Some("0123456789abcdef0123456789abcdef"));
        for name in
            ["pod", "kubepods", "kubepods-burstable.slice", "cri-containerd-0123.scope", "pod/..", "pod-", "podé"]
        {
            assert_eq!(found(name), None, "{name}");
        }
    }

    #[test]
    fn where_pods_are_kept_is_known_by_name() {
        for name in ["kubepods", "kubepods.slice", "kubelet-kubepods.slice"] {
            assert!(is_root_of_pods(name), "{name}");
        }
        for name in ["kubepods-burstable.slice", "mykubepods", "user.slice", "kubepods.scope"] {
            assert!(!is_root_of_pods(name), "{name}");
        }
        for name in ["burstable", "besteffort", "kubepods-burstable.slice", "kubelet-kubepods-besteffort.slice"] {
            assert!(is_class_of_pods(name), "{name}");
        }
        assert!(!is_class_of_pods("kubepods-pod1.slice"));
    }
}
