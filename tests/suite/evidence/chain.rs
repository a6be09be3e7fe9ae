//! The manifests: whatever is done to what was kept is found.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Collection, sha256_of};
use crate::lab::{Run, Sandbox, Topology};

fn verify(sandbox: &Sandbox<'_>, name: &[&str]) -> Run {
    sandbox.quarantine(&[&["evidence"], name, &["--verify"]].concat())
}

#[track_caller]
fn is_found(sandbox: &Sandbox<'_>, fault: &str) {
    let run = verify(sandbox, &[]);
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    assert!(run.stdout.contains(fault), "{fault:?} is not in {run:?}");
}

fn sound(sandbox: &Sandbox<'_>) {
    let run = verify(sandbox, &[]).ok();
    assert_eq!(run.stdout, "3 collections are as they were written\n");
}

#[test]
fn a_file_that_was_changed_removed_or_added_is_found() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let kept: Vec<_> = (0..3).map(|_| Collection::collect(&sandbox, &[]).0).collect();
    sound(&sandbox);
    let file = kept[1].join("network.json");
    let content = fs::read(&file).unwrap();

    fs::write(&file, [&content[..], b" "].concat()).unwrap();
    is_found(&sandbox, "network.json: was changed");
    let mut same_length = content.clone();
    let digit = same_length.iter().rposition(u8::is_ascii_digit).unwrap();
    same_length[digit] ^= 1;
    fs::write(&file, same_length).unwrap();
    is_found(&sandbox, "network.json: was changed");
    fs::remove_file(&file).unwrap();
    is_found(&sandbox, "network.json: was removed");
    fs::write(&file, &content).unwrap();
    sound(&sandbox);

    fs::write(kept[1].join("innocent.json"), "{}").unwrap();
    is_found(&sandbox, "innocent.json: was added");
    fs::remove_file(kept[1].join("innocent.json")).unwrap();
    sound(&sandbox);

    // A manifest that goes with a changed file does not go with its successor.
    fs::write(&file, "{}").unwrap();
    let manifest = fs::read_to_string(kept[1].join("manifest.json")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let entry =
        value["files"].as_array().unwrap().iter().find(|entry| entry["name"] == "network.json").unwrap().clone();
    let forged = manifest.replace(entry["sha256"].as_str().unwrap(), &sha256_of(&file));
    let forged = forged.replace(&format!("\"bytes\": {}", entry["bytes"]), "\"bytes\": 2");
    fs::write(kept[1].join("manifest.json"), forged).unwrap();
    is_found(&sandbox, "manifest.json: was changed");
}

#[test]
fn a_collection_that_was_removed_is_found_whichever_it_is() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let kept: Vec<_> = (0..3).map(|_| Collection::collect(&sandbox, &[]).0).collect();
    for removed in &kept {
        let away = removed.parent().unwrap().join(".away");
        fs::rename(removed, &away).unwrap();
        is_found(&sandbox, "the collection was removed");
        fs::rename(&away, removed).unwrap();
        sound(&sandbox);
    }
    let head = Path::new(sandbox.state_dir()).join("evidence/head.json");
    fs::remove_file(&head).unwrap();
    is_found(&sandbox, "head.json: was removed");
}

#[test]
fn what_is_handed_on_is_what_was_kept() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let collection = Collection::collect(&sandbox, &[]);
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("case.tar.zst");
    let out = archive.to_str().unwrap();
    sandbox.quarantine(&["evidence", "lab/web", "--out", out]).ok();
    let unpacked = Command::new("tar").args(["--zstd", "-xf", out, "-C"]).arg(directory.path()).output().unwrap();
    assert!(unpacked.status.success(), "{unpacked:?}");
    let below = collection.0.strip_prefix(sandbox.state_dir()).unwrap();
    let compared =
        Command::new("diff").arg("-r").arg(&collection.0).arg(directory.path().join(below)).output().unwrap();
    assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stdout));
    // Nothing that is there is written over.
    let again = sandbox.quarantine(&["evidence", "lab/web", "--out", out]);
    assert!(!again.status.success() && again.stderr.contains("exists"), "{again:?}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "something was left behind");
}
