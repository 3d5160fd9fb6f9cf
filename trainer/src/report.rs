//! The report of a run: `report.json` and one self-contained HTML page.

mod html;
mod joined;
mod origin;
pub mod summary;
mod svg;
pub mod sweep;

pub use html::page;
pub use joined::joined;
pub(crate) use origin::own_command;
pub use origin::{Machine, Origin};
use summary::{Summary, summaries, table};

use crate::config::Config;
use crate::metrics::{Metrics, StageScores, metrics};
use crate::services::usage::Usage;
use crate::stream::Task;
use conpet_formats::{Code, Error, Result, fs};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Writes `report.json` and `report.html`.
///
/// # Errors
/// If they cannot be written.
pub fn write_page(r: &Report, dir: &Path) -> Result<()> {
    write(dir, "report", r, &page(r))
}

/// Version of the JSON format.
pub const SCHEMA: u32 = 1;

/// Writes `NAME.json`, in one line, and `NAME.html`.
pub(crate) fn write(dir: &Path, name: &str, numbers: &impl Serialize, page: &str) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io("create", e).in_file(dir))?;
    let json = serde_json::to_vec(numbers).map_err(|e| Error::new(Code::Value, e.to_string()))?;
    for (ending, bytes) in [("json", json.as_slice()), ("html", page.as_bytes())] {
        let file = dir.join(format!("{name}.{ending}"));
        fs::write_atomic(&file, |w| w.write_all(bytes).map_err(|e| Error::io("write", e)))?;
    }
    Ok(())
}

/// One method's run on a stream.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MethodReport {
    /// Name of the run: see [`name`].
    pub name: String,
    /// All settings.
    ///
    /// They are kept by name, because reports of other releases, with other settings, must still be readable.
    pub config: serde_json::Map<String, serde_json::Value>,
    /// Names of the tasks, in order.
    pub tasks: Vec<String>,
    /// Labels of each task.
    pub labels: Vec<usize>,
    /// Counts after each stage that was scored.
    pub stages: Vec<StageScores>,
    /// The metrics.
    pub metrics: Metrics,
    /// What the run cost.
    pub usage: Usage,
}

impl MethodReport {
    /// Makes the report of a run from its stages' scores.
    pub fn new(config: &Config, tasks: &[Task], stages: &[StageScores], usage: Usage) -> Self {
        let name = name(config);
        let figures = metrics(stages);
        Self {
            name,
            config: match serde_json::to_value(config) {
                Ok(serde_json::Value::Object(settings)) => settings,
                _ => serde_json::Map::new(),
            },
            tasks: tasks.iter().map(|t| t.name.clone()).collect(),
            labels: tasks.iter().map(|t| t.labels.len()).collect(),
            stages: stages.to_vec(),
            metrics: Metrics {
                fwt: figures.fwt.filter(|_| !config.method().is_ok_and(|m| m.traits.at_once)),
                ..figures
            },
            usage,
        }
    }
}

/// Several runs on one stream, side by side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where the report comes from.
    #[serde(flatten)]
    pub origin: Origin,
    /// The runs.
    pub methods: Vec<MethodReport>,
    /// Each method summarised over all its runs; recomputed when reports are joined.
    #[serde(default)]
    pub summary: Vec<Summary>,
}

/// The name of a run: the one it was given, or else its method, its selector, and its PET kind and head if they
/// are not the usual ones. Runs of the same name count as repetitions with another seed or order of the tasks.
pub fn name(config: &Config) -> String {
    if let Some(name) = config.run.name.get() {
        return name.to_owned();
    }
    let (method, s, usual) = (&config.run.method, &config.services, Config::default().services);
    let selects = config.method().is_ok_and(|m| m.traits.selects);
    let set = [
        selects.then_some(config.methods.dynamic.common.selector.as_str()),
        (s.module.pet != usual.module.pet).then_some(&s.module.pet),
        s.module.params.get(),
        (s.head.head != usual.head.head).then_some(&s.head.head),
    ];
    let set: Vec<&str> = set.into_iter().flatten().collect();
    if set.is_empty() { method.clone() } else { format!("{method} ({})", set.join(", ")) }
}

impl Report {
    /// A report without runs.
    pub fn new(origin: Origin) -> Self {
        Self { origin, methods: Vec::new(), summary: Vec::new() }
    }

    /// The report with these runs, and their summary.
    pub fn with(self, methods: Vec<MethodReport>) -> Self {
        Self { summary: summaries(&methods), methods, ..self }
    }

    /// A plain-text table of the matrix and the metrics, for a terminal.
    pub fn text(&self) -> String {
        use std::fmt::Write as _;
        let mut out = String::new();
        // A matrix belongs to one run; for methods with several, the table of means says more.
        let single = |m: &&MethodReport| self.methods.iter().filter(|x| x.name == m.name).count() == 1;
        for m in self.methods.iter().filter(single) {
            let _ = writeln!(out, "\n{}: main metric in % after each stage (rows) on each task (columns)", m.name);
            let width = m.tasks.iter().map(|t| t.chars().count().min(12)).max().unwrap_or(6).max(6);
            let clip = |t: &str| t.chars().take(12).collect::<String>();
            let _ = writeln!(
                out,
                "{:>7}  {}",
                "stage",
                m.tasks.iter().map(|t| format!("{:>width$}", clip(t))).collect::<Vec<_>>().join("  ")
            );
            for (i, row) in m.metrics.matrix.iter().enumerate() {
                let cells: Vec<String> = row
                    .iter()
                    .map(|v| v.map_or_else(|| format!("{:>width$}", "-"), |v| format!("{:>width$.1}", 100.0 * v)))
                    .collect();
                let _ = writeln!(out, "{:>7}  {}", i + 1, cells.join("  "));
            }
            if let Some(s) = m.stages.last() {
                let each: Vec<String> = s
                    .rows
                    .iter()
                    .zip(&s.tasks)
                    .map(|(n, t)| format!("{:>width$.1}", 100.0 * t.refused as f64 / (*n).max(1) as f64))
                    .collect();
                let _ = writeln!(out, "{:>7}  {}", "refused", each.join("  "));
                let (fast, flips) = s.tasks.iter().fold((0, 0), |sum, t| (sum.0 + t.fast, sum.1 + t.flips));
                let rows: usize = s.rows.iter().sum();
                if fast > 0 {
                    let share = |n: usize| 100.0 * n as f64 / rows.max(1) as f64;
                    let _ = writeln!(
                        out,
                        "  by n-grams alone (--fast): {:.1} % of rows, {:.2} % of all with another answer",
                        share(fast),
                        share(flips)
                    );
                }
                if let Some(ece) = s.ece {
                    let _ = writeln!(out, "  expected calibration error {:.1} points", 100.0 * ece);
                }
            }
            if let Some(d) = m.metrics.detection {
                let [auroc, fpr, caught, refused] = [d.auroc, d.fpr95, d.refused, d.refused_known].map(|v| 100.0 * v);
                let _ = writeln!(
                    out,
                    "  {} inputs of no task: AUROC {auroc:.1}, FPR@95 {fpr:.1}; refused {caught:.1}, of the tasks' own {refused:.1}",
                    d.rows
                );
            }
        }
        let (titles, rows) = table(&self.summary);
        out.push('\n');
        let width = self.summary.iter().map(|m| m.name.chars().count() + 2).fold(20, usize::max);
        for (i, title) in titles.iter().enumerate() {
            let cells: Vec<&str> = rows.iter().map(|r| r[i].as_str()).collect();
            let _ = writeln!(out, "{title:<18}{}", cells.iter().map(|c| format!("{c:>width$}")).collect::<String>());
        }
        out
    }
}
