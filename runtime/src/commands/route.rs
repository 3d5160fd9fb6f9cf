//! `route`: shows how the selector decides on an input.

use crate::cli::{InputArgs, Inputs, need};
use crate::engine::Engine;
use crate::error::{Code, Error, Result};
use conpet_program::print::print;
use conpet_program::{ExitStatus, Stop};
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;

pub(super) fn run(a: &InputArgs, stop: &Stop) -> Result<ExitStatus> {
    let (engine, skills) = a.common.open()?;
    let skills = need(skills)?;
    let selector = skills.selector();
    let Some(feature) = selector.feature() else {
        return Err(Error::new(
            Code::Unsupported,
            format!("a {} selector does not read the input", selector.kind().name()),
        )
        .in_file(skills.bundle().path())
        .hint("use classify or generate with --task"));
    };
    let tasks = &skills.manifest().tasks;
    let mut reads: Vec<String> = feature.parts.iter().map(|p| format!("{}:{}", p.layer, p.pool)).collect();
    if selector.ngrams() > 0 {
        reads.push(format!("{} n-grams", selector.ngrams()));
    }
    let answer = |text: &str| {
        let begin = Instant::now();
        let prompt = Arc::new(engine.prompt(text, None)?);
        let trunked = engine.trunk(vec![prompt.clone()], skills.trunk(), Engine::trunk_feature(&skills), false);
        let trunk_ms = begin.elapsed().as_secs_f64() * 1e3;
        let begin = Instant::now();
        let Some(d) = engine.decide(&skills, &trunked)?.pop() else { return Ok(()) };
        let select_ms = begin.elapsed().as_secs_f64() * 1e3;
        let run: Vec<&str> = selector.candidates(&d).iter().map(|t| tasks[*t].name.as_str()).collect();
        let weights: Vec<(&str, f32)> = d.order.iter().map(|t| (tasks[*t].name.as_str(), d.task_weight[*t])).collect();
        if a.json {
            let line = json!({
                "text": text,
                "tokens": prompt.tokens.len(),
                "selector": selector.kind().name(),
                "reads": reads,
                "weights": weights.iter().map(|(t, w)| json!({"task": t, "weight": w})).collect::<Vec<_>>(),
                "margin": d.margin,
                "entropy": d.entropy,
                "novelty": d.novelty,
                "abstain": d.abstain,
                "candidates": run,
                "trunk_ms": trunk_ms,
                "select_ms": select_ms,
            });
            return print(&line.to_string());
        }
        let mut lines = vec![
            text.to_owned(),
            format!(
                "  {} reads {} of {} tokens; trunk {trunk_ms:.1} ms, selection {select_ms:.2} ms",
                selector.kind().name(),
                reads.join(" + "),
                prompt.tokens.len()
            ),
        ];
        lines.extend(weights.iter().take(5).map(|(name, w)| format!("  {w:>7.4}  {name}")));
        let verdict =
            if d.abstain { "refuses: unlike any task".to_owned() } else { format!("runs {}", run.join(" and ")) };
        lines.push(format!(
            "  margin {:.4}, entropy {:.4} nats, novelty {:.4}; {verdict}",
            d.margin, d.entropy, d.novelty
        ));
        print(&lines.join("\n"))
    };
    Inputs::open(a)?
        .answer(stop, 1, |inputs, tally| inputs.iter().try_for_each(|input| tally.settle(input, answer(&input.text))))
}
