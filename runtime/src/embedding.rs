//! Embeddings: a text's last states pooled into one vector of unit length.

use crate::engine::Engine;
use crate::error::Result;
use crate::prompt::{Prompt, batches};
use conpet_formats::feature::{FeatureSpec, Pool, StateNorm};
use conpet_formats::model_spec::Pooling;
use std::sync::Arc;

impl Engine {
    /// How the base was made to pool: as its file says, else the mean.
    pub fn pooling(&self) -> Pool {
        match self.base.spec.pooling {
            None | Some(Pooling::Mean) => Pool::Mean,
            Some(Pooling::First) => Pool::First,
            Some(Pooling::Last) => Pool::Last,
        }
    }

    /// Embeds texts, each into a vector `[hidden]` of unit length.
    ///
    /// ```no_run
    /// use conpet_runtime::engine::Engine;
    /// use std::path::Path;
    ///
    /// let engine = Engine::open(Path::new("minilm.gguf"), 2)?;
    /// let v = engine.embeddings(&["a cat", "a kitten"], &engine.pooling())?;
    /// let cosine: f32 = v[0].iter().zip(&v[1]).map(|(a, b)| a * b).sum();
    /// println!("{cosine:.3}");
    /// # Ok::<(), conpet_runtime::Error>(())
    /// ```
    ///
    /// # Errors
    /// If a text is longer than the context, or has no token at all, or the base's file changed. (An encoder puts tokens
    /// around an empty text, and embeds those.)
    pub fn embeddings(&self, texts: &[&str], pool: &Pool) -> Result<Vec<Vec<f32>>> {
        let spec = &self.base.spec;
        let feature = FeatureSpec::single(spec.n_layer as u32, pool.clone(), StateNorm::Output);
        let prompts =
            texts.iter().map(|t| Ok(Arc::new(self.prompt(t, None)?))).collect::<Result<Vec<Arc<Prompt>>>>()?;
        let mut out = Vec::with_capacity(texts.len());
        for batch in batches(&prompts, self.batch()) {
            let trunked = self.trunk(batch.to_vec(), spec.n_layer, Some(&feature), false);
            out.extend(trunked.features.chunks_exact(spec.hidden).map(unit));
        }
        self.check(None)?;
        Ok(out)
    }
}

/// A vector of the same direction and unit length; zeros stay zeros.
fn unit(v: &[f32]) -> Vec<f32> {
    let length = v.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    let by = if length > 0.0 { 1.0 / length } else { 0.0 };
    v.iter().map(|x| (f64::from(*x) * by) as f32).collect()
}
