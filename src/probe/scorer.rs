//! Runs a language model over given tokens and reads the logits of every one.

use std::collections::HashMap;

use crate::Result;
use crate::gpu::{Elem, Gpu, interrupted};
use crate::graph::{Graph, Kernels, Plan, PlanOptions};
use crate::nets::language::Language;
use crate::nn::{KvCache, KvFormat};
use crate::ops::matmul::VEC_ROWS;
use crate::tensor::Tensor;

/// Tokens computed at once.
pub(super) const CHUNK: usize = 64;
/// Bytes of logits that one chunk may take: half of what a binding always holds.
const LOGIT_BYTES: usize = 64 << 20;

/// Runs a net over token sequences and reads logits.
pub struct Scorer<'a> {
    gpu: &'a Gpu,
    net: &'a Language,
    cache: KvCache,
    act: Elem,
    kernels: Kernels,
    chunk: usize,
    plans: HashMap<usize, Plan>,
}

impl<'a> Scorer<'a> {
    /// A cache for `context` tokens, and no plan yet.
    pub fn new(
        gpu: &'a Gpu,
        net: &'a Language,
        (context, act, kernels): (usize, Elem, Kernels),
    ) -> Result<Scorer<'a>> {
        Scorer::with_kv(gpu, net, (context, act, kernels), act.into())
    }

    /// As [`Scorer::new`], with the cache in a format of its own.
    pub fn with_kv(
        gpu: &'a Gpu,
        net: &'a Language,
        (context, act, kernels): (usize, Elem, Kernels),
        kv: KvFormat,
    ) -> Result<Scorer<'a>> {
        let cache = net.config().kv_cache(gpu, context, kv)?;
        Ok(Scorer::with_cache(gpu, net, (act, kernels), cache))
    }

    /// Over a cache that another scorer of a net of the same sizes writes to as well: what either puts there, both see.
    pub fn with_cache(
        gpu: &'a Gpu,
        net: &'a Language,
        (act, kernels): (Elem, Kernels),
        cache: KvCache,
    ) -> Scorer<'a> {
        // On a device that rounds few rows of x, as few as it rounds: what is measured is then what decoding does.
        let most = if gpu.caps().int_products { VEC_ROWS } else { CHUNK };
        let chunk = (LOGIT_BYTES / 4 / net.config().vocab_size().max(1)).clamp(1, most);
        Scorer { gpu, net, cache, act, kernels, chunk, plans: HashMap::new() }
    }

    /// Keys and values of what it has read; a handle to the same memory.
    pub fn cache(&self) -> KvCache {
        self.cache.clone()
    }

    /// Tokens whose logits are computed at once.
    pub fn chunk(&self) -> usize {
        self.chunk
    }
    /// Logits per token.
    pub fn vocab(&self) -> usize {
        self.net.config().vocab_size()
    }

    fn plan(&self, size: usize, taps: bool) -> Result<Plan> {
        let graph = Graph::new(self.act);
        let ids = graph.input("ids", [1, size], Elem::U32);
        let start = graph.input("start", [1], Elem::U32);
        graph.output("logits", self.net.logits_all(ids, start, &self.cache));
        let options = PlanOptions { kernels: self.kernels, taps, ..Default::default() };
        Plan::new(self.gpu, &graph, &options)
    }

    /// Puts `ids` at `start` into the cache; the logits `[ids - from, vocab]` from position `from` of
    /// `ids` on.
    pub fn logits(&mut self, ids: &[u32], start: usize, from: usize) -> Result<Vec<f32>> {
        let vocab = self.net.config().vocab_size();
        let size = if ids.len() == 1 { 1 } else { self.chunk };
        if !self.plans.contains_key(&size) {
            self.plans.insert(size, self.plan(size, false)?);
        }
        let plan = &self.plans[&size];
        let mut rows = Vec::new();
        for (i, part) in ids.chunks(size).enumerate() {
            interrupted()?;
            let mut padded = part.to_vec();
            padded.resize(size, 0);
            plan.set_u32("ids", &padded)?;
            plan.set_u32("start", &[(start + i * size) as u32])?;
            plan.run()?;
            let (first, end) = (i * size, i * size + part.len());
            if end > from {
                let logits = plan.read("logits")?;
                rows.extend_from_slice(
                    &logits[from.saturating_sub(first) * vocab..part.len() * vocab],
                );
            }
        }
        Ok(rows)
    }

    /// Every tapped value for the beginning of a sequence.
    pub fn taps(&self, ids: &[u32]) -> Result<Vec<(String, Tensor)>> {
        let ids = &ids[..ids.len().min(self.chunk)];
        let plan = self.plan(ids.len(), true)?;
        plan.set_u32("ids", ids)?;
        plan.set_u32("start", &[0])?;
        plan.run()?;
        plan.taps()
    }

    /// Greedy tokens after `prompt`, the one that ends the turn with them.
    pub fn greedy(&mut self, prompt: &[u32], most: usize, stops: &[u32]) -> Result<Vec<u32>> {
        let mut tokens = Vec::new();
        let mut logits = self.logits(prompt, 0, prompt.len() - 1)?;
        loop {
            let token = argmax(&logits) as u32;
            tokens.push(token);
            let at = prompt.len() + tokens.len() - 1;
            if tokens.len() >= most || stops.contains(&token) || at + 1 >= self.cache.context() {
                return Ok(tokens);
            }
            logits = self.logits(&[token], at, 0)?;
        }
    }
}

/// The lowest index of the largest value.
pub fn argmax(values: &[f32]) -> usize {
    let better = |best: usize, i: usize| if values[i] > values[best] { i } else { best };
    (1..values.len()).fold(0, better)
}
