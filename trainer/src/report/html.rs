//! The page: a table of methods, accuracy over stages, a matrix and a confusion for each method.

use super::summary::{Spread, Summary, table};
use super::svg::{Line, escape, heat_map, lines};
use super::{MethodReport, Origin, Report};
use std::fmt::Write as _;

const STYLE: &str = "
:root{--bg:#fbfbfa;--fg:#1d2126;--dim:#6a737d;--line:#dfe2e5;--cell:#1f6feb;--card:#fff}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e6e8ea;--dim:#9aa4ad;--line:#2d333a;--cell:#4c93ff;--card:#1b1f24}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1060px;padding:32px 24px 64px;background:var(--bg);color:var(--fg);
font:15px/1.55 system-ui,sans-serif}h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:40px 0 10px}h3{font-size:15px;margin:22px 0 6px}
p{margin:6px 0}.dim{color:var(--dim)}code{font:13px ui-monospace,monospace;background:var(--card);border:1px solid var(--line);border-radius:4px;padding:1px 5px;word-break:break-word}
table{border-collapse:collapse;width:100%;background:var(--card);font-variant-numeric:tabular-nums}th,td{padding:7px 10px;border:1px solid var(--line);text-align:right}
th:first-child,td:first-child{text-align:left}td{white-space:nowrap}th{font-weight:600;color:var(--dim)}.wrap{overflow-x:auto}
svg{max-width:100%;height:auto;display:block}svg text{font:12px system-ui,sans-serif;fill:var(--fg)}.axis{fill:var(--dim)!important}.on{fill:#fff!important}
.cell{fill:var(--cell)}.none{fill:none;stroke:var(--line)}.grid{stroke:var(--line)}.line{fill:none;stroke-width:2.2}
.c0{--c:#1f6feb}.c1{--c:#d1495b}.c2{--c:#2a9d5c}.c3{--c:#c77700}.c4{--c:#7a4fd0}.c5{--c:#00808a}.c6{--c:#b0419b}.c7{--c:#6b7280}.c8{--c:#8f9a1e}.c9{--c:#3b4fa0}
.line{stroke:var(--c)}.dot,text.name{fill:var(--c)!important}.band{fill:var(--c);opacity:.14}
.cols{display:flex;flex-wrap:wrap;gap:28px}";

/// The beginning of every page: title, first heading, subject and origin.
pub(super) fn open([title, heading]: [&str; 2], about: &str, o: &Origin) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style></head><body><h1>{heading}</h1>\
         <p class=dim>{} · conpet {}{} · {} · {} threads · {} kernels · {:.0} GB memory</p><p><code>{}</code></p>",
        escape(about),
        escape(&o.version),
        o.commit.as_ref().map_or_else(String::new, |c| format!(" ({})", escape(c))),
        escape(&o.machine.cpu),
        o.machine.threads,
        escape(&o.machine.kernels),
        o.machine.memory as f64 / 1e9,
        escape(&o.command)
    )
}

/// The whole page.
pub fn page(r: &Report) -> String {
    let mut s = open(["ConPET report"; 2], &format!("base {}", r.origin.base), &r.origin);
    summary(&mut s, r);
    plot(&mut s, r, "Average over the tasks seen so far", |m| &m.average, 1);
    if r.summary.iter().any(|m| !m.forgetting.is_empty()) {
        plot(&mut s, r, "Forgetting", |m| &m.forgetting, 2);
    }
    for m in &r.summary {
        let runs: Vec<&MethodReport> = r.methods.iter().filter(|x| x.name == m.name).collect();
        if let Some(first) = runs.first() {
            method(&mut s, first, &runs);
        }
    }
    s + "</body></html>\n"
}

fn summary(s: &mut String, r: &Report) {
    let (titles, rows) = table(&r.summary);
    let _ = write!(
        s,
        "<h2>Methods side by side</h2><div class=wrap><table><tr>{}</tr>",
        titles.iter().map(|t| format!("<th>{t}</th>")).collect::<String>()
    );
    for row in rows {
        let _ = write!(s, "<tr>{}</tr>", row.iter().map(|c| format!("<td>{}</td>", escape(c))).collect::<String>());
    }
    *s += "</table></div><p class=dim>Scores in %; of several runs, mean ± standard deviation. Average: mean over tasks of each task's main metric; whole: \
           right rows over all rows; both after the last stage. \
           Forgetting: best earlier score minus the last, mean over tasks but the last (Chaudhry et al. 2018). BWT, FWT: Lopez-Paz &amp; Ranzato 2017; \
           FWT is 0 by construction, since labels are unknown before their stage. Task known: the oracle router. One shared module has nothing to route. \
           Unseen: inputs of no task; AUROC of their novelty against the tasks' own rows, and the part of them that passes where 95 % of those do. \
           Base / trainable: numbers of the base, which full tuning would train, for each number trained.</p>";
}

/// A plot of one curve of each method, with its spread over runs; `first` is the first point's stage.
fn plot(s: &mut String, r: &Report, title: &str, of: impl Fn(&Summary) -> &Vec<Spread>, first: usize) {
    let _ =
        write!(s, "<h2>{title}</h2><p class=dim>% after each stage; the band is the standard deviation over runs</p>");
    let line = |m: &Summary| Line {
        name: m.name.clone(),
        points: of(m).iter().map(|v| (v.mean, v.sd.unwrap_or(0.0))).collect(),
    };
    *s += &lines(&r.summary.iter().map(line).collect::<Vec<_>>(), first);
}

/// A method's section: one run in detail, and the list of all runs.
fn method(s: &mut String, m: &MethodReport, runs: &[&MethodReport]) {
    let _ = write!(s, "<h2>{}</h2>", escape(&m.name));
    if runs.len() > 1 {
        *s += "<details><summary class=dim>all runs</summary><div class=wrap><table><tr><th>seed</th><th>order of the tasks</th><th>average</th><th>whole</th><th>forgetting</th></tr>";
        for x in runs {
            let seed = x.config.get("seed").map_or_else(String::new, ToString::to_string);
            let v = &x.metrics;
            let _ = write!(
                s,
                "<tr><td>{}</td><td>{}</td><td>{:.1}</td><td>{:.1}</td><td>{}</td></tr>",
                escape(&seed),
                escape(&x.tasks.join(", ")),
                100.0 * v.average_accuracy,
                100.0 * v.whole_accuracy,
                v.forgetting.map_or_else(|| "–".into(), |f| format!("{:.1}", 100.0 * f))
            );
        }
        *s += "</table></div></details><p class=dim>The first of them in detail:</p>";
    }
    *s += "<div class=cols><div><h3>Main metric on each task (columns) after each stage (rows)</h3>";
    let rows: Vec<String> = match m.stages.len() {
        1 => vec!["all at once".into()],
        n => (0..n).map(|i| format!("{} {}", i + 1, m.tasks.get(i).map_or("", |t| t.as_str()))).collect(),
    };
    *s += &heat_map(&rows, &m.tasks, &m.metrics.matrix);
    *s += "</div>";
    if let Some(last) = m.stages.last().filter(|_| m.config.get("method").is_some_and(|v| v == "dynamic")) {
        let cells: Vec<Vec<Option<f64>>> = last
            .confusion
            .iter()
            .map(|row| {
                let n = row.iter().sum::<usize>();
                row.iter().map(|v| (n > 0).then(|| *v as f64 / n as f64)).collect()
            })
            .collect();
        *s += "<div><h3>Routing after the last stage: true task (rows), chosen task (columns)</h3>";
        *s += &heat_map(&m.tasks, &m.tasks, &cells);
        *s += "</div>";
    }
    let settings = toml::to_string(&m.config).unwrap_or_default();
    let _ = write!(s, "</div><details><summary class=dim>settings</summary><pre>{}</pre></details>", escape(&settings));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{StageScores, metrics};
    use crate::report::Usage;

    #[test]
    fn names_from_files_are_escaped_and_all_methods_are_there() {
        let stage = StageScores {
            rows: vec![4],
            right: vec![3],
            routed: vec![4],
            oracle: vec![4],
            confusion: vec![vec![4]],
            ..StageScores::default()
        };
        let m = MethodReport {
            name: "dynamic (lda)".into(),
            config: serde_json::Map::from_iter([("method".to_owned(), "dynamic".into())]),
            tasks: vec!["<script>alert(1)</script>".into()],
            labels: vec![2],
            metrics: metrics(std::slice::from_ref(&stage)),
            stages: vec![stage],
            usage: Usage::default(),
        };
        let origin = Origin { command: "conpet-train & co".into(), base: "b".into(), ..Origin::default() };
        let r = Report::new(origin).with(vec![m]);
        let html = page(&r);
        assert!(!html.contains("<script") && html.contains("&lt;script&gt;") && html.contains("&amp; co"));
        assert!(html.contains("75.0") && html.contains("dynamic (lda)") && !html.contains("http"));
        assert!(r.text().contains("75.0"));
    }
}
