//! The report of a sweep: `sweep.json`, and a page with accuracy against trained parameters.

use super::Origin;
use super::html::open;
use super::svg::{escape, scatter};
use conpet_formats::{Code, Error, Result, fs};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::path::Path;

/// One kind at one size.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The PET kind as it was given; `head alone` has no module.
    pub kind: String,
    /// The spec at this size.
    pub pet: String,
    /// Number of trained parameters of the module; the head's, the same for all, are not counted.
    pub numbers: usize,
    /// The learning rate that was best on the validation rows.
    pub rate: f64,
    /// Accuracy on the validation rows, mean over seeds.
    pub valid: f64,
    /// Accuracy on the test rows, mean over seeds.
    pub accuracy: f64,
    /// Accuracy on the test rows of each seed.
    pub by_seed: Vec<f64>,
    /// Learning rates that were tried, each with its accuracy on the validation rows.
    pub tried: Vec<(f64, f64)>,
    /// Seconds of all its training and scoring.
    pub seconds: f64,
}

/// A whole sweep.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sweep {
    /// Where the report comes from.
    #[serde(flatten)]
    pub origin: Origin,
    /// Number of parameters of the base.
    pub base_parameters: usize,
    /// All settings.
    pub settings: String,
    /// Tasks trained on, each on its own.
    pub tasks: Vec<String>,
    /// Number of labels of each task.
    pub classes: Vec<usize>,
    /// Number of rows to train on, to choose the learning rate on, and to score on.
    pub rows: [usize; 3],
    /// The points, in the order of training.
    pub points: Vec<Point>,
    /// Kinds and sizes that were skipped, with the reason.
    pub skipped: Vec<String>,
}

impl Sweep {
    /// Takes over the points of an earlier sweep that was stopped.
    ///
    /// # Errors
    /// If there is one and `resume` is false, or it has other settings, tasks or another base.
    pub fn take_earlier(&mut self, dir: &Path, resume: bool) -> Result<()> {
        let file = dir.join("sweep.json");
        if !file.exists() {
            return Ok(());
        }
        if !resume {
            return Err(Error::new(Code::Duplicate, "the folder holds a sweep already")
                .in_file(&file)
                .hint("continue it with --resume, or name another folder with --out"));
        }
        let old: Self = serde_json::from_slice(&fs::read(&file)?)
            .map_err(|e| Error::new(Code::Value, e.to_string()).in_file(&file))?;
        // The order of settings does not matter.
        let [was, is] = [&old.settings, &self.settings].map(|s| s.parse::<toml::Table>().ok());
        if was != is || (&old.tasks, &old.origin.base) != (&self.tasks, &self.origin.base) {
            return Err(Error::new(Code::Value, "the sweep there has other settings, tasks or another base")
                .in_file(&file)
                .hint("resume with the same command, or name another folder with --out"));
        }
        self.points = old.points;
        Ok(())
    }

    /// Writes `sweep.json` and `sweep.html`.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        super::write(dir, "sweep", self, &self.page())
    }

    /// Kinds with a module, in order, each with its points by size.
    fn kinds(&self) -> Vec<(&str, Vec<&Point>)> {
        let mut out: Vec<(&str, Vec<&Point>)> = Vec::new();
        for p in self.points.iter().filter(|p| p.numbers > 0) {
            match out.iter_mut().find(|(k, _)| *k == p.kind) {
                Some((_, points)) => points.push(p),
                None => out.push((&p.kind, vec![p])),
            }
        }
        out.iter_mut().for_each(|(_, points)| points.sort_by_key(|p| p.numbers));
        out
    }

    /// Accuracy of a head without a module.
    fn head_alone(&self) -> Option<f64> {
        self.points.iter().find(|p| p.numbers == 0).map(|p| p.accuracy)
    }

    /// The fewest trained parameters with which each kind reaches half, and nine tenths, of the best point's
    /// gain over the head alone.
    fn thresholds(&self) -> Vec<(&str, [Option<usize>; 2])> {
        let best = self.points.iter().map(|p| p.accuracy).fold(0.0, f64::max);
        let floor = self.head_alone().unwrap_or(0.0);
        let reach = |points: &[&Point], part: f64| {
            let want = floor + part * (best - floor);
            points.iter().find(|p| p.accuracy >= want).map(|p| p.numbers)
        };
        self.kinds().into_iter().map(|(k, points)| (k, [reach(&points, 0.5), reach(&points, 0.9)])).collect()
    }

    /// A plain-text table, for a terminal.
    pub fn text(&self) -> String {
        let mut s = String::from("parameters   of base      rate   valid    test  module\n");
        let mut points: Vec<&Point> = self.points.iter().collect();
        points.sort_by(|a, b| (&a.kind, a.numbers).cmp(&(&b.kind, b.numbers)));
        for p in points {
            let part = p.numbers as f64 / self.base_parameters.max(1) as f64;
            let name = if p.numbers == 0 { &p.kind } else { &p.pet };
            let (valid, test) = (100.0 * p.valid, 100.0 * p.accuracy);
            let _ = writeln!(s, "{:>10}  {part:>8.1e}  {:>8}  {valid:>5.1}%  {test:>5.1}%  {name}", p.numbers, p.rate);
        }
        for x in &self.skipped {
            let _ = writeln!(s, "skipped: {x}");
        }
        s
    }

    fn page(&self) -> String {
        let [train, valid, test] = self.rows;
        let about = format!(
            "base {} ({} parameters) · {} · {train} rows to train on, {valid} to choose the learning rate, {test} scored",
            self.origin.base,
            self.base_parameters,
            self.tasks.join(", "),
        );
        let mut s = open(["ConPET sweep", "Accuracy against trained parameters"], &about, &self.origin);
        let series: Vec<(String, Vec<(f64, f64)>)> = self
            .kinds()
            .into_iter()
            .map(|(k, points)| (k.to_owned(), points.iter().map(|p| (p.numbers as f64, p.accuracy)).collect()))
            .collect();
        s += "<h2>Test accuracy, % (trained parameters of the module, logarithmic; dashed: the head alone)</h2>";
        s += &scatter(&series, self.head_alone());
        s += "<h2>Fewest parameters that reach a part of the best gain over the head alone</h2><div class=wrap><table><tr><th>kind</th><th>half</th><th>nine tenths</th></tr>";
        let cell = |n: Option<usize>| n.map_or_else(|| "not reached".into(), |n| n.to_string());
        for (kind, [half, most]) in self.thresholds() {
            let _ = write!(s, "<tr><td>{}</td><td>{}</td><td>{}</td></tr>", escape(kind), cell(half), cell(most));
        }
        s += "</table></div><h2>Points</h2><div class=wrap><table><tr><th>module</th><th>parameters</th><th>of the base</th><th>rate</th><th>valid %</th><th>test %</th><th>each seed %</th><th>s</th></tr>";
        for p in &self.points {
            let seeds: Vec<String> = p.by_seed.iter().map(|v| format!("{:.1}", 100.0 * v)).collect();
            let name = if p.numbers == 0 { format!("{} ({})", p.kind, p.pet) } else { p.pet.clone() };
            let _ = write!(
                s,
                "<tr><td>{}</td><td>{}</td><td>{:.1e}</td><td>{}</td><td>{:.1}</td><td>{:.1}</td><td>{}</td><td>{:.0}</td></tr>",
                escape(&name),
                p.numbers,
                p.numbers as f64 / self.base_parameters.max(1) as f64,
                p.rate,
                100.0 * p.valid,
                100.0 * p.accuracy,
                seeds.join(" "),
                p.seconds
            );
        }
        s += "</table></div>";
        for x in &self.skipped {
            let _ = write!(s, "<p class=dim>skipped: {}</p>", escape(x));
        }
        let _ =
            write!(s, "<details><summary class=dim>settings</summary><pre>{}</pre></details>", escape(&self.settings));
        s + "</body></html>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_the_smallest_sizes_that_reach_a_part_of_the_gain() {
        let p = |kind: &str, numbers, accuracy| Point { kind: kind.into(), numbers, accuracy, ..Point::default() };
        let points =
            vec![p("head alone", 0, 0.5), p("b", 900, 0.9), p("b", 10, 0.6), p("b", 100, 0.7), p("<i>", 5, 0.5)];
        let s = Sweep { points, base_parameters: 1000, ..Sweep::default() };
        assert_eq!(s.thresholds(), [("b", [Some(100), Some(900)]), ("<i>", [None, None])]);
        let page = s.page();
        assert!(page.contains("&lt;i&gt;") && !page.contains("<i>") && page.contains("not reached"));
        assert!(s.text().contains("90.0%"));
    }
}
