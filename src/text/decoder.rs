//! The autoregressive loop over a language model: prompt in chunks, one submission per token, the token chosen on
//! the GPU feeds the next step while its read-back runs behind.

use std::collections::HashMap;
use std::time::Instant;

use super::sampler::{Chosen, Logits, Sampler};
use crate::gpu::{Buffer, Elem, Gpu, PendingRead};
use crate::graph::{Arena, Graph, Plan, PlanOptions, Var};
use crate::nets::language::Language;
use crate::nn::KvCache;
use crate::ops::assign::assign;
use crate::ops::topk::{argmax, top_k};
use crate::{Error, Result};

/// Tokens of a prompt that are computed at once. The last chunk is padded to the next size.
const CHUNKS: [usize; 3] = [16, 64, 256];
/// Candidates read back when the sampler needs no more.
const CANDIDATES: usize = 64;
/// What argmax writes when a logit is not finite.
const NO_TOKEN: u32 = u32::MAX;

/// A language model with its cache and the plans to run it.
pub struct Decoder {
    gpu: Gpu,
    net: Language,
    cache: KvCache,
    options: PlanOptions,
    arena: Arena,
    act: Elem,
    /// The newest token, u32 [1]; written by argmax, read by the next step.
    token: Buffer,
    step: Plan,
    prefill: HashMap<usize, Plan>,
    /// Tokens whose keys and values are in the cache.
    cached: Vec<u32>,
    context: usize,
}

/// What a generation cost.
#[derive(Clone, Debug, Default)]
pub struct Generated {
    pub tokens: Vec<u32>,
    /// Log-probabilities of each token and of the likeliest, where they were asked for.
    pub logprobs: Vec<Chosen>,
    /// Prompt tokens that had to be computed.
    pub prompt_tokens: usize,
    pub prefill_seconds: f64,
    pub decode_seconds: f64,
    /// Ctrl-C ended it.
    pub interrupted: bool,
}

/// Says whether to go on after a token.
pub type OnToken<'a> = dyn FnMut(u32) -> Result<bool> + 'a;

impl Decoder {
    /// Plans for a context of `context` tokens.
    pub fn new(
        gpu: &Gpu,
        net: Language,
        context: usize,
        act: Elem,
        mut options: PlanOptions,
    ) -> Result<Decoder> {
        let most = net.config().max_position_embeddings();
        if context == 0 || context > most {
            return Err(Error::Usage(format!(
                "a context of {context} tokens: this model was trained for 1 to {most}; give -c {most} or less"
            )));
        }
        let cache = net.config().kv_cache(gpu, context, act)?;
        let token = gpu.buffer("token", 4)?;
        // The plans run one after the other, and what a chunk leaves is copied or read before the next.
        let arena = options.arena.get_or_insert_default().clone();
        let step = plan(gpu, &net, &cache, act, &options, Some(&token), 1)?;
        let prefill = HashMap::new();
        Ok(Decoder {
            gpu: gpu.clone(),
            net,
            cache,
            options,
            arena,
            act,
            token,
            step,
            prefill,
            cached: vec![],
            context,
        })
    }

    /// Logits per token.
    pub fn vocab_size(&self) -> usize {
        self.net.config().vocab_size()
    }
    /// Tokens that fit into the cache.
    pub fn context(&self) -> usize {
        self.context
    }
    /// The network.
    pub fn net(&self) -> &Language {
        &self.net
    }
    /// Bytes of the cache.
    pub fn cache_bytes(&self) -> u64 {
        self.cache.bytes()
    }
    /// Bytes of activations, of all plans together.
    pub fn activation_bytes(&self) -> u64 {
        self.arena.bytes()
    }
    /// Bytes of weights that one token reads.
    pub fn weight_bytes_per_token(&self) -> u64 {
        self.step.weight_bytes()
    }
    /// Forgets everything.
    pub fn reset(&mut self) {
        self.cached.clear();
    }

    /// Continues `prompt`. What is already in the cache of its beginning is not computed again.
    ///
    /// # Errors
    /// `Usage` when the prompt does not fit; the model's non-finite logits are a `Runtime` error.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        most: usize,
        sampler: &mut Sampler,
        on_token: &mut OnToken<'_>,
    ) -> Result<Generated> {
        let mut done = Generated::default();
        let result = self.run(prompt, most, sampler, on_token, &mut done);
        match result {
            Err(Error::Interrupted) => {
                done.interrupted = true;
                Ok(done)
            }
            Err(error) => {
                self.cached.clear();
                Err(error)
            }
            Ok(()) => Ok(done),
        }
    }

    fn run(
        &mut self,
        prompt: &[u32],
        most: usize,
        sampler: &mut Sampler,
        on_token: &mut OnToken<'_>,
        done: &mut Generated,
    ) -> Result<()> {
        let start = Instant::now();
        if prompt.is_empty() || prompt.len() >= self.context {
            return Err(Error::Usage(format!(
                "the prompt has {} tokens, the context holds {}; shorten it or raise -c",
                prompt.len(),
                self.context
            )));
        }
        let shared = self.cached.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let keep = shared.min(prompt.len() - 1);
        self.cached.truncate(keep);
        done.prompt_tokens = prompt.len() - keep;
        let logits = self.prefill(&prompt[keep..])?;
        prompt.iter().for_each(|id| sampler.accept(*id));
        let most = most.min(self.context - prompt.len());
        if sampler.options().is_plain_greedy() {
            self.greedy(most, on_token, done, start)
        } else {
            self.sampled(most, sampler, on_token, done, start, logits)
        }
    }

    /// Computes the prompt's tokens; leaves the greedy choice in `token`. Returns the size of the last
    /// chunk, whose plan holds the logits.
    fn prefill(&mut self, mut ids: &[u32]) -> Result<usize> {
        loop {
            let size =
                CHUNKS.into_iter().find(|c| *c >= ids.len()).unwrap_or(CHUNKS[CHUNKS.len() - 1]);
            let count = ids.len().min(size);
            if !self.prefill.contains_key(&size) {
                let plan =
                    plan(&self.gpu, &self.net, &self.cache, self.act, &self.options, None, size)?;
                self.prefill.insert(size, plan);
            }
            let plan = &self.prefill[&size];
            let mut padded = ids[..count].to_vec();
            padded.resize(size, 0);
            plan.set_u32("ids", &padded)?;
            plan.set_u32("start", &[self.cached.len() as u32])?;
            plan.set_u32("last", &[count as u32 - 1])?;
            plan.run()?;
            self.cached.extend(&ids[..count]);
            ids = &ids[count..];
            if ids.is_empty() {
                let from = plan.buffer("next")?;
                self.gpu.submit(&[crate::gpu::Command::Copy {
                    from,
                    from_offset: 0,
                    to: &self.token,
                    to_offset: 0,
                    bytes: 4,
                }])?;
                return Ok(size);
            }
        }
    }

    /// Feeds `token` (whatever it is by then) and chooses the next one.
    fn submit_step(&self, position: usize) -> Result<()> {
        self.step.set_u32("start", &[position as u32])?;
        self.step.run()
    }
    /// The same, and asks for the choice in the same submission.
    fn submit_step_and_read(&self, position: usize) -> Result<PendingRead> {
        self.step.set_u32("start", &[position as u32])?;
        self.step.run_and_read(&self.token, 0, 4)
    }

    fn greedy(
        &mut self,
        most: usize,
        on_token: &mut OnToken<'_>,
        done: &mut Generated,
        start: Instant,
    ) -> Result<()> {
        let mut pending: PendingRead = self.gpu.read_later(&self.token, 0, 4)?;
        let mut decoding: Option<Instant> = None;
        for count in 0..most {
            // The next step runs while this token travels back.
            let ahead = count + 1 < most;
            let next =
                if ahead { Some(self.submit_step_and_read(self.cached.len())?) } else { None };
            let token = word(&pending.finish()?);
            check(token)?;
            match decoding {
                None => {
                    done.prefill_seconds = start.elapsed().as_secs_f64();
                    decoding = Some(Instant::now());
                }
                Some(since) => done.decode_seconds = since.elapsed().as_secs_f64(),
            }
            if ahead {
                self.cached.push(token);
            }
            done.tokens.push(token);
            if !on_token(token)? {
                break;
            }
            match next {
                Some(next) => pending = next,
                None => break,
            }
        }
        Ok(())
    }

    fn sampled(
        &mut self,
        most: usize,
        sampler: &mut Sampler,
        on_token: &mut OnToken<'_>,
        done: &mut Generated,
        start: Instant,
        chunk: usize,
    ) -> Result<()> {
        let mut decoding: Option<Instant> = None;
        for count in 0..most {
            let plan = if count == 0 { &self.prefill[&chunk] } else { &self.step };
            let chosen = choose(plan, sampler)?;
            let token = chosen.token;
            if sampler.options().top_logprobs > 0 {
                done.logprobs.push(chosen);
            }
            match decoding {
                None => {
                    done.prefill_seconds = start.elapsed().as_secs_f64();
                    decoding = Some(Instant::now());
                }
                Some(since) => done.decode_seconds = since.elapsed().as_secs_f64(),
            }
            done.tokens.push(token);
            if !on_token(token)? || count + 1 == most {
                break;
            }
            self.gpu.write(&self.token, 0, &token.to_le_bytes())?;
            self.submit_step(self.cached.len())?;
            self.cached.push(token);
        }
        Ok(())
    }
}

fn word(bytes: &[u8]) -> u32 {
    bytemuck::pod_read_unaligned(&bytes[..4])
}

fn check(token: u32) -> Result<()> {
    if token != NO_TOKEN {
        return Ok(());
    }
    Err(Error::Runtime(
        "the model's logits are not finite; try --activations f32 or --weights fp16, and `inknib doctor` \
         to test the device"
            .into(),
    ))
}

/// The next token by the sampler, from the best candidates if it needs no more, else from all logits.
fn choose(plan: &Plan, sampler: &mut Sampler) -> Result<Chosen> {
    let options = sampler.options();
    let few = (1..=CANDIDATES).contains(&options.top_k) || options.temperature == 0.0;
    if few && options.needs_only_the_best() {
        let raw = plan.read_u32("top")?;
        let (values, ids) = raw.split_at(raw.len() / 2);
        if let Some(id) = ids.first() {
            check(*id)?;
        }
        let candidates: Vec<(u32, f32)> =
            ids.iter().zip(values).map(|(id, v)| (*id, f32::from_bits(*v))).collect();
        return Ok(sampler.sample(Logits::Top { candidates: &candidates, log_sum_exp: None })?);
    }
    sampler.sample(Logits::Full(&plan.read("logits")?))
}

/// The plan for `size` tokens. With a token buffer the ids come from it and the choice goes back to it.
fn plan(
    gpu: &Gpu,
    net: &Language,
    cache: &KvCache,
    act: Elem,
    options: &PlanOptions,
    token: Option<&Buffer>,
    size: usize,
) -> Result<Plan> {
    let graph = Graph::new(act);
    let chained: Option<Var<'_>> = token.map(|buffer| graph.external(buffer, [1, 1], Elem::U32));
    let ids = chained.unwrap_or_else(|| graph.input("ids", [1, size], Elem::U32));
    let start = graph.input("start", [1], Elem::U32);
    let last = graph.input("last", [1], Elem::U32);
    let logits = net.forward(ids, start, last, cache);
    graph.output("logits", logits);
    graph.output("top", top_k(logits, CANDIDATES.min(net.config().vocab_size())));
    let next = argmax(logits);
    match chained {
        Some(token) => graph.output("next", assign(token.reshape([1]), next)),
        None => graph.output("next", next),
    }
    let plan = Plan::new(gpu, &graph, options)?;
    if token.is_some() {
        plan.set_u32("last", &[0])?;
    }
    Ok(plan)
}
