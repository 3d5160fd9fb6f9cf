//! Chooses the next token from logits, in llama.cpp's order: penalties, top-k, top-p, min-p, temperature.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Sampling parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerConfig {
    /// Temperature; 0 or less always takes the likeliest token.
    pub temperature: f32,
    /// Keep only this many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep only the fewest tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep only tokens at least this likely, relative to the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of recent tokens; 1 is off (Keskar et al. 2019).
    pub repeat_penalty: f32,
    /// How many recent tokens are penalised.
    pub repeat_last_n: usize,
    /// Seed of the random draws.
    pub seed: u64,
    /// Which random stream of the seed: prompts that share a seed have one each.
    pub stream: u64,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: 0,
            stream: 0,
        }
    }
}

/// A sampler and its random stream.
#[derive(Debug)]
pub struct Sampler {
    config: SamplerConfig,
    rng: ChaCha8Rng,
    candidates: Vec<(u32, f32)>,
}

impl Sampler {
    /// A sampler at the start of its random stream.
    pub fn new(config: SamplerConfig) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        rng.set_stream(config.stream);
        Self { rng, config, candidates: Vec::new() }
    }

    /// The next token; `history` are the tokens so far, newest last.
    ///
    /// # Panics
    /// If there are no logits.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32]) -> u32 {
        let c = &self.config;
        if c.repeat_penalty != 1.0 {
            let recent = &history[history.len().saturating_sub(c.repeat_last_n)..];
            for (i, t) in recent.iter().enumerate() {
                // Each token is penalised once, however often it occurred.
                if let Some(l) = logits.get_mut(*t as usize).filter(|_| !recent[..i].contains(t)) {
                    *l = if *l > 0.0 { *l / c.repeat_penalty } else { *l * c.repeat_penalty };
                }
            }
        }
        if c.temperature <= 0.0 {
            return argmax(logits);
        }
        let all = &mut self.candidates;
        all.clear();
        all.extend(logits.iter().enumerate().map(|(i, l)| (i as u32, *l)));
        let falling = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if c.top_k > 0 && c.top_k < all.len() {
            all.select_nth_unstable_by(c.top_k - 1, falling);
            all.truncate(c.top_k);
        }
        all.sort_unstable_by(falling);
        let max = all[0].1;
        let total: f32 = all.iter().map(|(_, l)| (l - max).exp()).sum();
        // At 1 nothing is cut: rounding must not end the sum early.
        if c.top_p < 1.0 {
            let mut sum = 0.0;
            let keep = all.iter().position(|(_, l)| {
                sum += (l - max).exp() / total;
                sum >= c.top_p
            });
            all.truncate(keep.map_or(all.len(), |k| k + 1));
        }
        let floor = max + c.min_p.max(1e-30).ln();
        let keep = all.iter().take_while(|(_, l)| *l >= floor).count();
        all.truncate(keep.max(1));
        let weight = |l: f32| ((l - max) / c.temperature).exp();
        let total: f32 = all.iter().map(|(_, l)| weight(*l)).sum();
        let mut left = self.rng.next_u32() as f32 / (u32::MAX as f32 + 1.0) * total;
        for (t, l) in all.iter() {
            left -= weight(*l);
            if left < 0.0 {
                return *t;
            }
        }
        all[all.len() - 1].0
    }
}

/// The index of the largest logit; of equals, the first.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, l) in logits.iter().enumerate() {
        if *l > logits[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(config: SamplerConfig, logits: &[f32]) -> Vec<usize> {
        let mut s = Sampler::new(config);
        let mut n = vec![0; logits.len()];
        (0..20_000).for_each(|_| n[s.sample(&mut logits.to_vec(), &[]) as usize] += 1);
        n
    }

    #[test]
    fn draws_follow_the_softmax() {
        let open = SamplerConfig { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplerConfig::default() };
        let n = counts(open.clone(), &[0.0, 1.0, 2.0]);
        // p = 0.090, 0.245, 0.665; 20,000 draws: three standard deviations are below 0.012.
        for (got, want) in n.iter().zip([0.0900, 0.2447, 0.6652]) {
            assert!((*got as f64 / 20_000.0 - want).abs() < 0.012, "{n:?}");
        }
        assert_eq!(counts(SamplerConfig { top_k: 1, ..open.clone() }, &[0.0, 1.0, 2.0])[..2], [0, 0]);
        assert_eq!(counts(SamplerConfig { top_p: 0.6, ..open.clone() }, &[0.0, 1.0, 2.0])[..2], [0, 0]);
        assert_eq!(counts(SamplerConfig { min_p: 0.2, ..open.clone() }, &[0.0, 1.0, 2.0])[0], 0);
        assert_eq!(counts(open.clone(), &[0.0, 1.0, 2.0]), n, "the same seed gives the same draws");
        let other = SamplerConfig { stream: 1, ..open.clone() };
        assert_ne!(counts(other, &[0.0, 1.0, 2.0]), n, "another stream gives different draws");
    }

    #[test]
    fn greedy_and_penalty() {
        let mut s = Sampler::new(SamplerConfig { repeat_penalty: 2.0, ..SamplerConfig::default() });
        assert_eq!(s.sample(&mut [1.0, 3.0, 2.9], &[]), 1);
        assert_eq!(s.sample(&mut [1.0, 3.0, 2.9], &[1, 1]), 2);
        assert_eq!(s.sample(&mut [-1.0, -1.5, -9.0], &[0]), 1);
    }
}
