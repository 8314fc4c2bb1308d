//! The autoregressive loop over a language model: prompt in chunks, one submission per token, the token chosen on
//! the GPU feeds the next step while its read-back runs behind.

use std::collections::HashMap;
use std::time::Instant;

use super::sampler::{Chosen, Logits, Sampler};
use crate::gpu::{Buffer, Elem, Gpu, PendingRead, Sent};
use crate::graph::{Arena, Graph, Plan, PlanOptions};
use crate::nets::language::Language;
use crate::nn::{KvCache, KvFormat};
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
    /// One for each number of tokens and way to choose, made when first needed.
    plans: HashMap<(usize, Choice), Plan>,
    /// Tokens whose keys and values are in the cache.
    cached: Vec<u32>,
    context: usize,
}

/// The smallest chunk that holds so many tokens, or the largest.
fn chunk_for(tokens: usize) -> usize {
    CHUNKS.into_iter().find(|size| *size >= tokens).unwrap_or(CHUNKS[CHUNKS.len() - 1])
}

/// What the sampler needs of a position; the rest is not computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Choice {
    /// The largest logit, chosen on the GPU.
    Argmax,
    /// The largest logits.
    Top,
    /// All logits.
    Logits,
}

impl Choice {
    fn of(sampler: &Sampler) -> Choice {
        let options = sampler.options();
        let few = (1..=CANDIDATES).contains(&options.top_k);
        match options.needs_only_the_best() {
            true if options.is_plain_greedy() => Choice::Argmax,
            true if few => Choice::Top,
            _ => Choice::Logits,
        }
    }
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
    /// What went to the GPU for the tokens after the first.
    pub decode_sent: Sent,
    /// Ctrl-C ended it.
    pub interrupted: bool,
}

/// Says whether to go on after a token.
pub type OnToken<'a> = dyn FnMut(u32) -> Result<bool> + 'a;

impl Decoder {
    /// Plans for a context of `context` tokens, keys and values stored as activations are.
    pub fn new(
        gpu: &Gpu,
        net: Language,
        context: usize,
        act: Elem,
        options: PlanOptions,
    ) -> Result<Decoder> {
        Decoder::with_kv(gpu, net, (context, act.into()), act, options)
    }

    /// As [`Decoder::new`], with the cache in a format of its own.
    pub fn with_kv(
        gpu: &Gpu,
        net: Language,
        (context, kv): (usize, KvFormat),
        act: Elem,
        mut options: PlanOptions,
    ) -> Result<Decoder> {
        let most = net.config().max_position_embeddings();
        if context == 0 || context > most {
            return Err(Error::Usage(format!(
                "a context of {context} tokens: this model was trained for 1 to {most}; give -c {most} or less"
            )));
        }
        let cache = net.config().kv_cache(gpu, context, kv)?;
        let token = gpu.buffer("token", 4)?;
        // The plans run one after the other, and what a chunk leaves is copied or read before the next.
        let arena = options.arena.get_or_insert_default().clone();
        let mut decoder = Decoder {
            gpu: gpu.clone(),
            net,
            cache,
            options,
            arena,
            act,
            token,
            plans: HashMap::new(),
            cached: vec![],
            context,
        };
        // What cannot be planned is to fail while the model is loaded, not at the first answer.
        decoder.prepare(1, Choice::Argmax)?;
        Ok(decoder)
    }

    /// Makes the plan for so many tokens at once, unless it is there.
    fn prepare(&mut self, size: usize, choice: Choice) -> Result<()> {
        if !self.plans.contains_key(&(size, choice)) {
            let plan = self.plan(size, choice)?;
            self.plans.insert((size, choice), plan);
        }
        Ok(())
    }

    /// One token comes from `token`, several from the host; argmax writes its choice to `token`.
    fn plan(&self, size: usize, choice: Choice) -> Result<Plan> {
        let graph = Graph::new(self.act);
        let token = graph.external(&self.token, [1, 1], Elem::U32);
        let ids = if size == 1 { token } else { graph.input("ids", [1, size], Elem::U32) };
        let start = graph.input("start", [1], Elem::U32);
        let last = graph.input("last", [1], Elem::U32);
        let logits = self.net.forward(ids, start, last, &self.cache);
        match choice {
            Choice::Argmax => graph.output("next", assign(token.reshape([1]), argmax(logits))),
            Choice::Top => graph.output("top", top_k(logits, CANDIDATES.min(self.vocab_size()))),
            Choice::Logits => graph.output("logits", logits),
        }
        let plan = Plan::new(&self.gpu, &graph, &self.options)?;
        plan.set_u32("last", &[size as u32 - 1])?;
        Ok(plan)
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
        self.plans.get(&(1, Choice::Argmax)).map_or(0, Plan::weight_bytes)
    }
    /// Floating-point operations of a prompt of so many tokens that ran greedily before, what fills up chunks left out.
    pub fn flops_of_prompt(&self, mut tokens: usize) -> f64 {
        let mut flops = 0.0;
        while tokens > 0 {
            let size = chunk_for(tokens);
            let count = tokens.min(size);
            let plan = self.plans.get(&(size, Choice::Argmax));
            flops += plan.map_or(0.0, |p| p.flops() as f64) * count as f64 / size as f64;
            tokens -= count;
        }
        flops
    }
    /// Tokens in the cache.
    pub fn cached_tokens(&self) -> usize {
        self.cached.len()
    }
    /// Forgets all but the first `tokens` tokens.
    pub fn rewind(&mut self, tokens: usize) {
        self.cached.truncate(tokens);
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
        let choice = Choice::of(sampler);
        let size = self.prefill(&prompt[keep..], choice)?;
        prompt.iter().for_each(|id| sampler.accept(*id));
        let most = most.min(self.context - prompt.len());
        match choice {
            Choice::Argmax => self.greedy(most, on_token, done, start),
            _ => self.sampled(most, sampler, on_token, done, start, (size, choice)),
        }
    }

    /// Computes the prompt's tokens. Returns the size of the last chunk, whose plan holds what the
    /// choice needs (for argmax it is made already).
    fn prefill(&mut self, mut ids: &[u32], choice: Choice) -> Result<usize> {
        loop {
            let size = chunk_for(ids.len());
            let count = ids.len().min(size);
            self.prepare(size, choice)?;
            let plan = &self.plans[&(size, choice)];
            let mut padded = ids[..count].to_vec();
            padded.resize(size, 0);
            plan.set_u32("ids", &padded)?;
            plan.set_u32("start", &[self.cached.len() as u32])?;
            plan.set_u32("last", &[count as u32 - 1])?;
            plan.run()?;
            self.cached.extend(&ids[..count]);
            ids = &ids[count..];
            if ids.is_empty() {
                return Ok(size);
            }
        }
    }

    /// Feeds `token` (whatever it is by then), chooses the next one, and asks for it, in one submission.
    fn submit_greedy_step(&self, position: usize) -> Result<PendingRead> {
        let step = &self.plans[&(1, Choice::Argmax)];
        step.set_u32("start", &[position as u32])?;
        step.run_and_read(&self.token, 0, 4)
    }

    fn greedy(
        &mut self,
        most: usize,
        on_token: &mut OnToken<'_>,
        done: &mut Generated,
        start: Instant,
    ) -> Result<()> {
        let mut pending: PendingRead = self.gpu.read_later(&self.token, 0, 4)?;
        let before = self.gpu.sent();
        let mut decoding: Option<Instant> = None;
        for count in 0..most {
            // The next step runs while this token travels back.
            let ahead = count + 1 < most;
            let next = if ahead { Some(self.submit_greedy_step(self.cached.len())?) } else { None };
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
            done.decode_sent = self.gpu.sent().since(before);
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
        (chunk, choice): (usize, Choice),
    ) -> Result<()> {
        self.prepare(1, choice)?;
        let mut decoding: Option<Instant> = None;
        for count in 0..most {
            let plan = &self.plans[&(if count == 0 { chunk } else { 1 }, choice)];
            let chosen = choose(plan, choice, sampler)?;
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
            let step = &self.plans[&(1, choice)];
            step.set_u32("start", &[self.cached.len() as u32])?;
            step.run()?;
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

/// The next token by the sampler, from what the plan computed for it.
fn choose(plan: &Plan, choice: Choice, sampler: &mut Sampler) -> Result<Chosen> {
    if choice == Choice::Logits {
        return sampler.sample(Logits::Full(&plan.read("logits")?));
    }
    let raw = plan.read_u32("top")?;
    let (values, ids) = raw.split_at(raw.len() / 2);
    if let Some(id) = ids.first() {
        check(*id)?;
    }
    let candidates: Vec<(u32, f32)> =
        ids.iter().zip(values).map(|(id, v)| (*id, f32::from_bits(*v))).collect();
    sampler.sample(Logits::Top { candidates: &candidates, log_sum_exp: None })
}
