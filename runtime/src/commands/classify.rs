//! `classify`: answers texts with labels, or with text where the chosen task generates.

use crate::answer::Answer;
use crate::cli::{Input, InputArgs, Inputs, need, say_if_cut, task_or_choice};
use crate::engine::Trunked;
use crate::error::{Code, Error, Result};
use crate::skills::Skills;
use crate::text::{Choice, Finish, Request};
use conpet_program::print::print;
use conpet_program::{ExitStatus, Stop};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

/// Most inputs computed together; they share each read of the weights.
const TOGETHER: usize = 16;

/// Arguments of `classify`.
#[derive(Debug, clap::Args)]
pub(super) struct ClassifyArgs {
    /// The inputs.
    #[command(flatten)]
    input: InputArgs,
    /// Answer by n-grams alone, without a pass of the base, where they are so sure that fewer than 1 % of answers
    /// change; such an answer refuses nothing.
    #[arg(long, conflicts_with = "task")]
    fast: bool,
}

pub(super) fn run(a: &ClassifyArgs, stop: &Stop) -> Result<ExitStatus> {
    let (fast, a) = (a.fast, &a.input);
    let (engine, skills) = a.common.open()?;
    let skills = need(skills)?;
    let task = task_or_choice(Some(&skills), a.task.as_ref())?;
    if fast && !skills.selector().has_fast() {
        return Err(Error::new(
            Code::Unsupported,
            "--fast: the bundle's selector has no n-grams that may answer alone",
        )
        .in_file(skills.bundle().path())
        .hint("leave --fast out, or learn the stream with --selector lda"));
    }
    Inputs::open(a)?.answer(stop, TOGETHER, |inputs, tally| {
        let begin = Instant::now();
        // What n-grams answer is left out of the batch; an input that is in error is told so there.
        let sure = |i: &Input| engine.fast(&skills, &i.text).ok().flatten();
        let quick: Vec<Option<(Answer, f64)>> = inputs
            .iter()
            .map(|i| {
                let begin = Instant::now();
                let answer = if fast { sure(i) } else { None };
                answer.map(|a| (a, begin.elapsed().as_secs_f64() * 1e3))
            })
            .collect();
        let texts: Vec<&str> =
            inputs.iter().zip(&quick).filter(|(_, q)| q.is_none()).map(|(i, _)| i.text.as_str()).collect();
        let ask = |texts: &[&str]| engine.answer_texts(&skills, texts, task).map(one_by_one);
        let answers: Vec<Result<Answered>> = match ask(&texts) {
            Ok(all) => all.into_iter().map(Ok).collect(),
            Err(e) if texts.len() == 1 || e.file().is_some() => vec![Err(e)],
            // One input's error must not cost the others their answers, so each is tried alone.
            Err(_) => texts.iter().map(|t| ask(&[t]).map(|mut one| one.remove(0))).collect(),
        };
        let each = begin.elapsed().as_secs_f64() * 1e3 / texts.len().max(1) as f64;
        let mut answers = answers.into_iter();
        for (input, quick) in inputs.iter().zip(quick) {
            if stop.asked() {
                break;
            }
            if let Some((answer, ms)) = quick {
                let printed = print(&match a.json {
                    true => json_line(&input.text, &answer, None, &skills, ms, true).to_string(),
                    false => line(&answer, &skills, ms) + "\tby n-grams",
                });
                tally.settle(input, printed)?;
                continue;
            }
            let Some(answer) = answers.next() else { break };
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
                    json_line(&input.text, &answer, finish, &skills, ms, false).to_string()
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

fn json_line(text: &str, a: &Answer, finish: Option<Finish>, skills: &Skills, ms: f64, by_ngrams: bool) -> Value {
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
        "by_ngrams": by_ngrams,
        "margin": a.decision.as_ref().map(|d| d.margin),
        "entropy": a.decision.as_ref().map(|d| d.entropy),
        "novelty": a.decision.as_ref().map(|d| d.novelty),
        "p_value": a.decision.as_ref().and_then(|d| d.p_value),
        "candidates": candidates,
        "finish_reason": finish.map(Finish::name),
        "ms": ms,
    })
}
