//! Dynamic ConPET (Song et al. 2023): a module and a head for each task, and a selector.
//!
//! Each module is trained on its own task's rows with full batches: because each row trains only its own task's
//! module, the old rows of the published mixture give no gradient, so this finds the same optimum for half the
//! work. The selector is closed-form by default; `--selector conpet` trains the published one
//! ([`crate::selectors`] has them all).
//!
//! A selector that scores labels knows something of each task's labels itself. Rows that neither it nor the module
//! has seen say how the two are weighed, and whether the module earns its place beside it: validation rows, or
//! without any a part of the training rows, for which a first module is trained on the others.

use super::per_task;
use crate::data::{Prepared, Subset};
use crate::fit::Examples;
use crate::rng::Stream;
use crate::selectors;
pub use crate::selectors::Settings;
use crate::selectors::fitting::Fit;
use crate::selectors::weights::{self, Row};
use crate::services::module::Modules;
use crate::services::prepare::Split;
use crate::services::{Services, Stage};
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use conpet_formats::bundle::manifest::TaskKind;
use conpet_formats::decimal::Decimal;
use conpet_formats::head::log_softmax;

/// Learns one more task.
pub fn learn(services: &mut Services<'_>, own: &Settings, stage: Stage) -> Result<Option<Draft>> {
    let (t, mut draft) = (stage.task, stage.draft);
    let task = services.tasks()[t].clone();
    let modules = services.settings().module.modules;
    let quick = modules == Modules::None && task.kind == TaskKind::Classification;
    let data = if quick { services.prepare_bare(t, Split::Train)? } else { services.prepare_train(t)? };
    let valid = services.prepare_valid(t)?;
    services.add_task(&mut draft, t, None, None);
    let selector = selectors::by_name(&own.common.selector)?;
    let new = Fit { kind: selector.kind, common: &own.common, task: t, train: &data, valid: &valid };
    if !(selector.fit)(services, own, &mut draft, &new)? {
        return Ok(None);
    }
    if quick {
        return Ok(Some(draft));
    }
    if task.kind == TaskKind::Generation {
        let Some(trained) = per_task::train(services, t, &data, &task.name)? else { return Ok(None) };
        per_task::enter(services, &mut draft, t, &trained)?;
        services.account(&trained);
        return Ok(Some(draft));
    }
    let mut trial = draft.clone();
    let mut whole = None;
    let (seen, rows): (&Prepared, Vec<usize>) = match valid.is_empty() {
        true => (&data, held_out(&data.classes, services.settings().training.seed)),
        false => (&valid, (0..valid.len()).collect()),
    };
    if valid.is_empty() {
        let rest: Vec<usize> = (0..data.len()).filter(|i| !rows.contains(i)).collect();
        let part = Subset { data: &data, rows: rest };
        let Some(trained) = per_task::train(services, t, &part, &format!("{} part", task.name))? else {
            return Ok(None);
        };
        per_task::enter(services, &mut trial, t, &trained)?;
        services.account(&trained);
    } else {
        let Some(trained) = per_task::train(services, t, &data, &task.name)? else { return Ok(None) };
        per_task::enter(services, &mut trial, t, &trained)?;
        services.account(&trained);
        whole = Some(trained);
    }
    let logits = services.newest_logits(&trial, seen, &rows)?;
    let known = match valid.is_empty() {
        true => (selector.left_out)(services, &draft, seen, &rows)?,
        false => posteriors(services, &draft, seen)?,
    };
    let classes: Vec<usize> = rows.iter().map(|i| seen.classes[*i]).collect();
    let joint = join(&logits, known.as_deref(), &classes);
    if modules == Modules::Auto && !joint.earns {
        return Ok(Some(draft));
    }
    let whole = match whole {
        Some(w) => w,
        None => {
            let Some(trained) = per_task::train(services, t, &data, &task.name)? else { return Ok(None) };
            services.account(&trained);
            trained
        }
    };
    per_task::enter(services, &mut draft, t, &whole)?;
    if let Some(h) = draft.manifest.heads.last_mut() {
        h.temperature = Decimal::from_f64(joint.temperature);
        h.blend = Decimal::from_f64(joint.blend);
    }
    Ok(Some(draft))
}

/// A fifth of each class's rows, at least one of every class that has two; drawn by the seed.
fn held_out(classes: &[usize], seed: u64) -> Vec<usize> {
    let mut out = Vec::new();
    for c in 0..classes.iter().max().map_or(0, |m| m + 1) {
        let mut mine: Vec<usize> = (0..classes.len()).filter(|i| classes[*i] == c).collect();
        Stream::new(seed, "held out", c as u64).shuffle(&mut mine);
        let n = (mine.len() / 5).max(usize::from(mine.len() > 1));
        out.extend(&mine[..n]);
    }
    out.sort_unstable();
    out
}

/// The selector's log posterior of the newest task's labels, for rows that it has not seen; `None` if it scores none.
fn posteriors(services: &Services<'_>, draft: &Draft, rows: &Prepared) -> Result<Option<Vec<Vec<f32>>>> {
    let Some(selector) = services.draft_selector(draft)? else { return Ok(None) };
    let words = rows.inputs.iter().map(|p| p.words());
    let decisions = selector.decide(services.engine().cpu(), &rows.features, words);
    let newest = draft.manifest.tasks.len() - 1;
    let first = selector.class_task().iter().position(|t| *t == newest).unwrap_or(0);
    let own = |mut lp: Vec<f32>| {
        let mut own = lp.split_off(first);
        log_softmax(&mut own, 1.0);
        own
    };
    Ok(Some(decisions.into_iter().map(|d| own(d.class_log_posterior)).collect()))
}

/// Standard errors by which a gain must differ from none: one chance in twenty that it is luck.
const SURE: f64 = 1.64;

/// How a head and the selector's posterior are joined.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Joint {
    temperature: f64,
    blend: f64,
    /// Whether the two say more together than the selector alone.
    earns: bool,
}

/// The most likely weights of a head's logits and the selector's log posterior `known`, given rows' classes.
///
/// The head earns its place if it makes the rows more likely by more than the one parameter it adds would by chance,
/// a nat (Akaike 1974), and by more than could be the luck of these rows: of few rows, a gain in all of them.
fn join(logits: &[Vec<f32>], known: Option<&[Vec<f32>]>, classes: &[usize]) -> Joint {
    let rows = |scores: &dyn Fn(usize) -> Vec<Vec<f32>>| -> Vec<Row> {
        (0..classes.len()).map(|i| Row { scores: scores(i), class: classes[i], weight: 1.0 }).collect()
    };
    let heads = |i: usize| logits[i].clone();
    let Some(known) = known else {
        let (w, _) = weights::fit(&rows(&|i| vec![heads(i)]));
        let temperature = 1.0 / w.first().map_or(1.0, |w| w.max(1e-4));
        return Joint { temperature, blend: 0.0, earns: true };
    };
    let (w, _) = weights::fit(&rows(&|i| vec![heads(i), known[i].clone()]));
    let (v, _) = weights::fit(&rows(&|i| vec![known[i].clone()]));
    let [a, b] = [w.first(), w.get(1)].map(|w| w.copied().unwrap_or(1.0));
    let alone = v.first().copied().unwrap_or(1.0);
    let likely = |i: usize, a: f64, b: f64| {
        let sum = logits[i].iter().zip(&known[i]).map(|(h, k)| a as f32 * h + b as f32 * k);
        let mut lp: Vec<f32> = sum.collect();
        log_softmax(&mut lp, 1.0);
        f64::from(lp[classes[i]])
    };
    let gains: Vec<f64> = (0..classes.len()).map(|i| likely(i, a, b) - likely(i, 0.0, alone)).collect();
    let (n, sum) = (gains.len() as f64, gains.iter().sum::<f64>());
    let spread = gains.iter().map(|g| (g - sum / n).powi(2)).sum::<f64>().sqrt();
    Joint { temperature: 1.0 / a.max(1e-4), blend: b, earns: a > 0.0 && sum > 1.0 && sum > SURE * spread }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_is_held_out_and_no_class_is_lost() {
        let classes: Vec<usize> = (0..40).map(|i| if i < 37 { i % 2 } else { 2 + usize::from(i == 39) }).collect();
        let held = held_out(&classes, 1);
        let of = |c: usize| held.iter().filter(|i| classes[**i] == c).count();
        assert_eq!([of(0), of(1), of(2), of(3)], [3, 3, 1, 0], "a class of one row is trained on");
        assert_ne!(held, held_out(&classes, 2));
    }

    #[test]
    fn a_head_that_says_nothing_new_does_not_earn_its_place() {
        let classes: Vec<usize> = (0..60).map(|i| i % 2).collect();
        let scores = |right: &dyn Fn(usize) -> bool, sure: f32| -> Vec<Vec<f32>> {
            let one = |i: usize| {
                [
                    sure * f32::from(u8::from(right(i) == (classes[i] == 0))),
                    sure * f32::from(u8::from(right(i) == (classes[i] == 1))),
                ]
                .to_vec()
            };
            (0..60).map(one).collect()
        };
        let good = scores(&|i| i % 10 != 0, 3.0);
        let noise = scores(&|i| i % 4 < 2, 3.0);
        let other = scores(&|i| i % 10 != 5, 3.0);
        let useless = join(&noise, Some(&good), &classes);
        assert!(!useless.earns && useless.blend > 0.0, "{useless:?}");
        let useful = join(&other, Some(&good), &classes);
        assert!(useful.earns && useful.temperature < 10.0 && useful.blend > 0.1, "{useful:?}");
        assert!(join(&good, None, &classes).earns);
    }
}
