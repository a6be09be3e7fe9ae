//! Who may what: the table of `docs/kubernetes.md`, each cell asked of the API server as that account.

use std::path::PathBuf;

use serde_json::json;

use crate::lab::{Namespace, Pod, admin, apply, kubeconfig_of, kubectl, kubectl_as};

/// The accounts, in the order of the table's columns.
fn accounts(namespace: &str) -> Vec<(&'static str, PathBuf)> {
    for (name, role, scope) in [
        ("owner", "admin", "RoleBinding"),
        ("viewer", "quarantine-viewer", "ClusterRoleBinding"),
        ("responder", "quarantine-responder", "ClusterRoleBinding"),
    ] {
        apply(&format!(
            "{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {name}, namespace: {namespace}}}}}\n---\n\
             {{apiVersion: rbac.authorization.k8s.io/v1, kind: {scope}, metadata: {{name: access-{name}, namespace: {namespace}}}, \
             roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {role}}}, \
             subjects: [{{kind: ServiceAccount, name: {name}, namespace: {namespace}}}]}}"
        ));
    }
    vec![
        ("namespace's admin", kubeconfig_of(namespace, "owner", None)),
        ("viewer", kubeconfig_of(namespace, "viewer", None)),
        ("responder", kubeconfig_of(namespace, "responder", None)),
        ("node's account", kubeconfig_of("quarantine-system", "quarantine-node", Some("a"))),
        ("controller", kubeconfig_of("quarantine-system", "quarantine-controller", None)),
    ]
}

/// The name under which the API server knows an account.
fn user(config: &PathBuf) -> String {
    kubectl_as(config, &["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"], "").unwrap()
}

/// The rows of the table: what, and for each account whether it may.
fn table() -> Vec<(String, Vec<bool>)> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/kubernetes.md")).unwrap();
    let section = page.split("## Who may what").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        let mut cells = row.trim_matches('|').split('|').map(str::trim);
        let what = cells.next().unwrap().to_owned();
        (what, cells.map(|cell| cell == "yes").collect())
    })
    .collect()
}

struct Scene {
    pod: Pod,
    other_node: Pod,
    free: Pod,
}

impl Scene {
    fn object(&self, name: &str, more: serde_json::Value) -> String {
        let mut spec = json!({ "pod": { "namespace": "access", "name": "x", "uid": name, "nodeName": "a" } });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({
            "apiVersion": "cni-quarantine.dev/v1alpha1",
            "kind": "PodQuarantine",
            "metadata": { "name": name },
            "spec": spec,
        })
        .to_string()
    }

    /// Asks for what a row says. Nothing is changed: the API server decides, and then does not do it.
    fn ask(&self, what: &str, config: &PathBuf) -> Result<String, String> {
        let run = |words: &[&str], input: &str| kubectl_as(config, words, input);
        let me = user(config);
        let create = |object: String| {
            run(&["create", "--raw", "/apis/cni-quarantine.dev/v1alpha1/podquarantines?dryRun=All", "-f", "-"], &object)
        };
        let patch = |words: &str, change: serde_json::Value| {
            let change = change.to_string();
            let mut all: Vec<&str> = vec!["patch", "--dry-run=server", "--type=merge", "-p", &change];
            all.extend(words.split_whitespace());
            run(&all, "")
        };
        let status = |pod: &Pod| {
            let words = format!("podquarantine {} --subresource=status", pod.uid);
            // `kubectl patch` reads before it writes; all of these may.
            patch(&words, json!({ "status": { "policy": "anything" } }))
        };
        let release = |by: &str| {
            patch(&format!("podquarantine {}", self.pod.uid), json!({ "spec": { "release": { "by": by } } }))
        };
        let delete = |path: String| run(&["delete", "--raw", &format!("{path}?dryRun=All")], "");
        let patch_node = |node: &str, subresource: &str, change: &serde_json::Value| {
            let (change, subresource) = (change.to_string(), format!("--subresource={subresource}"));
            run(&["patch", "node", node, &subresource, "--type=strategic", "--dry-run=server", "-p", &change], "")
        };
        let covered = json!({ "status": { "conditions": [{ "type": "QuarantineReady", "status": "Unknown" }] } });
        let taint = |key: &str| json!({ "spec": { "taints": [{ "key": key, "effect": "NoSchedule" }] } });
        let pod_path = |pod: &Pod| format!("/api/v1/namespaces/access/pods/{}", pod.name);
        match what {
            "list objects" => run(&["get", "podquarantines"], ""),
            "isolate a pod" => create(self.object("free", json!({ "actor": me }))),
            "isolate in another's name" => create(self.object("free", json!({ "actor": "somebody" }))),
            "release a pod" => release(&me),
            "release in another's name" => release("somebody"),
            "change a policy" => {
                patch(&format!("podquarantine {}", self.pod.uid), json!({ "spec": { "policy": { "probes": false } } }))
            }
            "delete an object" => delete(format!("/apis/cni-quarantine.dev/v1alpha1/podquarantines/{}", self.pod.uid)),
            "say the status of its own node's object" => status(&self.pod),
            "say the status of another node's object" => status(&self.other_node),
            "show a mark of its own node" => create(self.object("free", json!({ "origin": "Node" }))),
            "show a mark of another node" => {
                let pod = json!({ "namespace": "access", "name": "x", "uid": "free", "nodeName": "b" });
                create(self.object("free", json!({ "origin": "Node", "pod": pod })))
            }
            "delete an isolated pod" => delete(pod_path(&self.pod)),
            "evict an isolated pod" => {
                let eviction = json!({
                    "apiVersion": "policy/v1",
                    "kind": "Eviction",
                    "metadata": { "name": self.pod.name, "namespace": "access" },
                });
                let path = format!("{}/eviction?dryRun=All", pod_path(&self.pod));
                run(&["create", "--raw", &path, "-f", "-"], &eviction.to_string())
            }
            "delete a pod that is not isolated" => delete(pod_path(&self.free)),
            "change labels of a pod" => patch("-n access pod free", json!({ "metadata": { "labels": { "a": "b" } } })),
            "change the image of a pod" => {
                let change = r#"[{"op":"replace","path":"/spec/containers/0/image","value":"other"}]"#;
                run(&["-n", "access", "patch", "pod", "free", "--dry-run=server", "--type=json", "-p", change], "")
            }
            "read secrets" => run(&["-n", "access", "get", "secrets"], ""),
            "list nodes" => run(&["get", "nodes"], ""),
            "say whether its own node is covered" => patch_node("a", "status", &covered),
            "say whether another node is covered" => patch_node("b", "status", &covered),
            "set and take away its own node's taint" => patch_node("a", "", &taint("cni-quarantine.dev/not-ready")),
            "set another taint on its own node" => patch_node("a", "", &taint("example.com/other")),
            "say that its own node is Ready" => {
                let ready = json!({ "type": "Ready", "status": "False", "reason": "Other" });
                patch_node("a", "status", &json!({ "status": { "conditions": [ready] } }))
            }
            "label its own node" => patch_node("a", "", &json!({ "metadata": { "labels": { "a": "b" } } })),
            other => panic!("the table has a row that nothing asks: {other}"),
        }
    }
}

#[test]
fn each_cell_of_the_table_is_what_the_api_server_says() {
    let namespace = Namespace::new("access");
    let scene = Scene {
        pod: namespace.pod("web", "a"),
        other_node: namespace.pod("other", "b"),
        free: namespace.pod("free", "a"),
    };
    scene.pod.isolate("--no-detach");
    scene.other_node.isolate("--no-detach");
    let accounts = accounts("access");
    let rows = table();
    assert!(rows.len() > 15, "{rows:?}");
    let mut wrong = Vec::new();
    for (what, cells) in &rows {
        assert_eq!(cells.len(), accounts.len(), "{what}");
        for ((name, config), may) in accounts.iter().zip(cells) {
            let answer = scene.ask(what, config);
            let forbidden = answer
                .as_ref()
                .is_err_and(|error| ["orbidden", "denied request"].iter().any(|word| error.contains(word)));
            match (&answer, may) {
                (Ok(_), true) => {}
                (Err(_), false) if forbidden => {}
                _ => wrong.push(format!("{name} may {what}: {may} says the table, but {answer:?}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The control of the whole: an administrator may what is denied here.
    let words = ["delete", "--raw", "/api/v1/namespaces/access/pods/web?dryRun=All"];
    kubectl_as(&admin(), &words, "").unwrap();
    scene.pod.release();
    scene.other_node.release();
}

#[test]
fn a_held_pod_outlives_its_namespace_s_deletion_and_goes_when_it_is_released() {
    let namespace = Namespace::new("condemned");
    let pod = namespace.pod("web", "a");
    pod.isolate("--no-detach");
    kubectl("delete namespace condemned --wait=false");
    std::thread::sleep(std::time::Duration::from_secs(8));
    assert_eq!(pod.again().uid, pod.uid, "it is kept");
    pod.assert_answers(false);
    pod.release();
    crate::lab::await_true(60, "the namespace goes", || crate::lab::get("namespace condemned").is_none());
}

#[test]
fn a_node_s_token_that_names_no_node_writes_nothing() {
    let namespace = Namespace::new("nameless");
    let pod = namespace.pod("web", "a");
    pod.isolate("--no-detach");
    let config = kubeconfig_of("quarantine-system", "quarantine-node", None);
    let change = r#"{"status":{"policy":"anything"}}"#;
    let words =
        ["patch", "podquarantine", &pod.uid, "--subresource=status", "--type=merge", "--dry-run=server", "-p", change];
    let refused = kubectl_as(&config, &words, "").unwrap_err();
    assert!(refused.contains("does not say which node"), "{refused}");
    pod.release();
}
