//! What the API server itself refuses: by the definition's schema and its rules.

use crate::lab::{admin, kubectl_as};

fn create(spec: &str) -> Result<String, String> {
    let object = format!(
        "{{apiVersion: cni-quarantine.dev/v1alpha1, kind: PodQuarantine, metadata: {{name: uid-1}}, spec: {spec}}}"
    );
    kubectl_as(&admin(), &["create", "--dry-run=server", "-f", "-"], &object)
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let pod = "pod: {namespace: ns, name: p, uid: uid-1, nodeName: a}";
    let with = |more: &str| format!("{{{pod}, {more}}}");
    for (spec, refused) in [
        (format!("{{{pod}}}"), None),
        ("{pod: {namespace: ns, name: p}}".to_owned(), None),
        ("{pod: {namespace: ns, name: p, uid: uid-2}}".to_owned(), Some("named after the UID")),
        ("{pod: {name: p}}".to_owned(), Some("spec.pod.namespace: Required value")),
        ("{pod: {namespace: ns, name: p, uid: '../x'}}".to_owned(), Some("spec.pod.uid")),
        (with("policy: {loopback: false, probes: false}"), None),
        (with("policy: {probePorts: [80, '8000-8100']}"), None),
        (with("policy: {probePorts: [0]}"), Some("probePorts[0]")),
        (with("policy: {probePorts: [70000]}"), Some("probePorts[0]")),
        (with("policy: {probePorts: ['80-']}"), Some("probePorts[0]")),
        (with("policy: {probePorts: []}"), Some("probePorts")),
        (with("policy: {probes: false, probePorts: [80]}"), Some("probes is false")),
        (with("policy: {allow: [{direction: egress, peer: 10.0.0.0/8, protocol: tcp, ports: [443]}]}"), None),
        (with("policy: {allow: [{direction: egress, peer: 'fd00::1', protocol: udp}]}"), None),
        (with("policy: {allow: [{direction: egress, peer: web, protocol: tcp}]}"), Some("an address or a CIDR")),
        (with("policy: {allow: [{direction: out, peer: 10.0.0.1, protocol: tcp}]}"), Some("direction")),
        (with("policy: {allow: [{direction: egress, peer: 10.0.0.1, protocol: icmp}]}"), Some("protocol")),
        (with("polciy: {}"), Some("unknown field")),
        (with("expiry: Release"), Some("needs expiresAt")),
        (with("expiry: Never"), Some("expiry")),
        (with("origin: Node"), Some("only a node")),
        (with("actor: somebody"), Some("spec.actor must be admin")),
        (with("release: {by: somebody}"), Some("spec.release.by must be admin")),
    ] {
        match (create(&spec), refused) {
            (Ok(_), None) => {}
            (Err(error), Some(why)) => assert!(error.contains(why), "{spec}: {error}"),
            (found, expected) => panic!("{spec}: {found:?}, and not {expected:?}"),
        }
    }
}

#[test]
fn which_pod_is_meant_never_changes() {
    let object = "{apiVersion: cni-quarantine.dev/v1alpha1, kind: PodQuarantine, metadata: {name: fixed}, \
                  spec: {pod: {namespace: none, name: none}, detach: false}}";
    kubectl_as(&admin(), &["create", "-f", "-"], object).unwrap();
    let patch = |patch: &str| {
        kubectl_as(&admin(), &["patch", "podquarantine", "fixed", "--type=merge", "--dry-run=server", "-p", patch], "")
    };
    for (change, refused) in [
        (r#"{"spec":{"pod":{"uid":"u","nodeName":"a"}}}"#, None),
        (r#"{"spec":{"pod":{"name":"other"}}}"#, Some("another pod is another object")),
        (r#"{"spec":{"pod":{"namespace":"other"}}}"#, Some("another pod is another object")),
        (r#"{"spec":{"origin":"Node"}}"#, Some("the origin cannot be changed")),
        (r#"{"spec":{"actor":"admin"}}"#, Some("who asked for the isolation cannot be changed")),
    ] {
        match (patch(change), refused) {
            (Ok(_), None) => {}
            (Err(error), Some(why)) => assert!(error.contains(why), "{change}: {error}"),
            (found, expected) => panic!("{change}: {found:?}, and not {expected:?}"),
        }
    }
    let filled = r#"{"spec":{"pod":{"uid":"u","nodeName":"a"}}}"#;
    kubectl_as(&admin(), &["patch", "podquarantine", "fixed", "--type=merge", "-p", filled], "").unwrap();
    for change in
        [r#"{"spec":{"pod":{"uid":"v"}}}"#, r#"{"spec":{"pod":{"nodeName":"b"}}}"#, r#"{"spec":{"pod":{"uid":null}}}"#]
    {
        assert!(patch(change).unwrap_err().contains("cannot be changed"), "{change}");
    }
    let released = r#"{"spec":{"release":{"by":"admin"}}}"#;
    kubectl_as(&admin(), &["patch", "podquarantine", "fixed", "--type=merge", "-p", released], "").unwrap();
    kubectl_as(&admin(), &["delete", "podquarantine", "fixed"], "").unwrap();
}

#[test]
fn a_node_gets_its_own_objects_by_the_selectable_field() {
    let words = ["get", "podquarantines", "--field-selector", "spec.pod.nodeName=a"];
    assert!(kubectl_as(&admin(), &words, "").is_ok());
}
