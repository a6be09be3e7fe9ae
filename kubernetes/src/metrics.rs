//! What a node counts. How it is written and served is the library's business.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use cni_quarantine::metrics::{Exposition, Histogram};

/// What is counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counted {
    /// Pods that marks isolate and that were found contained, in whole or in part.
    pub active: usize,
    /// Of these, those contained in part, by the code of each reason.
    pub partial: BTreeMap<String, usize>,
    /// Pods isolated by the cluster's marks of which no object of the cluster's speaks any more.
    pub orphans: usize,
    /// Pods that run, and for which the plugin was not called.
    pub uncovered: usize,
    /// Packets that were dropped, in and out.
    pub dropped: [u64; 2],
    /// How often something could not be done.
    pub failures: u64,
    /// From an object's coming in to its pod's being read back as contained.
    pub contained: Histogram,
}

impl Counted {
    /// The text that is scraped.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = Exposition::default();
        text.gauge("quarantine_active", "Pods of this node that are isolated.", self.active);
        let partial = self.partial.iter().map(|(code, count)| (code.as_str(), *count));
        text.gauge_by("quarantine_partial", "Pods contained in part, by reason.", "reason", partial);
        let help = "Pods isolated by the cluster of which no object of the cluster speaks any more.";
        text.gauge("quarantine_orphan_marks", help, self.orphans);
        let help = "Pods that were made without the plugin and not adopted: they cannot be isolated.";
        text.gauge("quarantine_uncovered_pods", help, self.uncovered);
        let [inbound, outbound] = self.dropped;
        let help = "Packets of isolated pods that were dropped.";
        text.counter_by("quarantine_dropped_packets", help, "direction", [("in", inbound), ("out", outbound)]);
        let help = "How often a mark could not be written, or the kernel not be read.";
        text.counter("quarantine_failures", help, self.failures);
        let help = "From an object's coming in to its pod's being read back as contained.";
        text.histogram("quarantine_contain_seconds", help, ("stage", "node"), &self.contained);
        text.finish()
    }
}

/// What is counted, shared between who counts and who is asked.
pub type Shared = Arc<Mutex<Counted>>;

/// Answers scrapers until the process ends. Where the address cannot be had, that is said, and nothing else is kept from working.
pub fn serve(address: SocketAddr, counted: Shared) {
    let text = move || counted.lock().unwrap_or_else(PoisonError::into_inner).to_text();
    if let Err(error) = cni_quarantine::metrics::serve(address, text) {
        log::warn!("event=no-metrics address={address} error={:?}", error.to_string());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_text_has_every_metric_and_its_end() {
        let mut counted = Counted { active: 2, orphans: 1, failures: 3, uncovered: 4, ..Counted::default() };
        counted.partial.insert("tc-redirect".to_owned(), 1);
        counted.dropped = [5, 6];
        counted.contained.observe(Duration::from_millis(4));
        let text = counted.to_text();
        for line in [
            "quarantine_active 2",
            "quarantine_partial{reason=\"tc-redirect\"} 1",
            "quarantine_orphan_marks 1",
            "quarantine_uncovered_pods 4",
            "quarantine_dropped_packets_total{direction=\"in\"} 5",
            "quarantine_dropped_packets_total{direction=\"out\"} 6",
            "quarantine_failures_total 3",
            "quarantine_contain_seconds_count{stage=\"node\"} 1",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        let types = text.lines().filter(|line| line.starts_with("# TYPE")).count();
        assert_eq!(types, 7);
    }
}
