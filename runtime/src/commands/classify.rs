//! `classify`: answers texts with labels, or with text where the chosen task generates.

use crate::answer::Answer;
use crate::cli::{InputArgs, Inputs, need, say_if_cut, task_or_choice};
use crate::engine::Trunked;
use crate::error::Result;
use crate::skills::Skills;
use crate::text::{Choice, Finish, Request};
use conpet_program::print::print;
use conpet_program::{ExitStatus, Stop};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

/// Most inputs computed together; they share each read of the weights.
const TOGETHER: usize = 16;

pub(super) fn run(a: &InputArgs, stop: &Stop) -> Result<ExitStatus> {
    let (engine, skills) = a.common.open()?;
    let skills = need(skills)?;
    let task = task_or_choice(Some(&skills), a.task.as_ref())?;
    Inputs::open(a)?.answer(stop, TOGETHER, |inputs, tally| {
        let begin = Instant::now();
        let texts: Vec<&str> = inputs.iter().map(|i| i.text.as_str()).collect();
        let ask = |texts: &[&str]| engine.answer_texts(&skills, texts, task).map(one_by_one);
        let answers: Vec<Result<Answered>> = match ask(&texts) {
            Ok(all) => all.into_iter().map(Ok).collect(),
            Err(e) if texts.len() == 1 || e.file().is_some() => vec![Err(e)],
            // One input's error must not cost the others their answers, so each is tried alone.
            Err(_) => texts.iter().map(|t| ask(&[t]).map(|mut one| one.remove(0))).collect(),
        };
        let each = begin.elapsed().as_secs_f64() * 1e3 / inputs.len() as f64;
        for (input, answer) in inputs.iter().zip(answers) {
            if stop.asked() {
                break;
            }
            let printed = answer.and_then(|(mut answer, trunked, place)| {
                let (mut ms, mut finish) = (each, None);
                if skills.is_generation(answer.task) && !answer.abstain {
                    // The chosen task generates text.
                    let choice = Choice::Task(answer.task);
                    let request = Request { text: input.text.clone(), choice, ..Request::default() };
                    let g = engine.write(&skills, (&trunked, place), &request, &mut |_| !stop.asked())?;
                    say_if_cut(&g, engine.context(), None);
                    ms += (g.prompt_time + g.answer_time).as_secs_f64() * 1e3;
                    finish = Some(g.finish);
                    answer.label = Some(g.text.trim().to_owned());
                    answer.probability = answer.candidates.first().map_or(1.0, |c| c.weight);
                }
                print(&if a.json {
                    json_line(&input.text, &answer, finish, &skills, ms).to_string()
                } else {
                    line(&answer, &skills, ms)
                })
            });
            tally.settle(input, printed)?;
        }
        Ok(())
    })
}

/// An answer, the batch that its input passed the trunk in, and the input's index there.
type Answered = (Answer, Arc<Trunked>, usize);

fn one_by_one(batches: Vec<(Trunked, Vec<Answer>)>) -> Vec<Answered> {
    let each = batches.into_iter().flat_map(|(trunked, answers)| {
        let trunked = Arc::new(trunked);
        answers.into_iter().enumerate().map(move |(i, a)| (a, trunked.clone(), i))
    });
    each.collect()
}

fn line(a: &Answer, skills: &Skills, ms: f64) -> String {
    let task = &skills.manifest().tasks[a.task].name;
    let label = a.label.as_deref().unwrap_or("(no answer)");
    let margin = a.decision.as_ref().map_or_else(String::new, |d| format!("\tmargin {:.3}", d.margin));
    let abstain = if a.abstain { "\tunlike any task" } else { "" };
    format!("{label}\t{:.3}\t{task}{margin}{abstain}\t{ms:.1} ms", a.probability)
}

fn json_line(text: &str, a: &Answer, finish: Option<Finish>, skills: &Skills, ms: f64) -> Value {
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
        "p_value": a.decision.as_ref().and_then(|d| d.p_value),
        "candidates": candidates,
        "finish_reason": finish.map(Finish::name),
        "ms": ms,
    })
}
