//! Runtimes that answer what they like.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use serde_json::json;

use super::{ID, Older};
use crate::lab::{PATIENCE, Topology, eventually};

/// A server on a runtime's socket, which has an answer for each question, whatever comes; ended with this.
struct Runtime {
    has_ended: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
    socket: std::path::PathBuf,
}

impl Runtime {
    fn start(socket: &Path, answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> Self {
        let _ = fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let has_ended = Arc::new(AtomicBool::new(false));
        let ended = has_ended.clone();
        let serve = move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                serve(stream, &answer);
            }
        };
        Self { has_ended, server: Some(std::thread::spawn(serve)), socket: socket.to_owned() }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.has_ended.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.socket);
        let _ = self.server.take().map(JoinHandle::join);
    }
}

fn serve(mut stream: UnixStream, answer: &impl Fn(&str) -> Vec<u8>) {
    let mut question = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&question).into_owned();
        let method = ["ListPodSandbox", "PodSandboxStatus"].into_iter().find(|method| text.contains(method));
        // The question is one write.
        if let Some(method) = method {
            let _ = stream.write_all(&answer(method));
            return;
        }
        match stream.read(&mut buffer) {
            Ok(length) if length > 0 => question.extend_from_slice(&buffer[..length]),
            _ => return,
        }
    }
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
}

/// A message as gRPC over HTTP/2 sends it.
fn answered(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let data = [&[0], &length[..], message].concat();
    let settings = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    [settings, frame(1, 4, &[0x88]), frame(0, 0, &data), frame(1, 5, &[])].concat()
}

fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = [u8::try_from(bytes.len() & 0x7f).unwrap() | 0x80, u8::try_from(bytes.len() >> 7).unwrap()];
    [&[number << 3 | 2], &length[..], bytes].concat()
}

/// What a runtime says of a sandbox with this netns.
fn said(netns: &Path, method: &str) -> Vec<u8> {
    if method == "ListPodSandbox" {
        return field(1, &field(1, ID.as_bytes()));
    }
    let metadata = [field(1, b"web"), field(2, b"u1"), field(3, b"shop")].concat();
    let info = json!({
        "runtimeSpec": { "linux": { "namespaces": [{ "type": "network", "path": netns }] } },
        "cniResult": { "Interfaces": { "eth0": {
            "IPConfigs": [{ "IP": "10.77.0.2", "Gateway": "10.77.0.1" }], "Mac": "", "Sandbox": netns,
        } } },
    });
    let status = [field(1, ID.as_bytes()), field(2, &metadata)].concat();
    [field(1, &status), field(2, &[field(1, b"info"), field(2, info.to_string().as_bytes())].concat())].concat()
}

#[test]
fn what_a_runtime_says_is_checked_like_the_cache() {
    let topology = Topology::bridge();
    let older = Older::new(&topology);
    older.write_conflist();
    fs::remove_dir_all(older.places.path().join("results")).unwrap();
    let node = topology.node.path().to_owned();
    let runtime = Runtime::start(&older.socket(), move |method| answered(&said(&node, method)));
    let run = older.adopt(&["--all"]);
    assert!(!run.status.success() && run.stdout.contains("the host's own"), "{run:?}");
    drop(runtime);
    let pod = topology.pod.path().to_owned();
    let runtime = Runtime::start(&older.socket(), move |method| answered(&said(&pod, method)));
    let run = older.adopt(&["shop/web"]).ok();
    assert!(run.stdout.ends_with("1 adopted\n"), "{run:?}");
    let record = older.record();
    assert_eq!((&record["network"], &record["pod"]["uid"]), (&json!("lab"), &json!("u1")), "{record:#}");
    assert_eq!(record["interfaces"][0]["hostEnd"]["name"], "veth-pod", "{record:#}");
    drop(runtime);
}

#[test]
fn a_runtime_that_answers_nonsense_is_said_to_and_hides_no_cache() {
    let topology = Topology::bridge();
    let older = Older::new(&topology);
    older.write_conflist();
    let long = frame(0, 0, &[0; 16_385]);
    for (answer, why) in [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "longer than was agreed on"),
        (Vec::new(), "cannot ask the runtime"),
        (frame(1, 5, &[]), "refused ListPodSandbox"),
        (long, "longer than was agreed on"),
        (answered(&[0xff]), "it is no message"),
        (answered(&field(1, &[0xff])), "no sandbox"),
        (frame(0, 0, &[0; 16_384]).repeat(1100), "longer than 16 MiB"),
    ] {
        let runtime = Runtime::start(&older.socket(), move |_| answer.clone());
        let run = older.adopt(&["--all"]).ok();
        assert!(run.stdout.contains("cannot be used") && run.stdout.contains(why), "{why}: {run:?}");
        assert!(run.stdout.contains(ID), "{run:?}");
        drop(runtime);
    }
}

/// Whoever else serves there could say of any namespace that it is the pod's of their enemy.
#[test]
fn nothing_is_asked_of_a_runtime_that_is_not_root_s() {
    let topology = Topology::bridge();
    let older = Older::new(&topology);
    older.write_conflist();
    let socket = older.socket();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(older.places.path(), open).unwrap();
    let address = format!("UNIX-LISTEN:{},fork", socket.display());
    let nobody = ["--reuid", "65534", "--clear-groups", "socat", &address, "SYSTEM:true"];
    let mut server = topology.node.command("setpriv").args(nobody).spawn().unwrap();
    assert!(eventually(PATIENCE, || socket.exists()));
    let run = older.adopt(&["--all"]).ok();
    assert!(run.stdout.contains("is served by user 65534"), "{run:?}");
    drop(server.kill());
    drop(server.wait());
}
