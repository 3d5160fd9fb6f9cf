//! `classify`: texts to labels; where the chosen task answers by text, to that text.

use super::{inputs, named, need, print};
use crate::cli::InputArgs;
use crate::engine::answer::Answer;
use crate::engine::text::{Choice, Request};
use crate::error::Result;
use crate::skills::Skills;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

pub(super) fn run(a: &InputArgs, stop: &AtomicBool) -> Result<()> {
    let (engine, skills) = a.common.open()?;
    let skills = need(skills)?;
    let task = named(&skills, a.task.as_ref())?;
    inputs(a, |texts| {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let begin = Instant::now();
        let refs: Vec<&str> = texts.iter().map(String::as_str).collect();
        let batches = engine.answer_texts(&skills, &refs, task)?;
        let answers = batches.iter().flat_map(|(trunked, answers)| {
            answers.iter().enumerate().map(move |(i, a)| ((trunked, i), a.clone()))
        });
        let each = begin.elapsed().as_secs_f64() * 1e3 / texts.len() as f64;
        for (text, (from, mut answer)) in texts.iter().zip(answers) {
            let mut ms = each;
            if skills.is_generation(answer.task) && !answer.abstain {
                // The chosen task answers by text.
                let choice = Choice::Task(answer.task);
                let request = Request { text: text.clone(), choice, ..Request::default() };
                let go = &mut |_: &str| !stop.load(Ordering::Relaxed);
                let g = engine.write(&skills, from, &request, go)?;
                ms += (g.prompt_time + g.answer_time).as_secs_f64() * 1e3;
                answer.label = Some(g.text.trim().to_owned());
                answer.probability = answer.candidates.first().map_or(1.0, |c| c.weight);
            }
            print(&if a.json {
                json_line(text, &answer, &skills, ms).to_string()
            } else {
                line(&answer, &skills, ms)
            })?;
        }
        Ok(())
    })
}

fn line(a: &Answer, skills: &Skills, ms: f64) -> String {
    let task = &skills.manifest().tasks[a.task].name;
    let label = a.label.as_deref().unwrap_or("(no answer)");
    let margin = a.decision.as_ref().map_or_else(String::new, |d| format!("\tmargin {:.3}", d.margin));
    let abstain = if a.abstain { "\tunlike any task" } else { "" };
    format!("{label}\t{:.3}\t{task}{margin}{abstain}\t{ms:.1} ms", a.probability)
}

fn json_line(text: &str, a: &Answer, skills: &Skills, ms: f64) -> Value {
    let tasks = &skills.manifest().tasks;
    let candidates: Vec<Value> = a
        .candidates
        .iter()
        .map(|c| {
            let best = c.labels.iter().max_by(|x, y| x.2.total_cmp(&y.2));
            let total = |best: f32| c.labels.iter().map(|(_, _, p)| (p - best).exp()).sum::<f32>();
            json!({
                "task": tasks[c.task].name,
                "weight": c.weight,
                "label": best.and_then(|(t, l, _)| tasks[*t].labels.get(*l)),
                "probability": best.map(|(_, _, p)| 1.0 / total(*p)),
            })
        })
        .collect();
    json!({
        "text": text,
        "label": a.label,
        "probability": a.probability,
        "task": tasks[a.task].name,
        "module": tasks[a.task].module.map(|m| skills.manifest().modules[m as usize].id.clone()),
        "abstain": a.abstain,
        "margin": a.decision.as_ref().map(|d| d.margin),
        "entropy": a.decision.as_ref().map(|d| d.entropy),
        "novelty": a.decision.as_ref().map(|d| d.novelty),
        "candidates": candidates,
        "ms": ms,
    })
}
