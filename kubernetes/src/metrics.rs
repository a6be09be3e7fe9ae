//! What a node counts, as `OpenMetrics` text, on loopback by default.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Upper bounds of the histogram, in seconds.
const BOUNDS: [f64; 10] = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// A scraper that has not asked by then is not listened to.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counted {
    /// Pods that marks isolate and that were found contained, in whole or in part.
    pub active: usize,
    /// Of these, those contained in part, by the code of each reason.
    pub partial: BTreeMap<String, usize>,
    /// Pods isolated by the cluster's marks of which no object of the cluster's speaks any more.
    pub orphans: usize,
    /// How often something could not be done.
    pub failures: u64,
    contained: Histogram,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Histogram {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Counted {
    /// Counts how long it took from an object's coming in to its pod's being read back as contained.
    pub fn contained_after(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        let buckets = self.contained.buckets.iter_mut().zip(BOUNDS).filter(|(_, bound)| seconds <= *bound);
        buckets.for_each(|(bucket, _)| *bucket += 1);
        self.contained.count += 1;
        self.contained.sum += seconds;
    }

    /// The text that is scraped.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, samples: Vec<(String, String)>| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (suffix, value) in samples {
                let _ = writeln!(text, "{name}{suffix} {value}");
            }
        };
        let plain = |value: String| vec![(String::new(), value)];
        metric("quarantine_active", "gauge", "Pods of this node that are isolated.", plain(self.active.to_string()));
        let partial = self.partial.iter().map(|(code, count)| (format!("{{reason=\"{code}\"}}"), count.to_string()));
        metric("quarantine_partial", "gauge", "Pods contained in part, by reason.", partial.collect());
        metric(
            "quarantine_orphan_marks",
            "gauge",
            "Pods isolated by the cluster of which no object of the cluster speaks any more.",
            plain(self.orphans.to_string()),
        );
        let failures = vec![("_total".to_owned(), self.failures.to_string())];
        metric(
            "quarantine_failures",
            "counter",
            "How often a mark could not be written, or the kernel not be read.",
            failures,
        );
        let Histogram { buckets, count, sum } = &self.contained;
        let mut samples: Vec<_> = BOUNDS
            .iter()
            .zip(buckets)
            .map(|(bound, count)| (format!("_bucket{{stage=\"node\",le=\"{bound}\"}}"), count.to_string()))
            .collect();
        samples.push(("_bucket{stage=\"node\",le=\"+Inf\"}".to_owned(), count.to_string()));
        samples.push(("_count{stage=\"node\"}".to_owned(), count.to_string()));
        samples.push(("_sum{stage=\"node\"}".to_owned(), sum.to_string()));
        let help = "From an object's coming in to its pod's being read back as contained.";
        metric("quarantine_contain_seconds", "histogram", help, samples);
        text.push_str("# EOF\n");
        text
    }
}

/// What is counted, shared between who counts and who is asked.
pub type Shared = Arc<Mutex<Counted>>;

/// Answers scrapers until the process ends. Where the address cannot be had, that is said, and nothing else is kept from working.
pub async fn serve(address: SocketAddr, counted: Shared) {
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) => {
            log::warn!("event=no-metrics address={address} error={:?}", error.to_string());
            return;
        }
    };
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            let counted = counted.clone();
            tokio::spawn(async move {
                let _ = tokio::time::timeout(PATIENCE, answer(stream, &counted)).await;
            });
        } else {
            // No file descriptors, mostly.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn answer(mut stream: TcpStream, counted: &Shared) -> std::io::Result<()> {
    let mut request = [0; 1024];
    let length = stream.read(&mut request).await?;
    let text = counted.lock().unwrap_or_else(PoisonError::into_inner).to_text();
    let (status, body) = if request[..length].starts_with(b"GET /metrics ") {
        ("200 OK", text)
    } else {
        ("404 Not Found", String::new())
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_every_metric_and_its_end() {
        let mut counted = Counted { active: 2, orphans: 1, failures: 3, ..Counted::default() };
        counted.partial.insert("tc-redirect".to_owned(), 1);
        counted.contained_after(Duration::from_millis(4));
        counted.contained_after(Duration::from_secs(60));
        let text = counted.to_text();
        for line in [
            "quarantine_active 2",
            "quarantine_partial{reason=\"tc-redirect\"} 1",
            "quarantine_orphan_marks 1",
            "quarantine_failures_total 3",
            "quarantine_contain_seconds_bucket{stage=\"node\",le=\"0.002\"} 0",
            "quarantine_contain_seconds_bucket{stage=\"node\",le=\"0.005\"} 1",
            "quarantine_contain_seconds_bucket{stage=\"node\",le=\"5\"} 1",
            "quarantine_contain_seconds_bucket{stage=\"node\",le=\"+Inf\"} 2",
            "quarantine_contain_seconds_count{stage=\"node\"} 2",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        let types = text.lines().filter(|line| line.starts_with("# TYPE")).count();
        assert_eq!(types, 5);
    }
}
