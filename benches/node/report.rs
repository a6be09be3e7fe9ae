//! What was measured, as Markdown for people and JSON for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// All figures of a subject of one kind.
#[derive(Debug)]
pub(crate) struct Series {
    /// What was measured, `ADD` for example. Series of one measure are compared; the first is the reference.
    pub(crate) measure: String,
    pub(crate) subject: String,
    pub(crate) unit: &'static str,
    pub(crate) samples: Vec<f64>,
}

impl Series {
    pub(crate) fn new(measure: impl Into<String>, subject: impl Into<String>, unit: &'static str) -> Self {
        Self { measure: measure.into(), subject: subject.into(), unit, samples: Vec::new() }
    }

    /// The percentile.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        quantile(&self.samples, part)
    }

    /// How many times the reference's figure this one is: the median of run against run where both ran alternately.
    fn ratio_to(&self, reference: &Self) -> f64 {
        if self.samples.len() != reference.samples.len() {
            return self.quantile(0.5) / reference.quantile(0.5);
        }
        let pairs: Vec<_> = self.samples.iter().zip(&reference.samples).map(|(own, other)| own / other).collect();
        quantile(&pairs, 0.5)
    }
}

fn quantile(samples: &[f64], part: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = part * last as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// A table of the report.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) key: &'static str,
    pub(crate) title: &'static str,
    pub(crate) notes: Vec<String>,
    pub(crate) series: Vec<Series>,
}

impl Section {
    pub(crate) fn new(key: &'static str, title: &'static str) -> Self {
        Self { key, title, notes: Vec::new(), series: Vec::new() }
    }

    /// The series of this measure and subject; a new one where there is none yet.
    pub(crate) fn series(&mut self, measure: &str, subject: &str, unit: &'static str) -> &mut Series {
        let is_it = |series: &Series| series.measure == measure && series.subject == subject;
        let place = self.series.iter().position(is_it).unwrap_or_else(|| {
            self.series.push(Series::new(measure, subject, unit));
            self.series.len() - 1
        });
        &mut self.series[place]
    }

    pub(crate) fn push(&mut self, measure: &str, subject: &str, unit: &'static str, sample: f64) {
        self.series(measure, subject, unit).samples.push(sample);
    }

    fn measures(&self) -> Vec<&str> {
        let mut measures: Vec<&str> = Vec::new();
        for series in &self.series {
            if !measures.contains(&series.measure.as_str()) {
                measures.push(&series.measure);
            }
        }
        measures
    }

    fn of(&self, measure: &str) -> impl Iterator<Item = &Series> {
        self.series.iter().filter(move |series| series.measure == measure)
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n", self.title);
        for note in &self.notes {
            let _ = writeln!(text, "{note}\n");
        }
        text.push_str("| | | median | p10 – p90 | p99 | against the first | n |\n|---|---|--:|--:|--:|--:|--:|\n");
        for measure in self.measures() {
            let reference = self.of(measure).next();
            for (row, series) in self.of(measure).enumerate() {
                let figure = |part| number(series.quantile(part));
                let ratio = match (row, reference) {
                    (0, _) | (_, None) => String::new(),
                    (_, Some(reference)) => format!("× {}", number(series.ratio_to(reference))),
                };
                let _ = writeln!(
                    text,
                    "| {} | {} | {} {} | {} – {} | {} | {ratio} | {} |",
                    if row == 0 { measure } else { "" },
                    series.subject,
                    figure(0.5),
                    series.unit,
                    figure(0.1),
                    figure(0.9),
                    figure(0.99),
                    series.samples.len()
                );
            }
        }
        text
    }

    pub(crate) fn json(&self) -> Value {
        let series = self.measures().into_iter().flat_map(|measure| {
            let reference = self.of(measure).next();
            self.of(measure).map(move |series| {
                json!({
                    "measure": series.measure,
                    "subject": series.subject,
                    "unit": series.unit,
                    "median": series.quantile(0.5),
                    "p10": series.quantile(0.1),
                    "p90": series.quantile(0.9),
                    "p99": series.quantile(0.99),
                    "ratio": reference.map(|reference| series.ratio_to(reference)),
                    "samples": series.samples,
                })
            })
        });
        json!({ "section": self.key, "title": self.title, "notes": self.notes, "series": series.collect::<Vec<_>>() })
    }
}

/// Three significant digits.
fn number(value: f64) -> String {
    match value.abs() {
        value if !value.is_finite() => "–".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.01 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// The machine that the figures are of.
pub(crate) fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |(_, m)| m);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{model}, {cores} cores, Linux {}", kernel.trim())
}
