//! `scripts/get-toolchain` on a machine that has neither Rust nor Go, with a `curl` that stands for the network
//! (`testdata/toolchain/curl`). That the real sites answer as it does is not shown here.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// What the script needs of a machine, besides bash.
const TOOLS: [&str; 18] = [
    "awk",
    "cat",
    "chmod",
    "cp",
    "dirname",
    "gzip",
    "head",
    "id",
    "mkdir",
    "mktemp",
    "mv",
    "rm",
    "sed",
    "sh",
    "sha256sum",
    "sort",
    "tar",
    "uname",
];

/// A checkout with the script, a home directory, and a PATH without Rust and Go.
struct Machine {
    root: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { root: tempfile::tempdir().unwrap() };
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
        for directory in ["checkout/scripts", "home", "bin", "fake"] {
            fs::create_dir_all(machine.path(directory)).unwrap();
        }
        fs::copy(checkout.join("Cargo.toml"), machine.path("checkout/Cargo.toml")).unwrap();
        fs::copy(checkout.join("scripts/get-toolchain"), machine.path("checkout/scripts/get-toolchain")).unwrap();
        for tool in TOOLS {
            let directories = std::env::var("PATH").unwrap();
            let found = std::env::split_paths(&directories).map(|directory| directory.join(tool));
            let found = found.into_iter().find(|path| path.exists()).unwrap_or_else(|| panic!("no {tool} here"));
            std::os::unix::fs::symlink(found, machine.path("bin").join(tool)).unwrap();
        }
        std::os::unix::fs::symlink(checkout.join("testdata/toolchain/curl"), machine.path("bin/curl")).unwrap();
        machine.offer_rust("1.99.0");
        machine.offer_go("go1.99.1");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// rustup's site has an installer that puts this `cargo` into the home directory.
    fn offer_rust(&self, version: &str) {
        let installer = format!(
            "[ \"$1\" = -y ] || exit 1\n\
             mkdir -p \"$HOME/.cargo/bin\"\n\
             printf '#!/bin/sh\\necho cargo {version} \\(0000000\\)\\n' >\"$HOME/.cargo/bin/cargo\"\n\
             chmod +x \"$HOME/.cargo/bin/cargo\"\n"
        );
        fs::write(self.path("fake/rustup-init"), installer).unwrap();
    }

    /// Go's site lists this release, with the right checksums, and has its archive.
    fn offer_go(&self, version: &str) {
        let script = format!(
            "set -e; mkdir -p go/bin; printf '#!/bin/sh\\necho {version}\\n' >go/bin/go; chmod +x go/bin/go\n\
             for machine in amd64 arm64; do tar -czf {version}.linux-$machine.tar.gz go; done\n\
             rm -r go; sha256sum {version}.linux-*.tar.gz"
        );
        let sums = Command::new("sh").args(["-c", &script]).current_dir(self.path("fake")).output().unwrap();
        assert!(sums.status.success(), "{sums:?}");
        let mut listed = String::from("[\n {\n  \"version\": \"go\",\n  \"files\": [\n");
        // One that ends alike, and comes first.
        let other = format!("{} {version}.src.linux-amd64.tar.gz.asc\n", "0".repeat(64));
        for line in (other + &String::from_utf8(sums.stdout).unwrap()).lines() {
            let (sum, file) = line.split_once(' ').unwrap();
            listed += &format!(
                "   {{\n    \"filename\": \"{}\",\n    \"os\": \"linux\",\n    \"sha256\": \"{sum}\",\n    \"kind\": \"archive\"\n   }},\n",
                file.trim()
            );
        }
        fs::write(self.path("fake/releases"), listed + "  ]\n }\n]\n").unwrap();
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", self.path("bin")).env("HOME", self.path("home"));
        command.env("FAKE", self.path("fake")).stdin(Stdio::null());
        command
    }

    fn script(&self) -> String {
        self.path("checkout/scripts/get-toolchain").display().to_string()
    }

    /// A command for which there is no /usr/local, where a Go of this machine may be.
    fn alone(&self, program: &str) -> Command {
        let mut command = self.command("/usr/bin/unshare");
        command.args(["--mount", "/bin/sh", "-ec", "/bin/mount -t tmpfs none /usr/local; exec \"$@\"", "sh", program]);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.alone("/bin/bash").arg(self.script()).args(arguments).output().unwrap()
    }

    /// Runs it on a terminal, at which this is typed.
    fn run_at_a_terminal(&self, typed: &str) -> Output {
        let inside = format!("PATH={} /bin/bash {}", self.path("bin").display(), self.script());
        let mut command = self.alone("/usr/bin/script");
        command.args(["--quiet", "--return", "--command", &inside, "/dev/null"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(format!("{typed}\n").as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    fn downloads(&self) -> usize {
        fs::read_to_string(self.path("fake/calls")).map_or(0, |calls| calls.lines().count())
    }

    /// What `cargo --version` and `go version` say by the PATH that the script printed.
    fn versions(&self, output: &Output) -> [String; 2] {
        assert!(output.status.success(), "{}", said(output));
        let path = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        ["cargo --version", "go env GOVERSION"].map(|command| {
            let run = self.command("/bin/sh").env("PATH", &path).args(["-c", command]).output().unwrap();
            String::from_utf8(run.stdout).unwrap().trim_end().to_owned()
        })
    }
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

#[test]
fn what_is_missing_is_installed_once() {
    let machine = Machine::new();
    let installed = machine.run(&["--yes"]);
    assert_eq!(machine.versions(&installed), ["cargo 1.99.0 (0000000)", "go1.99.1"], "{}", said(&installed));
    assert_eq!(machine.downloads(), 3);
    let again = machine.run(&[]);
    assert_eq!(machine.versions(&again), ["cargo 1.99.0 (0000000)", "go1.99.1"], "{}", said(&again));
    assert_eq!(machine.downloads(), 3, "it was there");
    let left = fs::read_dir(machine.path("checkout/.cache")).unwrap().count();
    assert_eq!(left, 1, "something beside .cache/go is left");
}

#[test]
fn only_what_is_asked_for_is_installed() {
    let machine = Machine::new();
    let installed = machine.run(&["--yes", "rust"]);
    assert_eq!(machine.versions(&installed), ["cargo 1.99.0 (0000000)", ""], "{}", said(&installed));
    assert_eq!(machine.downloads(), 1);
}

#[test]
fn nobody_is_there_to_be_asked() {
    let machine = Machine::new();
    let refused = machine.run(&[]);
    assert!(!refused.status.success());
    assert!(said(&refused).contains("--yes"), "{}", said(&refused));
    assert_eq!(machine.downloads(), 0);
}

#[test]
fn somebody_is_asked() {
    let machine = Machine::new();
    let refused = machine.run_at_a_terminal("n");
    assert!(!refused.status.success());
    assert!(said(&refused).contains("Install it now?"), "{}", said(&refused));
    assert_eq!(machine.downloads(), 0);
    let installed = machine.run_at_a_terminal("y");
    assert!(installed.status.success(), "{}", said(&installed));
    assert_eq!(machine.downloads(), 3);
}

#[test]
fn an_archive_with_another_checksum_is_not_unpacked() {
    let machine = Machine::new();
    for name in ["go1.99.1.linux-amd64.tar.gz", "go1.99.1.linux-arm64.tar.gz"] {
        let archive = machine.path("fake").join(name);
        let mut bytes = fs::read(&archive).unwrap();
        bytes.push(0);
        fs::write(&archive, bytes).unwrap();
    }
    let refused = machine.run(&["--yes", "go"]);
    assert!(!refused.status.success());
    assert!(said(&refused).contains("SHA-256"), "{}", said(&refused));
    let left = fs::read_dir(machine.path("checkout/.cache")).unwrap().count();
    assert_eq!(left, 0, "something is left");
}

#[test]
fn what_cannot_be_installed_stops_it() {
    let machine = Machine::new();
    fs::remove_file(machine.path("fake/releases")).unwrap();
    let failed = machine.run(&["--yes", "go"]);
    assert!(!failed.status.success() && said(&failed).contains("cannot get https://go.dev/dl/"), "{}", said(&failed));
    machine.offer_rust("1.50.0");
    let old = machine.run(&["--yes", "rust"]);
    assert!(!old.status.success() && said(&old).contains("still no cargo"), "{}", said(&old));
    fs::write(machine.path("fake/rustup-init"), "exit 3").unwrap();
    let failed = machine.run(&["--yes", "rust"]);
    assert!(!failed.status.success() && said(&failed).contains("installer failed"), "{}", said(&failed));
}
