//! What packets of a released pod cost.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::node::{ADDRESS, Node, Pod};
use crate::report::Section;
use crate::{Effort, Outcome};

/// Throughput and latency of two pods, one of them with the plugin.
pub(crate) fn released(node: &Node, effort: &Effort) -> Outcome<Section> {
    let mut section = Section::new("released", "What a released pod pays");
    let [with, without]: [Pod; 2] = node.pods(20..22)?.try_into().map_err(|_| "two pods were wanted")?;
    node.plugin("ADD", &with, None).run()?;
    let subjects = [("without the plugin", &without), ("with the plugin, released", &with)];
    for round in 0..effort.runs(40) {
        for turn in 0..2 {
            // Each is first as often as second.
            let (subject, pod) = subjects[(round + turn) % 2];
            let throughput = throughput(pod, Duration::from_millis(200))?;
            section.push("TCP throughput", subject, "Gbit/s", throughput);
            let (median, late) = latency(pod, 2000)?;
            section.push("request and answer, p50", subject, "µs", median);
            section.push("request and answer, p99", subject, "µs", late);
        }
    }
    // The reference first, whoever was measured first.
    section.series.sort_by_key(|series| (series.measure.clone(), series.subject != subjects[0].0));
    Ok(section)
}

/// A connection from the pod to the node.
fn connection(pod: &Pod) -> Outcome<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((ADDRESS, 0))?;
    let address = listener.local_addr()?;
    let from_pod = pod.inside(|| TcpStream::connect(address))??;
    let (on_node, _) = listener.accept()?;
    from_pod.set_nodelay(true)?;
    on_node.set_nodelay(true)?;
    Ok((from_pod, on_node))
}

pub(crate) fn throughput(pod: &Pod, how_long: Duration) -> Outcome<f64> {
    let (mut from_pod, mut on_node) = connection(pod)?;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let bytes = [7; 128 * 1024];
            while from_pod.write_all(&bytes).is_ok() {}
        });
        let mut buffer = vec![0; 256 * 1024];
        let started = Instant::now();
        let mut count = 0;
        while started.elapsed() < how_long {
            count += on_node.read(&mut buffer)?;
        }
        let elapsed = started.elapsed().as_secs_f64();
        // The sender ends by it.
        drop(on_node);
        Ok(count as f64 * 8.0 / elapsed / 1e9)
    })
}

/// Median and 99th percentile, in microseconds, of this many requests and answers.
pub(crate) fn latency(pod: &Pod, count: usize) -> Outcome<(f64, f64)> {
    let (mut from_pod, mut on_node) = connection(pod)?;
    let mut times = crate::report::Series::new("", "", "µs");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut bytes = [0; 64];
            while on_node.read_exact(&mut bytes).and_then(|()| on_node.write_all(&bytes)).is_ok() {}
        });
        let mut bytes = [1; 64];
        for _ in 0..count {
            let started = Instant::now();
            from_pod.write_all(&bytes)?;
            from_pod.read_exact(&mut bytes)?;
            times.samples.push(started.elapsed().as_secs_f64() * 1e6);
        }
        drop(from_pod);
        Ok((times.quantile(0.5), times.quantile(0.99)))
    })
}
