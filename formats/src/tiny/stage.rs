//! Tiny stages of bundles, for tests: a task that is answered by a head on the bare base.

use crate::Result;
use crate::bundle::manifest::{BaseRef, HeadEntry, TaskEntry, TaskKind};
use crate::bundle::{Draft, SectionKind};
use crate::decimal::Decimal;
use crate::feature::FeatureSpec;
use crate::head::{self, HeadKind};
use crate::tensors::TensorsWriter;

/// A base that is nowhere, for bundles that are only read as bundles.
pub fn no_base() -> BaseRef {
    let digest = "ab".repeat(32);
    BaseRef {
        arch: "llama".into(),
        file_blake3: vec![digest.clone()],
        file_len: 1,
        name: "test".into(),
        quant: "Q8_0".into(),
        sample: digest.clone(),
        structure: digest.clone(),
        tokenizer: digest,
    }
}

/// A stage with one more task, `name`, whose `labels` are told apart by a linear head on `feature`: its
/// weights `[labels, width]` and biases `[labels]`.
///
/// # Errors
/// If there are not as many numbers as that.
pub fn with_task(
    mut d: Draft,
    name: &str,
    labels: &[&str],
    feature: FeatureSpec,
    weights: &[f32],
    biases: &[f32],
) -> Result<Draft> {
    let (id, stage, n) = (d.manifest.tasks.len() as u32, d.stage(), labels.len());
    let mut w = TensorsWriter::new();
    w.add_f32(head::WEIGHT, &[n, weights.len() / n.max(1)], weights)?;
    w.add_f32(head::BIAS, &[n], biases)?;
    let section = d.add_section(SectionKind::Head, w.finish()?);
    d.manifest.heads.push(HeadEntry {
        blend: Decimal::from_f64(0.0),
        classes: n as u32,
        feature,
        id: format!("h{id:04}"),
        kind: HeadKind::Linear,
        section,
        tasks: vec![id],
        temperature: Decimal::from_f64(1.0),
    });
    d.manifest.tasks.push(TaskEntry {
        ensemble: Vec::new(),
        head: Some(id),
        id,
        kind: TaskKind::Classification,
        labels: labels.iter().map(|l| (*l).into()).collect(),
        max_answer: 0,
        module: None,
        name: name.into(),
        stage,
        template: crate::template::INPUT.into(),
    });
    Ok(d)
}
