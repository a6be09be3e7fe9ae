use std::fs;

use serde_json::json;

use super::*;

/// `quarantine-kube crd >FILE` makes each anew, and scripts/chart what is rendered of the chart.
#[test]
fn the_definitions_in_conf_and_in_the_chart_are_the_one_of_the_types() {
    let definition = definition_as_yaml().unwrap();
    let file = |path: &str| fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    assert_eq!(file("../conf/kubernetes/podquarantines.yaml"), definition);
    assert_eq!(file("chart/templates/podquarantines.yaml"), definition);
    assert!(
        file("../conf/kubernetes/quarantine.yaml").contains(definition.trim_end()),
        "scripts/chart renders it anew"
    );
}

#[test]
fn an_object_is_read_with_its_defaults_and_written_as_it_was() {
    let object: PodQuarantine = serde_json::from_value(json!({
        "apiVersion": "cni-quarantine.dev/v1alpha1",
        "kind": "PodQuarantine",
        "metadata": { "name": "uid-1" },
        "spec": {
            "pod": { "namespace": "shop", "name": "web" },
            "policy": {
                "probePorts": [8080, "9000-9010"],
                "allow": [{ "direction": "egress", "peer": "10.0.0.1", "protocol": "tcp", "ports": [443] }],
            },
            "expiresAt": "2026-12-01T00:00:00Z",
        },
    }))
    .unwrap();
    assert!(object.spec.detach);
    assert_eq!((object.spec.origin, object.spec.expiry), (Origin::Cluster, Expiry::Attention));
    let written = serde_json::to_value(&object).unwrap();
    assert_eq!(written["spec"]["policy"]["probePorts"], json!([8080, "9000-9010"]));
    let again: PodQuarantine = serde_json::from_value(written).unwrap();
    assert_eq!(again, object);
}

#[test]
fn a_policy_is_the_mark_s_and_one_that_cannot_be_understood_seals() {
    let policy = |value| serde_json::from_value::<PolicySpec>(value).unwrap();
    for (value, words) in [
        (json!({}), Ok("loopback+probes")),
        (json!({ "loopback": false, "probes": false }), Ok("sealed")),
        (json!({ "probePorts": [8080, "9000-9010"] }), Ok("loopback+probes:8080,9000-9010")),
        (
            json!({ "loopback": false, "allow": [{ "direction": "egress", "peer": "10.0.0.1", "protocol": "tcp" }] }),
            Ok("probes+egress:10.0.0.1/32:tcp:1-65535"),
        ),
        (json!({ "probes": false, "probePorts": [1] }), Err("probePorts")),
        (json!({ "probeCgroup": "kubelet.slice" }), Ok("loopback+probes@kubelet.slice")),
        (json!({ "probeCgroup": "kubelet", "probePorts": [8080] }), Ok("loopback+probes:8080@kubelet")),
        (json!({ "probes": false, "probeCgroup": "kubelet" }), Err("probeCgroup")),
        (json!({ "probeCgroup": "../x" }), Err("policy.probes.cgroup")),
        (json!({ "probePorts": ["9-8"] }), Err("policy.probes.ports[0]")),
        (
            json!({ "allow": [{ "direction": "egress", "peer": "web", "protocol": "tcp" }] }),
            Err("policy.allow[0].peer"),
        ),
    ] {
        let policy = policy(value.clone());
        match (policy.understood(), words) {
            (Ok(understood), Ok(words)) => {
                assert_eq!(understood.to_string(), words);
                let there_and_back = PolicySpec::from(&understood).understood().unwrap();
                assert_eq!(there_and_back, understood, "{value}");
            }
            (Err(error), Err(what)) => {
                assert!(error.contains(what), "{value}: {error}");
                assert!(policy.understood_or_sealed().is_sealed());
            }
            (found, expected) => panic!("{value}: {found:?} and not {expected:?}"),
        }
    }
}

#[test]
fn own_marks_are_told_by_their_actor() {
    let pod = PodRef { namespace: "shop".into(), name: "web".into(), uid: Some("uid-1".into()), node_name: None };
    let mut spec = PodQuarantineSpec::of(pod);
    spec.actor = Some("alice".to_owned());
    let mark = PodQuarantine::new("uid-1", spec).mark();
    assert_eq!(mark.actor.as_deref(), Some("PodQuarantine/uid-1 by alice"));
    assert!(is_of_an_object(&mark));
    let read = Mark::read(mark.to_json().to_string().as_bytes()).unwrap();
    assert_eq!(read, mark, "the plugin reads what is written");
    for actor in [None, Some("alice"), Some("quarantine")] {
        assert!(!is_of_an_object(&Mark { actor: actor.map(str::to_owned), ..Mark::default() }));
    }
}
