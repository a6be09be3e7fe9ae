//! Numbers as `OpenMetrics` text, and who answers a scraper. What is counted is the business of whoever counts.

use std::fmt::{Display, Write as _};
use std::io::{self, Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// Upper bounds of a histogram, in seconds.
const BOUNDS: [f64; 10] = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// A scraper that has not asked, or taken its answer, by then is not waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// A request has no more than this before its end.
const REQUEST_MAX: usize = 8 * 1024;
const STACK: usize = 512 * 1024;

/// How long something took, each time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        let buckets = self.buckets.iter_mut().zip(BOUNDS).filter(|(_, bound)| seconds <= *bound);
        buckets.for_each(|(bucket, _)| *bucket += 1);
        self.count += 1;
        self.sum += seconds;
    }
}

/// The text that is scraped, as far as it is written.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        // Labels are codes of this program's, which have nothing that would need escaping.
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    /// How many there are.
    pub fn gauge(&mut self, name: &str, help: &str, value: usize) {
        self.head(name, "gauge", help);
        self.sample(name, &[], value);
    }

    /// How many there are of each kind.
    pub fn gauge_by<'a>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, usize)>,
    ) {
        self.head(name, "gauge", help);
        values.into_iter().for_each(|(kind, value)| self.sample(name, &[(label, kind)], value));
    }

    /// How often something happened; `name` is without `_total`.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.sample(&format!("{name}_total"), &[], value);
    }

    /// How often something happened, by its kind; `name` is without `_total`.
    pub fn counter_by<'a>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, u64)>,
    ) {
        self.head(name, "counter", help);
        let total = format!("{name}_total");
        values.into_iter().for_each(|(kind, value)| self.sample(&total, &[(label, kind)], value));
    }

    /// How long something took.
    pub fn histogram(&mut self, name: &str, help: &str, label: (&str, &str), histogram: &Histogram) {
        self.head(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        for (bound, count) in BOUNDS.iter().zip(&histogram.buckets) {
            // As OpenMetrics has its numbers: with a point.
            self.sample(&bucket, &[label, ("le", &format!("{bound:?}"))], count);
        }
        self.sample(&bucket, &[label, ("le", "+Inf")], histogram.count);
        self.sample(&format!("{name}_count"), &[label], histogram.count);
        self.sample(&format!("{name}_sum"), &[label], histogram.sum);
    }

    /// The text, with its end.
    #[must_use]
    pub fn finish(mut self) -> String {
        self.0.push_str("# EOF\n");
        self.0
    }
}

/// Answers scrapers with `text`, on a thread of its own, one after the other, until the process ends.
///
/// # Errors
/// When the address cannot be had, or no thread.
pub fn serve(address: SocketAddr, mut text: impl FnMut() -> String + Send + 'static) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    thread::Builder::new().name("metrics".to_owned()).stack_size(STACK).spawn(move || {
        loop {
            match listener.accept() {
                // Whoever went away is not missed.
                Ok((stream, _)) => drop(answer(&stream, &mut text)),
                // No file descriptors, mostly.
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    })?;
    Ok(address)
}

fn answer(mut stream: &TcpStream, text: &mut impl FnMut() -> String) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || request.len() > REQUEST_MAX {
            return Ok(());
        }
        stream.set_read_timeout(Some(left))?;
        let mut part = [0; 1024];
        match stream.read(&mut part)? {
            0 => return Ok(()),
            length => request.extend_from_slice(&part[..length]),
        }
    }
    let is_asked = [&b"GET /metrics "[..], b"GET /metrics?"].iter().any(|asked| request.starts_with(asked));
    let (status, body) = if is_asked { ("200 OK", text()) } else { ("404 Not Found", String::new()) };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_openmetrics() {
        let mut histogram = Histogram::default();
        histogram.observe(Duration::from_millis(4));
        histogram.observe(Duration::from_secs(60));
        let mut text = Exposition::default();
        text.gauge("a_gauge", "What it is.", 2);
        text.gauge_by("by", "By kind.", "reason", [("tc-redirect", 1)]);
        text.counter("failures", "How often.", 3);
        text.counter_by("dropped", "How many.", "direction", [("in", 1), ("out", 2)]);
        text.histogram("took_seconds", "How long.", ("stage", "node"), &histogram);
        let text = text.finish();
        let expected = "# HELP a_gauge What it is.\n# TYPE a_gauge gauge\na_gauge 2\n\
            # HELP by By kind.\n# TYPE by gauge\nby{reason=\"tc-redirect\"} 1\n\
            # HELP failures How often.\n# TYPE failures counter\nfailures_total 3\n\
            # HELP dropped How many.\n# TYPE dropped counter\n\
            dropped_total{direction=\"in\"} 1\ndropped_total{direction=\"out\"} 2\n\
            # HELP took_seconds How long.\n# TYPE took_seconds histogram\n\
            took_seconds_bucket{stage=\"node\",le=\"0.002\"} 0\ntook_seconds_bucket{stage=\"node\",le=\"0.005\"} 1\n";
        assert!(text.starts_with(expected), "{text}");
        let end = "took_seconds_bucket{stage=\"node\",le=\"5.0\"} 1\ntook_seconds_bucket{stage=\"node\",le=\"+Inf\"} 2\n\
            took_seconds_count{stage=\"node\"} 2\ntook_seconds_sum{stage=\"node\"} 60.004\n# EOF\n";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn whoever_asks_otherwise_or_not_at_all_keeps_nobody_from_being_answered() {
        let mut times = 0;
        let text = move || {
            times += 1;
            format!("asked {times}\n")
        };
        let address = serve("127.0.0.1:0".parse().unwrap(), text).unwrap();
        let ask = |request: &str| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        let _silent = TcpStream::connect(address).unwrap();
        assert!(ask("GET / HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 404 "));
        let answer = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nasked 1\n"), "{answer}");
    }
}
