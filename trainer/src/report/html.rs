//! The page: a table of methods, accuracy over stages, a matrix and a confusion for each method.

use super::svg::{escape, heat_map, lines};
use super::{MethodReport, Report};
use std::fmt::Write as _;

pub(super) const STYLE: &str = "
:root{--bg:#fbfbfa;--fg:#1d2126;--dim:#6a737d;--line:#dfe2e5;--cell:#1f6feb;--card:#fff}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e6e8ea;--dim:#9aa4ad;--line:#2d333a;--cell:#4c93ff;--card:#1b1f24}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1060px;padding:32px 24px 64px;background:var(--bg);color:var(--fg);
font:15px/1.55 system-ui,sans-serif}h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:40px 0 10px}h3{font-size:15px;margin:22px 0 6px}
p{margin:6px 0}.dim{color:var(--dim)}code{font:13px ui-monospace,monospace;background:var(--card);border:1px solid var(--line);border-radius:4px;padding:1px 5px;word-break:break-word}
table{border-collapse:collapse;width:100%;background:var(--card);font-variant-numeric:tabular-nums}th,td{padding:7px 10px;border:1px solid var(--line);text-align:right}
th:first-child,td:first-child{text-align:left}th{font-weight:600;color:var(--dim)}.wrap{overflow-x:auto}
svg{max-width:100%;height:auto;display:block}svg text{font:12px system-ui,sans-serif;fill:var(--fg)}.axis{fill:var(--dim)!important}.on{fill:#fff!important}
.cell{fill:var(--cell)}.none{fill:none;stroke:var(--line)}.grid{stroke:var(--line)}.line{fill:none;stroke-width:2.2}
.c0{stroke:#1f6feb}.c1{stroke:#d1495b}.c2{stroke:#2a9d5c}.c3{stroke:#c77700}.c4{stroke:#7a4fd0}.c5{stroke:#00808a}
text.c0,.dot.c0{fill:#1f6feb!important;stroke:none}text.c1,.dot.c1{fill:#d1495b!important;stroke:none}text.c2,.dot.c2{fill:#2a9d5c!important;stroke:none}
text.c3,.dot.c3{fill:#c77700!important;stroke:none}text.c4,.dot.c4{fill:#7a4fd0!important;stroke:none}text.c5,.dot.c5{fill:#00808a!important;stroke:none}
.cols{display:flex;flex-wrap:wrap;gap:28px}";

/// The whole page.
pub fn page(r: &Report) -> String {
    let mut s = String::from(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">",
    );
    let _ = write!(s, "<title>ConPET report</title><style>{STYLE}</style></head><body>");
    let _ = write!(
        s,
        "<h1>ConPET report</h1><p class=dim>base {} · conpet {}{} · {} · {} threads · {} kernels · {:.0} GB memory</p><p><code>{}</code></p>",
        escape(&r.base),
        escape(&r.version),
        r.commit.as_ref().map_or_else(String::new, |c| format!(" ({})", escape(c))),
        escape(&r.machine.cpu),
        r.machine.threads,
        escape(&r.machine.kernels),
        r.machine.memory as f64 / 1e9,
        escape(&r.command)
    );
    summary(&mut s, r);
    let series: Vec<(String, Vec<f64>)> = r.methods.iter().map(|m| (m.name.clone(), over_stages(m))).collect();
    s += "<h2>Whole accuracy over all tasks seen so far</h2><p class=dim>% after each stage</p>";
    s += &lines(&series);
    for m in &r.methods {
        method(&mut s, m);
    }
    s + "</body></html>\n"
}

/// Right rows over scored rows, after each stage.
fn over_stages(m: &MethodReport) -> Vec<f64> {
    let sum = |v: &[usize]| v.iter().sum::<usize>() as f64;
    m.stages.iter().map(|x| sum(&x.right) / sum(&x.rows).max(1.0)).collect()
}

fn summary(s: &mut String, r: &Report) {
    *s += "<h2>Methods side by side</h2><div class=wrap><table><tr><th>method</th><th>average</th><th>whole</th><th>forgetting</th><th>BWT</th><th>FWT</th>\
           <th>routing</th><th>task known</th><th>trainable</th><th>base / trainable</th><th>minutes</th><th>tokens/s</th><th>peak MB</th><th>bundle MB</th></tr>";
    for m in &r.methods {
        let pct = |v: Option<f64>| v.map_or_else(|| "–".into(), |v| format!("{:.1}", 100.0 * v));
        let (x, u) = (&m.metrics, &m.usage);
        let cells = [
            pct(Some(x.average_accuracy)),
            pct(Some(x.whole_accuracy)),
            pct(x.forgetting),
            pct(x.bwt),
            pct(x.fwt),
            pct(Some(x.routing_accuracy)),
            pct(Some(x.oracle_accuracy)),
            u.trainable.to_string(),
            format!("{:.0}", u.base_parameters as f64 / u.trainable.max(1) as f64),
            format!("{:.1}", u.seconds / 60.0),
            format!("{:.0}", u.trained_tokens as f64 / u.training_seconds.max(1e-9)),
            format!("{:.0}", u.peak_rss as f64 / 1e6),
            format!("{:.1}", u.bundle_bytes as f64 / 1e6),
        ];
        let _ = write!(s, "<tr><td>{}</td>{}</tr>", escape(&m.name), cells.map(|c| format!("<td>{c}</td>")).concat());
    }
    *s += "</table></div><p class=dim>Accuracies in %. Average: mean over tasks; whole: over all rows; both after the last stage. \
           Forgetting: best earlier accuracy minus the last, mean over tasks but the last (Chaudhry et al. 2018). BWT, FWT: Lopez-Paz &amp; Ranzato 2017; \
           FWT is 0 by construction, since labels are unknown before their stage. Task known: the oracle router. One shared module has nothing to route.</p>";
}

fn method(s: &mut String, m: &MethodReport) {
    let _ = write!(
        s,
        "<h2>{}</h2><div class=cols><div><h3>Accuracy on each task (columns) after each stage (rows)</h3>",
        escape(&m.name)
    );
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
    use crate::report::{Machine, SCHEMA, Usage};

    #[test]
    fn names_from_files_are_escaped_and_all_methods_are_there() {
        let stage =
            StageScores { rows: vec![4], right: vec![3], routed: vec![4], oracle: vec![4], confusion: vec![vec![4]] };
        let m = MethodReport {
            name: "dynamic (lda)".into(),
            config: serde_json::Map::from_iter([("method".to_owned(), "dynamic".into())]),
            tasks: vec!["<script>alert(1)</script>".into()],
            labels: vec![2],
            metrics: metrics(std::slice::from_ref(&stage)),
            stages: vec![stage],
            usage: Usage::default(),
        };
        let r = Report {
            schema: SCHEMA,
            version: "1".into(),
            commit: None,
            command: "conpet-train & co".into(),
            machine: Machine::default(),
            base: "b".into(),
            methods: vec![m],
        };
        let html = page(&r);
        assert!(!html.contains("<script") && html.contains("&lt;script&gt;") && html.contains("&amp; co"));
        assert!(html.contains("75.0") && html.contains("dynamic (lda)") && !html.contains("http"));
        assert!(r.text().contains("75.0"));
    }
}
