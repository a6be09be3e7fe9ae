//! Under which UID a pod's sandbox goes on its node.

use kube::core::DynamicObject;

/// By this the API's copy of a static pod names the UID that the kubelet gave it, by the text of its file.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// What only the API's copy of a static pod has.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The UID by which the runtime, and so the plugin, knows a pod: its own; of a static pod the one that its kubelet gave it, which
/// is not the one that its copy has in the API.
#[must_use]
pub fn sandbox_uid(pod: &DynamicObject) -> Option<&str> {
    let annotations = pod.metadata.annotations.as_ref();
    let annotation = |name| annotations.and_then(|annotations| annotations.get(name)).map(String::as_str);
    match annotation(MIRROR) {
        Some(_) => annotation(CONFIG_HASH),
        None => pod.metadata.uid.as_deref(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_static_pod_goes_by_the_uid_of_its_file_and_nobody_else_can_say_so() {
        let pod = |annotations: &[(&str, &str)]| {
            let mut pod =
                DynamicObject::new("p", &kube::api::ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&()));
            pod.metadata.uid = Some("uid-1".to_owned());
            let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            pod.metadata.annotations = Some(annotations.collect());
            pod
        };
        for (annotations, expected) in [
            (&[][..], Some("uid-1")),
            // The other one cannot be added later, and of a pod that is made with it the kubelet runs nothing.
            (&[(CONFIG_HASH, "another")], Some("uid-1")),
            (&[(CONFIG_HASH, "hash"), (MIRROR, "hash")], Some("hash")),
            (&[(MIRROR, "hash")], None),
        ] {
            assert_eq!(sandbox_uid(&pod(annotations)), expected, "{annotations:?}");
        }
    }
}
