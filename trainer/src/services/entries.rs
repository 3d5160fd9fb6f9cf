//! Entries of a stage: payloads and manifest entries of modules, heads and tasks.

use super::{ModulePlan, Services};
use crate::data::label_tokens;
use crate::fit::{HEAD, HEAD_BIAS, HEAD_WEIGHT, Trained};
use crate::pet::Indices;
use conpet_formats::Result;
use conpet_formats::bundle::manifest::{HeadEntry, ModuleEntry, TaskEntry};
use conpet_formats::bundle::{Draft, SectionKind};
use conpet_formats::choice;
use conpet_formats::decimal::Decimal;
use conpet_formats::feature::{FeatureSpec, Pool, StateNorm};
use conpet_formats::head as head_format;
use conpet_formats::tensors::{Dtype, Tensors, TensorsWriter};
use std::collections::BTreeMap;
use std::sync::Arc;

impl Services<'_> {
    fn module_entry(
        &self,
        draft: &mut Draft,
        trained: &Trained,
        plan: &ModulePlan,
        data: &str,
        index: usize,
    ) -> Result<ModuleEntry> {
        let (payload, numbers) = trained.payload()?;
        let sites: &[String] = &trained.held(&plan.sites);
        let training = &self.settings.training;
        let section = draft.add_section(SectionKind::Module, payload);
        let targets = draft.manifest.intern_targets(sites);
        let train = [
            ("data", data.to_owned()),
            ("epochs", training.epochs.to_string()),
            ("loss", format!("{:.4}", trained.loss)),
            ("numbers", numbers.to_string()),
            ("seed", training.seed.to_string()),
            ("tokens", trained.tokens.to_string()),
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        let entry = ModuleEntry::new(index, &plan.pet, section, targets, sites.len());
        Ok(ModuleEntry { train: train.map(|(k, v)| (k.to_owned(), v)).into(), ..entry })
    }

    /// Adds a module's payload and entry; returns its index. `data` is the digest of the rows that it was
    /// trained on.
    pub fn add_module(&self, draft: &mut Draft, trained: &Trained, plan: &ModulePlan, data: &str) -> Result<u32> {
        let index = draft.manifest.modules.len();
        let entry = self.module_entry(draft, trained, plan, data, index)?;
        draft.manifest.modules.push(entry);
        Ok(index as u32)
    }

    /// Gives an existing module a new payload; its old bytes stay in the file.
    pub fn replace_module(
        &self,
        draft: &mut Draft,
        index: u32,
        trained: &Trained,
        plan: &ModulePlan,
        data: &str,
    ) -> Result<u32> {
        let entry = self.module_entry(draft, trained, plan, data, index as usize)?;
        draft.manifest.modules[index as usize] = entry;
        Ok(index)
    }

    /// Adds the head over the labels of `tasks`, or replaces the head `replace`; returns its index.
    ///
    /// A linear head is taken from `trained`; a choice head stores the labels' tokens.
    pub fn add_head(&self, draft: &mut Draft, trained: &Trained, tasks: Vec<u32>, replace: Option<u32>) -> Result<u32> {
        let kind = self.resolved.head;
        let spec = &self.engine.base.spec;
        let labels = || tasks.iter().map(|t| &self.tasks[*t as usize]);
        let (payload, feature) = if kind.is_linear() {
            let (weight, bias) = (&trained.tensors[HEAD_WEIGHT].1, &trained.tensors[HEAD_BIAS].1);
            let mut w = TensorsWriter::new();
            w.add_f32(head_format::WEIGHT, &[bias.len(), self.head_feature().dim(spec.hidden)], weight)?;
            w.add_f32(head_format::BIAS, &[bias.len()], bias)?;
            (w.finish()?, self.head_feature().clone())
        } else {
            let texts = labels().flat_map(|t| t.labels.iter().map(|l| label_tokens(self.engine, t, l)));
            let payload = choice::write(&texts.collect::<Result<Vec<_>>>()?)?;
            (payload, FeatureSpec::single(spec.n_layer as u32, Pool::Last, StateNorm::Output))
        };
        let classes = labels().map(|t| t.labels.len() as u32).sum();
        let section = draft.add_section(SectionKind::Head, payload);
        let index = replace.unwrap_or(draft.manifest.heads.len() as u32);
        let entry = HeadEntry {
            blend: Decimal::from_f64(0.0),
            classes,
            feature,
            id: format!("h{index:04}"),
            kind,
            section,
            tasks,
            temperature: Decimal::from_f64(1.0),
        };
        match replace {
            Some(i) => draft.manifest.heads[i as usize] = entry,
            None => draft.manifest.heads.push(entry),
        }
        Ok(index)
    }

    /// Enters a task of the stream into the manifest.
    pub fn add_task(&self, draft: &mut Draft, t: usize, module: Option<u32>, head: Option<u32>) {
        let task = &self.tasks[t];
        let stage = draft.stage();
        draft.manifest.tasks.push(TaskEntry {
            ensemble: Vec::new(),
            head,
            id: t as u32,
            kind: task.kind,
            labels: task.labels.clone(),
            max_answer: task.max_answer,
            module,
            name: task.name.clone(),
            stage,
            template: task.template.clone(),
        });
    }

    /// A module of the bundle with the weight and bias of its head (or selector section), to continue training
    /// from. The values are always those stored, so that a resumed run starts from the same parameters.
    pub fn stored(&self, module: u32, head: Option<u32>) -> Option<Trained> {
        let b = self.bundle.as_ref()?;
        let (mut tensors, mut indices) = (BTreeMap::new(), Indices::new());
        let module = b.manifest().modules.get(module as usize)?.section;
        for (section, prefix) in [(module, "")].into_iter().chain(head.map(|h| (h, HEAD))) {
            let t = Tensors::parse(b.section(section).ok()?).ok()?;
            for n in t.names() {
                let x = t.get(n)?;
                if x.dtype == Dtype::I32 {
                    indices.insert(n.to_owned(), Arc::new(x.to_i32()));
                    continue;
                }
                tensors.insert(format!("{prefix}{n}"), (x.shape.clone(), x.to_f32()));
            }
        }
        Some(Trained { tensors, indices, ..Trained::default() })
    }
}
