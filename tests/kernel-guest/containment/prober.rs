//! Probes bound to a cgroup of the node's, as far as this kernel can tell one.

use std::fs;
use std::path::Path;

use super::{Containment, LONG, Outcome, POD4, POD6, SHORT, ensure, eventually, note, probe};

const TREE: &str = "/sys/fs/cgroup";
const KUBELET: &str = "kubelet.slice";

impl Containment {
    /// From the kubelet's cgroup probes pass on every kernel. From another they do only where that is said.
    pub(super) fn prober(&self) -> Outcome {
        let kubelet = Path::new(TREE).join(KUBELET);
        fs::create_dir(&kubelet)?;
        let outcome = self.probe_from(&kubelet);
        enter(Path::new(TREE))?;
        // A thread that has just ended leaves it a moment later.
        let removed = eventually("the cgroup is empty", || Ok(fs::remove_dir(&kubelet).is_ok()));
        outcome.and(removed)
    }

    fn probe_from(&self, kubelet: &Path) -> Outcome {
        fs::write(self.mark(), format!(r#"{{"policy": {{"probes": {{"cgroup": "{KUBELET}"}}}}}}"#))?;
        self.quarantine(&["sync"])?;
        let (verdict, printed) = self.status()?;
        let is_untold = printed.contains("prober-untold");
        let rules = self.lab.node.rules()?;
        note(&format!("probes of a cgroup: {verdict}, {}", if is_untold { "not told, and said so" } else { "told" }));
        ensure!(is_untold || rules.contains("socket cgroupv2"), "nothing asks for the cgroup: {rules}");
        for address in [POD4, POD6] {
            let other = probe(&self.lab.node, address, None, if is_untold { LONG } else { SHORT })?;
            ensure!(other == is_untold, "another root process: passed {other}, said {is_untold}, {address}");
        }
        enter(kubelet)?;
        for address in [POD4, POD6] {
            self.probe(&self.lab.node, address, None, true)?;
        }
        Ok(())
    }
}

/// Puts this process into a cgroup.
fn enter(cgroup: &Path) -> Outcome {
    Ok(fs::write(cgroup.join("cgroup.procs"), "0")?)
}
