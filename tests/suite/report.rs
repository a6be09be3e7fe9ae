//! The page for people, of a pod that would rather write it itself.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use crate::lab::topology::PEER4;
use crate::lab::{Agent, PATIENCE, Sandbox, Topology, eventually};

const FAR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);

#[test]
fn a_report_says_it_all_and_lets_nobody_write_in_it() {
    let topology = Topology::ptp();
    let sandbox = Sandbox::add(&topology);
    let state_dir = Path::new(sandbox.state_dir());
    let listener = topology.peer.run(|| TcpListener::bind((PEER4, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let stream = topology.pod.run(|| TcpStream::connect((PEER4, port)).unwrap());
    let _accepted = listener.accept().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("<script>a()");
    let sleep = fs::canonicalize("/bin/sleep").unwrap();
    fs::copy(sleep, &program).unwrap();
    let mut command = topology.pod.command(program.to_str().unwrap());
    command.arg0("<script>alert(1)</script>").arg("1000").stdin(OwnedFd::from(stream)).stdout(Stdio::null());
    let mut process = command.spawn().unwrap();

    let agent = Agent::spawn(&topology.node, state_dir, &[("QUARANTINE_EVIDENCE", "on")]).ready();
    sandbox.write_mark(r#"{"reason": "<b>beacon</b>", "case": "IR-2041", "actor": "alice"}"#);
    agent.await_line(&["event=evidence", sandbox.id()]);
    let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x10<img src=x alt=>\x07example\0\0\x01\0\x01";
    let is_kept = eventually(PATIENCE, || {
        let _ = topology.pod.run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(question, (FAR, 53)));
        fs::read_to_string(state_dir.join("captures").join(sandbox.id()).join("names.jsonl")).is_ok()
    });
    assert!(is_kept);
    let log = directory.path().join("log");
    fs::write(
        &log,
        agent.lines().iter().map(|line| format!("2026-11-27T18:00:00Z node1 {line}\n")).collect::<String>(),
    )
    .unwrap();

    let report = |form: &str| {
        let arguments = ["report", sandbox.id(), "-o", form, "--history", log.to_str().unwrap()];
        sandbox.quarantine(&arguments).ok().stdout
    };
    let page = report("html");
    if let Ok(path) = std::env::var("REPORT_OUT") {
        fs::write(path, &page).unwrap();
    }
    for written in ["<script", "<img", "<b>beacon"] {
        assert!(!page.contains(written), "{written}");
    }
    for said in [
        "lab/web",
        "&lt;b&gt;beacon&lt;/b&gt;",
        "alice",
        "IR-2041",
        "contained",
        // In the log's history.
        ">isolated</td>",
        "2026-11-27T18:00:00Z node1",
        // Its process, in the tables and in the drawing.
        ">&lt;script&gt;a()</td>",
        "&lt;script&gt;alert(1)&lt;/script&gt; 1000",
        &format!("{PEER4}:{port}"),
        &format!("&lt;script&gt;a() [{}]", process.id()),
        // Whom it asks for.
        "dns &lt;img src=x alt=&gt;.example",
        "class=\"connected\"",
        "class=\"tried\"",
        "All files are as their manifests say",
    ] {
        assert!(page.contains(said), "{said} is not in {page}");
    }
    assert!(page.contains("default-src 'none'"));
    let text = report("md");
    assert!(!text.contains("<script") && text.contains("&lt;script&gt;alert(1)&lt;/script&gt; 1000"), "{text}");
    let _ = process.kill();
    let _ = process.wait();

    // The pod has ended; what was kept of it still makes a page, in a file of its own.
    drop(agent);
    sandbox.release();
    sandbox.del();
    let place = directory.path().join("report.html");
    sandbox.quarantine(&["report", "lab/web", "--out", place.to_str().unwrap()]).ok();
    let page = fs::read_to_string(&place).unwrap();
    assert!(page.contains("the pod has ended") && page.contains("dns &lt;img"), "{page}");
    assert!(!sandbox.quarantine(&["report", "lab/web", "--out", place.to_str().unwrap()]).status.success());
}
