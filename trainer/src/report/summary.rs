//! Compares methods: the mean and spread of each metric over seeds and orders of the tasks.

use super::MethodReport;
use crate::metrics::metrics;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a metric is displayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// A fraction, shown in %.
    Percent,
    /// A whole number.
    Count,
    /// Seconds, shown in minutes.
    Minutes,
    /// Bytes, shown in MB.
    Megabytes,
}

/// One metric of a run.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// Its name in JSON.
    pub key: &'static str,
    /// Its title in tables.
    pub title: &'static str,
    /// How it is displayed.
    pub unit: Unit,
    of: fn(&MethodReport) -> Option<f64>,
}

const fn figure(key: &'static str, title: &'static str, unit: Unit, of: fn(&MethodReport) -> Option<f64>) -> Figure {
    Figure { key, title, unit, of }
}

/// All metrics, in the order of a table's columns.
pub const FIGURES: [Figure; 19] = [
    figure("average", "average", Unit::Percent, |m| Some(m.metrics.average_accuracy)),
    figure("whole", "whole", Unit::Percent, |m| Some(m.metrics.whole_accuracy)),
    figure("macro_f1", "macro-F1", Unit::Percent, |m| m.metrics.macro_f1),
    figure("rouge_l", "ROUGE-L", Unit::Percent, |m| m.metrics.rouge_l),
    figure("exact_match", "exact match", Unit::Percent, |m| m.metrics.exact_match),
    figure("forgetting", "forgetting", Unit::Percent, |m| m.metrics.forgetting),
    figure("bwt", "BWT", Unit::Percent, |m| m.metrics.bwt),
    figure("fwt", "FWT", Unit::Percent, |m| m.metrics.fwt),
    figure("routing", "routing", Unit::Percent, |m| Some(m.metrics.routing_accuracy)),
    figure("oracle", "task known", Unit::Percent, |m| Some(m.metrics.oracle_accuracy)),
    figure("auroc", "unseen AUROC", Unit::Percent, |m| m.metrics.detection.map(|d| d.auroc)),
    figure("fpr95", "unseen FPR@95", Unit::Percent, |m| m.metrics.detection.map(|d| d.fpr95)),
    figure("trainable", "trainable", Unit::Count, |m| Some(m.usage.trainable as f64)),
    figure("ratio", "base / trainable", Unit::Count, |m| {
        (m.usage.trainable > 0).then(|| m.usage.base_parameters as f64 / m.usage.trainable as f64)
    }),
    figure("tokens", "tokens trained", Unit::Count, |m| Some(m.usage.trained_tokens as f64)),
    figure("seconds", "minutes", Unit::Minutes, |m| Some(m.usage.seconds)),
    figure("rate", "tokens/s", Unit::Count, |m| {
        (m.usage.training_seconds > 0.0).then(|| m.usage.trained_tokens as f64 / m.usage.training_seconds)
    }),
    figure("peak", "peak MB", Unit::Megabytes, |m| Some(m.usage.peak_rss as f64)),
    figure("bundle", "bundle MB", Unit::Megabytes, |m| Some(m.usage.bundle_bytes as f64)),
];

/// A mean with its standard deviation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Sample standard deviation (n - 1); `None` for a single run.
    pub sd: Option<f64>,
}

impl Spread {
    /// The spread of some values; `None` if there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let square = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>();
        let sd = (values.len() > 1).then(|| (square / (n - 1.0)).sqrt());
        (!values.is_empty()).then_some(Self { mean, sd })
    }

    /// The text for a table.
    pub fn text(&self, unit: Unit) -> String {
        let (scale, places) = match unit {
            Unit::Percent => (100.0, 1),
            Unit::Count => (1.0, 0),
            Unit::Minutes => (1.0 / 60.0, 1),
            Unit::Megabytes => (1e-6, 1),
        };
        let mean = format!("{:.places$}", scale * self.mean);
        match self.sd.map(|sd| format!("{:.places$}", scale * sd)) {
            // Omit a deviation that would be displayed as zero.
            Some(sd) if sd.bytes().any(|b| (b'1'..=b'9').contains(&b)) => format!("{mean} ± {sd}"),
            _ => mean,
        }
    }
}

/// A method summarised over all its runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The method.
    pub name: String,
    /// Number of its runs.
    pub runs: usize,
    /// Metrics by the keys of [`FIGURES`].
    pub figures: BTreeMap<String, Spread>,
    /// After each scored stage, the mean of the main metric over the tasks so far.
    pub average: Vec<Spread>,
    /// After each scored stage but the first, the forgetting.
    pub forgetting: Vec<Spread>,
}

/// Groups runs by method, in the order of first appearance.
pub fn summaries(runs: &[MethodReport]) -> Vec<Summary> {
    let mut names: Vec<&str> = Vec::new();
    runs.iter().map(|r| r.name.as_str()).for_each(|n| {
        if !names.contains(&n) {
            names.push(n);
        }
    });
    names.into_iter().map(|n| summary(n, &runs.iter().filter(|r| r.name == n).collect::<Vec<_>>())).collect()
}

fn summary(name: &str, runs: &[&MethodReport]) -> Summary {
    let over =
        |f: &dyn Fn(&MethodReport) -> Option<f64>| Spread::of(&runs.iter().filter_map(|r| f(r)).collect::<Vec<_>>());
    let stages = runs.iter().map(|r| r.stages.len()).max().unwrap_or(0);
    let curve = |f: &dyn Fn(&MethodReport, usize) -> Option<f64>| -> Vec<Spread> {
        (0..stages).filter_map(|t| over(&|r| f(r, t))).collect()
    };
    Summary {
        name: name.to_owned(),
        runs: runs.len(),
        figures: FIGURES.iter().filter_map(|f| Some((f.key.to_owned(), over(&f.of)?))).collect(),
        average: curve(&|r, t| r.stages.get(t)?.average()),
        forgetting: curve(&|r, t| metrics(r.stages.get(..=t)?).forgetting),
    }
}

/// The table of all metrics that any method has: the titles, and a row for each method.
pub fn table(all: &[Summary]) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let used: Vec<&Figure> = FIGURES.iter().filter(|f| all.iter().any(|s| s.figures.contains_key(f.key))).collect();
    let row = |s: &Summary| -> Vec<String> {
        let cells = used.iter().map(|f| s.figures.get(f.key).map_or_else(|| "–".into(), |v| v.text(f.unit)));
        [s.name.clone(), s.runs.to_string()].into_iter().chain(cells).collect()
    };
    (["method", "runs"].into_iter().chain(used.iter().map(|f| f.title)).collect(), all.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::StageScores;

    fn run(name: &str, right: [usize; 3]) -> MethodReport {
        let stage = |rows: [usize; 2], right: [usize; 2]| StageScores {
            rows: rows.to_vec(),
            right: right.to_vec(),
            routed: right.to_vec(),
            oracle: rows.to_vec(),
            ..StageScores::default()
        };
        let stages = vec![stage([10, 0], [right[0], 0]), stage([10, 10], [right[1], right[2]])];
        MethodReport { name: name.into(), metrics: metrics(&stages), stages, ..MethodReport::default() }
    }

    #[test]
    fn runs_of_a_method_are_one_row_with_mean_and_spread() {
        let all = summaries(&[run("a", [8, 6, 10]), run("b", [10, 10, 10]), run("a", [10, 4, 8])]);
        assert_eq!(all.iter().map(|s| (s.name.as_str(), s.runs)).collect::<Vec<_>>(), [("a", 2), ("b", 1)]);
        // Averages 0.8 and 0.6; forgetting 0.2 and 0.6.
        let a = &all[0];
        assert!((a.figures["average"].mean - 0.7).abs() < 1e-12);
        assert!((a.figures["average"].sd.unwrap() - 0.02f64.sqrt()).abs() < 1e-12);
        assert!((a.figures["forgetting"].mean - 0.4).abs() < 1e-12 && a.figures["forgetting"].sd.is_some());
        assert!((a.average[0].mean - 0.9).abs() < 1e-12 && a.average.len() == 2 && a.forgetting.len() == 1);
        assert_eq!(all[1].figures["average"], Spread { mean: 1.0, sd: None });
        let (titles, rows) = table(&all);
        assert!(titles.contains(&"average") && !titles.contains(&"ROUGE-L"), "{titles:?}");
        assert_eq!(rows[0][2], "70.0 ± 14.1");
        assert_eq!(rows[1][2], "100.0");
    }
}
