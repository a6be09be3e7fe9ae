//! Inside real container runtimes, installed and run as released: who calls the plugin, with what, and in which order,
//! is theirs.
//!
//! Each test has a [`RuntimeNode`] of its own, on which the runtime finds its default paths. cgroups are the machine's: what a
//! runtime makes there is below one directory named after the node, and goes with [`Cgroup`].

mod containerd;
mod cri;
mod crio;
mod podman;

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::runtime_node::output;
use crate::lab::{Netns, PATIENCE, RuntimeNode, eventually};

/// The one image: a static busybox, whose httpd is the container that is probed. CRI also takes it for its pause
/// container. It comes from no registry.
const IMAGE: &str = "localhost/quarantine-test:1";
const HTTPD: [&str; 6] = ["/bin/httpd", "-f", "-p", "8080", "-h", "/www"];

/// Makes the image as an archive at `/run/image.tar` of the node.
fn make_image(node: &RuntimeNode) {
    node.sh(&format!(
        r#"busybox=$(command -v busybox)
        mkdir -p /run/image/root/bin /run/image/root/www
        cd /run/image
        cp "$busybox" root/bin/busybox
        for applet in sh sleep httpd nc wget; do ln -s busybox root/bin/$applet; done
        echo alive >root/www/healthz
        tar -C root --owner=0 --group=0 -cf layer.tar .
        digest=$(sha256sum layer.tar | cut -d ' ' -f 1)
        cat >config.json <<END
{{ "architecture": "$(dpkg --print-architecture)", "os": "linux",
   "config": {{ "Cmd": ["/bin/sleep", "2147483647"], "Env": ["PATH=/bin"] }},
   "rootfs": {{ "type": "layers", "diff_ids": ["sha256:$digest"] }} }}
END
        echo '[{{ "Config": "config.json", "RepoTags": ["{IMAGE}"], "Layers": ["layer.tar"] }}]' >manifest.json
        tar -cf /run/image.tar manifest.json config.json layer.tar"#
    ));
}

/// The pods' network: bridge, portmap as every runtime's default has it, then quarantine.
fn conflist() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": "10.88.0.0/16" }], [{ "subnet": "fd88::/64" }]],
                    "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
            { "type": "quarantine" },
        ],
    })
}

/// Asks the container for its health as a kubelet on the node would, by HTTP.
fn probe(node: &RuntimeNode, address: IpAddr) -> bool {
    let get = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&(address, 8080).into(), Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    node.netns.run(|| get().is_ok_and(|answer| answer.contains(" 200 ") && answer.contains("alive")))
}

/// The node's probes are answered in both families.
#[track_caller]
fn assert_probed(node: &RuntimeNode, addresses: &[IpAddr]) {
    for &address in addresses {
        assert!(eventually(PATIENCE, || probe(node, address)), "the probe of {address} fails");
    }
}

/// The machine's cgroups of one node's containers.
struct Cgroup(String);

impl Cgroup {
    fn of(netns: &Netns) -> Self {
        Self(netns.name().to_owned())
    }

    /// The path in every hierarchy.
    fn path(&self, child: &str) -> String {
        format!("/{}/{child}", self.0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // From the leaves up. A cgroup that still has a process in it stays, and the error names it.
        let script = format!(
            "for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
                 if [ -d $hierarchy/{name} ]; then find $hierarchy/{name} -depth -type d -exec rmdir {{}} + || failed=1; fi
             done
             exit ${{failed-0}}",
            name = self.0
        );
        if let Err(error) = output(Command::new("sh").args(["-c", &script]))
            && !std::thread::panicking()
        {
            panic!("cgroups are left: {error}");
        }
    }
}

/// Whether the machine has a program.
fn has(program: &str) -> bool {
    let directories = ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"];
    directories.iter().any(|directory| Path::new(directory).join(program).exists())
}

/// Nothing skips in silence: what is missing is named.
#[track_caller]
fn need(programs: &[&str]) {
    for program in programs {
        assert!(has(program), "{program} is missing; scripts/packages lists what the tests need");
    }
}
