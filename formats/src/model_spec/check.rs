//! Bounds of a spec: a hyper-parameter from a file is hostile until it is checked.

use super::{ModelSpec, Rope};
use crate::{Code, Error, Result};

impl ModelSpec {
    pub(super) fn check(self) -> Result<Self> {
        let bad = |what: String| Err(Error::new(Code::Value, what).in_section("metadata"));
        if self.n_layer == 0 || self.n_layer > 512 {
            return bad(format!("block_count {} is not in 1..=512", self.n_layer));
        }
        if self.n_head == 0 || self.n_head > 1024 || self.hidden == 0 || self.hidden > 65_536 {
            return bad(format!("head_count {} or embedding_length {} is out of range", self.n_head, self.hidden));
        }
        if self.n_kv_head == 0 || !self.n_head.is_multiple_of(self.n_kv_head) {
            return bad(format!("head_count {} is not a multiple of head_count_kv {}", self.n_head, self.n_kv_head));
        }
        let unfit = |r: &&Rope| r.dim == 0 || !r.dim.is_multiple_of(2) || r.dim > self.head_dim;
        if self.head_dim == 0 || self.head_dim > 1024 {
            return bad(format!("head size {} is out of range", self.head_dim));
        }
        let longer = self.longer.iter().flat_map(|(_, ropes)| ropes);
        for r in self.ropes.iter().chain(longer) {
            if unfit(&r) {
                return bad(format!("head size {} or rope size {} is out of range", self.head_dim, r.dim));
            }
            if !(r.base > 0.0 && r.base.is_finite()) {
                return bad(format!("rope.freq_base {} is not a positive number", r.base));
            }
            let sound = r.frequencies.iter().all(|f| f.is_finite() && *f >= 0.0);
            if !sound || !(0.0..1e3).contains(&r.magnitude) || r.magnitude == 0.0 {
                return bad("a RoPE scaling is not a positive number".into());
            }
        }
        if self.ffn == 0 || self.ffn > 1 << 20 || self.vocab == 0 || self.vocab > 1 << 22 {
            return bad(format!("feed_forward_length {} or vocabulary {} is out of range", self.ffn, self.vocab));
        }
        if self.context == 0 || self.context > 1 << 24 {
            return bad(format!("context_length {} is out of range", self.context));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return bad(format!("the norms' epsilon {} is not in (0, 1)", self.norm_eps));
        }
        let scales = [
            ("embedding scale", self.embedding.scale),
            ("residual scale", self.residual_scale),
            ("attention scale", self.attention_scale),
            ("logit scale", self.output.scale),
            ("attention softcap", self.attention_cap.unwrap_or(1.0)),
            ("logit softcap", self.output.cap.unwrap_or(1.0)),
        ];
        if let Some((name, v)) = scales.into_iter().find(|(_, v)| !(*v > 0.0 && v.is_finite())) {
            return bad(format!("the {name} {v} is not a positive number"));
        }
        if self.attention.iter().any(|a| a.window == Some(0)) {
            return bad("a sliding window of 0 tokens".into());
        }
        Ok(self)
    }
}
