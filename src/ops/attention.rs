//! Attention: `y = softmax(scale · q · kᵀ) v` per head, by online softmax (Milakov and Gimelshein 2018;
//! FlashAttention, Dao et al. 2022): the scores are never stored, whatever the length.

use std::any::Any;

use super::kv_cache::q8_heads;
use super::{ACTS, OpInfo};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, MAX_TRIPS, Op, Operand, Var};
use crate::{Result, params, source};

const ROWS: Source = source!("attention.wgsl");
const LANES: Source = source!("attention_lanes.wgsl");
const VEC: Source = source!("attention_vec.wgsl");
const MERGE: Source = source!("attention_merge.wgsl");
const REFERENCE: Source = source!("reference/attention.wgsl");
const MASK: Source = source!("parts/attention_mask.wgsl");
const KV: Source = source!("parts/attention_kv.wgsl");
const KV_Q8: Source = source!("parts/attention_kv_q8.wgsl");
const KV1: Source = source!("parts/attention_kv1.wgsl");
const KV1_Q8: Source = source!("parts/attention_kv1_q8.wgsl");
const PLAIN: Source = source!("parts/score_plain.wgsl");
const CAPPED: Source = source!("parts/score_capped.wgsl");
const SOFT_CAP: Source = source!("parts/soft_cap.wgsl");
const WHOLE: Source = source!("parts/attention_whole.wgsl");
const SPLIT: Source = source!("parts/attention_split.wgsl");
const REDUCE_ALL_WORKGROUP: Source = source!("parts/reduce_all_workgroup.wgsl");

/// Most channels of a head that the fast kernels take.
const MAX_D: usize = 512;
/// Keys whose scores attention_vec.wgsl keeps at once.
const BLOCK: u32 = 1024;
/// Scores that the reference keeps at once: 64 MiB.
const REFERENCE_SCORES: usize = 1 << 24;

params! {
    /// `struct Params` of the shaders.
    pub struct Params {
        pub sq: u32,
        pub sk: u32,
        pub heads: u32,
        pub kv_heads: u32,
        pub d: u32,
        pub rows: u32,
        pub row0: u32,
        pub n: u32,
        pub splits: u32,
        pub span: u32,
        pub scale: f32,
        pub window: u32,
        pub cap: f32,
        pub pad0: u32,
        pub pad1: u32,
        pub pad2: u32,
    }
}

/// Which keys a query sees. Keys that it does not see never contribute, whatever their memory holds.
#[derive(Clone, Copy)]
pub enum Mask<'g> {
    /// All.
    None,
    /// Key j ≤ query i, with as many keys as queries.
    Causal,
    /// Keys are a cache, of which query i sees `0 ..= start + i`.
    Cached {
        /// u32 `[1]`: position of query 0.
        start: Var<'g>,
        /// Of these the last so many alone: key j only if `start + i − j < window` (Mistral 7B, Jiang et
        /// al. 2023; transformers' `sliding_window`).
        window: Option<usize>,
    },
}

/// How to attend.
#[derive(Clone, Copy)]
pub struct Attention<'g> {
    pub heads: usize,
    /// Divides `heads`; each head of keys and values serves `heads / kv_heads` neighbouring query heads.
    pub kv_heads: usize,
    /// Factor of the scores, commonly 1/√D.
    pub scale: f32,
    /// Scores s become `cap · tanh(s / cap)` (Gemma 2, Gemma Team 2024; transformers'
    /// `attn_logit_softcapping`).
    pub cap: Option<f32>,
    pub mask: Mask<'g>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MaskKind {
    None = 0,
    Causal = 1,
    Cached = 2,
}

/// Inputs: q `[B, .., heads · D]`, k and v `[B, .., kv_heads · D]`, and start with a cache.
#[derive(Clone, Debug)]
struct Attend {
    heads: usize,
    kv_heads: usize,
    scale: f32,
    cap: Option<f32>,
    mask: MaskKind,
    window: Option<usize>,
    /// Keys and values are a cache of eight bits.
    q8: bool,
}

/// What of an [`Attend`] its shaders are specialised to.
#[derive(Clone, Copy, Debug)]
struct Sight {
    mask: MaskKind,
    window: bool,
    cap: bool,
    q8: bool,
}

/// q `[B, Sq, heads · D]` over k and v `[B, Sk, kv_heads · D]` → `[B, Sq, heads · D]`. Tokens may have several
/// dimensions (pixels). k and v may be a cache of eight bits (u32, see [`kv_write`](super::kv_cache::kv_write)).
#[track_caller]
pub fn attention<'g>(q: Var<'g>, k: Var<'g>, v: Var<'g>, how: Attention<'g>) -> Var<'g> {
    let (mask, start, window) = match how.mask {
        Mask::None => (MaskKind::None, None, None),
        Mask::Causal => (MaskKind::Causal, None, None),
        Mask::Cached { start, window } => (MaskKind::Cached, Some(start), window),
    };
    let (sq, sk, sv) = (q.shape(), k.shape(), v.shape());
    let (h, kv) = (how.heads, how.kv_heads);
    let q8 = k.elem() == Elem::U32;
    let width = sq.last() / h.max(1) * kv;
    let wide = if q8 { q8_heads(sk.last(), width) == Some(kv) } else { sk.last() == width };
    let fits = if h == 0 || kv == 0 || !h.is_multiple_of(kv) || !sq.last().is_multiple_of(h) {
        Err(format!("q {sq:?} in {h} heads over {kv} heads of keys"))
    } else if sq.rank() < 3
        || sk.rank() < 3
        || sk != sv
        || sk.dims()[0] != sq.dims()[0]
        || !wide
        || k.elem() != v.elem()
        || (q8 && (mask != MaskKind::Cached || sk.dims()[0] != 1))
        || sk.is_empty()
    {
        Err(format!("q {sq:?} in {h} heads over k {sk:?} and v {sv:?} in {kv} heads"))
    } else if mask == MaskKind::Causal && sq.rows() != sk.rows() {
        Err(format!("causal attention of q {sq:?} over k {sk:?}; a cache needs Mask::Cached"))
    } else if start.is_some_and(|s| s.elem() != Elem::U32 || s.shape().len() != 1) {
        Err("start must be one u32".to_string())
    } else if window == Some(0) || how.cap.is_some_and(|cap| cap.is_nan() || cap <= 0.0) {
        Err(format!("a window of {window:?} keys, scores up to {:?}", how.cap))
    } else {
        Ok(sq)
    };
    let mut inputs = vec![q, k, v];
    inputs.extend(start);
    // A window that no query fills is none.
    let window = window.filter(|w| *w < sk.rows() / sk.dims().first().map_or(1, |b| (*b).max(1)));
    let op = Attend { heads: h, kv_heads: kv, scale: how.scale, cap: how.cap, mask, window, q8 };
    q.graph().record(op, &inputs, fits, q.elem())
}

#[derive(Clone, Copy, Debug)]
enum Variant {
    /// A workgroup per eight queries of a head.
    Rows { wg: u32 },
    /// Eight lanes per sixteen queries of a head; each lane has so many fours of channels.
    Lanes { fours: u32 },
    /// A workgroup per query of a head.
    Vec { wg: u32 },
}

/// Sizes of one call.
struct Sizes {
    batch: usize,
    sq: usize,
    sk: usize,
    d: usize,
    rows: usize,
}

impl Attend {
    fn sizes(&self, cx: &Lower<'_>) -> Result<Sizes> {
        let (q, k) = (cx.input(0)?.shape, cx.input(1)?.shape);
        let batch = q.dims()[0].max(1);
        Ok(Sizes {
            batch,
            sq: q.rows() / batch,
            sk: k.rows() / batch,
            d: q.last() / self.heads,
            rows: q.rows() * self.heads,
        })
    }

    fn params(&self, s: &Sizes) -> Params {
        Params {
            sq: s.sq as u32,
            sk: s.sk as u32,
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            d: s.d as u32,
            rows: s.rows as u32,
            scale: self.scale,
            splits: 1,
            span: s.sk as u32,
            window: self.window.unwrap_or(s.sk) as u32,
            cap: self.cap.unwrap_or(0.0),
            ..Default::default()
        }
    }

    /// Binds q, k, v and start.
    fn inputs(&self, mut dispatch: Dispatch, cx: &Lower<'_>) -> Dispatch {
        for i in 0..4 {
            dispatch = dispatch.arg(cx.inputs().get(i));
        }
        dispatch
    }

    fn sight(&self) -> Sight {
        let (window, cap) = (self.window.is_some(), self.cap.is_some());
        Sight { mask: self.mask, window, cap, q8: self.q8 }
    }

    fn flops(&self, s: &Sizes) -> usize {
        4 * s.rows * self.window.unwrap_or(s.sk) * s.d
            / if self.mask == MaskKind::Causal { 2 } else { 1 }
    }

    fn reference(&self, cx: &mut Lower<'_>, s: &Sizes) -> Result<()> {
        let most = (REFERENCE_SCORES / s.sk).clamp(1, s.rows);
        let scores = cx.scratch([most, s.sk], Elem::F32);
        let stat = cx.scratch([most, 2], Elem::F32);
        for row0 in (0..s.rows).step_by(most) {
            let rows = most.min(s.rows - row0);
            let seen = self.window.unwrap_or(s.sk);
            let stages = [(rows * s.sk, s.d), (rows, seen), (rows, seen), (rows * s.d, seen)];
            for (stage, (n, trips)) in (0..).zip(stages) {
                let p = Params { row0: row0 as u32, n: n as u32, ..self.params(s) };
                let dispatch = Dispatch::new(reference(stage, cx.act, self.sight()), &p);
                let dispatch = self
                    .inputs(dispatch, cx)
                    .arg(&scores)
                    .arg(&stat)
                    .arg(cx.output())
                    .linear(n, 64)
                    .trips(trips)
                    .flops(self.flops(s) * rows / s.rows / 4);
                cx.dispatch(dispatch)?;
            }
        }
        Ok(())
    }

    fn fast(&self, cx: &mut Lower<'_>, s: &Sizes) -> Result<()> {
        let (d4, software) = (s.d / 4, cx.software());
        let few = if software { 4 } else { 32 };
        let fours = d4.div_ceil(8) as u32;
        let variant = if cx.eight_lanes() && s.sq >= 8 && fours <= LANES_FOURS {
            Variant::Lanes { fours }
        } else if s.sq >= few {
            Variant::Rows { wg: lanes8(d4).max(if software { 8 } else { 32 }) }
        } else {
            let lanes = d4.next_power_of_two() as u32;
            Variant::Vec { wg: lanes.max(if software { 8 } else { 128 }) }
        };
        // Enough parts that no invocation loops too long and, for few queries, that a GPU is busy.
        let reach = self.reach(s, variant);
        let busy = if software { 1 } else { (256 / s.rows).clamp(1, reach.div_ceil(512)) };
        let mut splits = busy;
        let span = |splits: usize| reach.div_ceil(splits).next_multiple_of(8);
        while variant.trips(span(splits), d4) > MAX_TRIPS as usize && span(splits) > 8 {
            splits += 1;
        }
        let span = span(splits);
        let splits = reach.div_ceil(span);
        let p = Params { splits: splits as u32, span: span as u32, ..self.params(s) };
        let spec = fast(variant, cx.act, self.sight(), d4 as u32, splits > 1);
        let dispatch = self.inputs(Dispatch::new(spec, &p), cx);
        let dispatch = match variant {
            Variant::Rows { .. } => dispatch.groups(s.sq.div_ceil(8), self.heads, s.batch * splits),
            Variant::Lanes { .. } => {
                dispatch.groups(s.sq.div_ceil(16), self.heads, s.batch * splits)
            }
            Variant::Vec { .. } => {
                let mut dispatch = dispatch.linear(s.rows, 1);
                dispatch.groups[2] = splits as u32;
                dispatch
            }
        };
        let dispatch = dispatch.trips(variant.trips(span, d4)).flops(self.flops(s));
        if splits == 1 {
            return cx.dispatch(dispatch.arg(&cx.output().clone()));
        }
        let part = cx.scratch([s.rows, splits, s.d], Elem::F32);
        let stat = cx.scratch([s.rows, splits, 2], Elem::F32);
        cx.dispatch(dispatch.arg(&part).arg(&stat))?;
        self.merge(cx, s, p, &part, &stat)
    }

    /// Keys that the queries of one workgroup may see together.
    fn reach(&self, s: &Sizes, variant: Variant) -> usize {
        let more = match variant {
            Variant::Rows { .. } => 7,
            Variant::Lanes { .. } => 15,
            Variant::Vec { .. } => 0,
        };
        self.window.map_or(s.sk, |window| s.sk.min(window + more))
    }

    fn merge(
        &self,
        cx: &mut Lower<'_>,
        s: &Sizes,
        p: Params,
        part: &Operand,
        stat: &Operand,
    ) -> Result<()> {
        let n = s.rows * s.d / 4;
        let p = Params { n: n as u32, ..p };
        let dispatch = Dispatch::new(merge(cx.act), &p)
            .arg(part)
            .arg(stat)
            .arg(cx.output())
            .linear(n, 64)
            .trips(2 * p.splits as usize);
        cx.dispatch(dispatch)
    }
}

/// Invocations that attention.wgsl needs for the channels of a head, eight each.
fn lanes8(d4: usize) -> u32 {
    d4.div_ceil(2).next_power_of_two() as u32
}

/// Most fours of channels that a lane of [`Variant::Lanes`] has registers for.
const LANES_FOURS: u32 = 5;

impl Variant {
    /// Loop iterations of one invocation over `span` keys of `d4` times four channels.
    fn trips(self, span: usize, d4: usize) -> usize {
        match self {
            Variant::Rows { wg } => {
                let (wg, lanes) = (wg as usize, lanes8(d4) as usize);
                let (keys, shares, per_query) = (8 * wg.min(32), wg / lanes, wg / 8);
                let weights = 2 * (keys / 4).div_ceil(per_query) + per_query;
                let turn = d4 + weights + (keys / 4).div_ceil(shares) + 1;
                span.div_ceil(keys) * turn + 2 * 8 * (per_query + shares + 1)
            }
            Variant::Lanes { .. } => span.div_ceil(64) * (1 + d4 + 16) + 16,
            Variant::Vec { wg } => {
                let (wg, lanes) = (wg as usize, d4.next_power_of_two());
                let (fours, blocks) = (span.div_ceil(4), span.div_ceil(BLOCK as usize));
                let scores = (fours.div_ceil(wg) + blocks) * (d4 + 2);
                scores + fours.div_ceil(wg / lanes) + blocks * 18 + 8
            }
        }
    }
}

impl Op for Attend {
    fn name(&self) -> &'static str {
        "attention"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let s = self.sizes(cx)?;
        if cx.reference() || !s.d.is_multiple_of(4) || s.d > MAX_D {
            self.reference(cx, &s)
        } else {
            self.fast(cx, &s)
        }
    }
}

impl Sight {
    fn head(self, spec: Spec) -> Spec {
        spec.part(MASK).u32("MASK", self.mask as u32).flag("WINDOW", self.window)
    }
}

fn reference(stage: u32, elem: Elem, sight: Sight) -> Spec {
    let kv = if sight.q8 { KV1_Q8 } else { KV1 };
    let spec = Spec::new(REFERENCE).part(kv).part(SOFT_CAP).alias("act", elem);
    sight.head(spec).u32("STAGE", stage).flag("CAP", sight.cap)
}

fn fast(variant: Variant, elem: Elem, sight: Sight, d4: u32, split: bool) -> Spec {
    let spec = match variant {
        Variant::Rows { wg } => Spec::new(ROWS).u32("WG_X", wg).u32("LANES8", lanes8(d4 as usize)),
        Variant::Lanes { fours } => Spec::new(LANES).u32("FOURS", fours),
        Variant::Vec { wg } => Spec::new(VEC)
            .part(REDUCE_ALL_WORKGROUP)
            .u32("WG_X", wg)
            .u32("LANES4", d4.next_power_of_two())
            .u32("BLOCK", BLOCK),
    };
    let spec = sight.head(spec.part(if sight.q8 { KV_Q8 } else { KV })).part(if split {
        SPLIT
    } else {
        WHOLE
    });
    let spec = if sight.cap { spec.part(CAPPED).part(SOFT_CAP) } else { spec.part(PLAIN) };
    spec.alias4("act4", elem)
}

fn merge(elem: Elem) -> Spec {
    Spec::new(MERGE).alias4("act4", elem)
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let mut specs = Vec::new();
    for elem in ACTS {
        specs.push(merge(elem));
        let sight = |mask, window, cap| Sight { mask, window, cap, q8: false };
        let eight = Sight { q8: true, ..sight(MaskKind::Cached, true, true) };
        for sight in [
            sight(MaskKind::None, false, false),
            sight(MaskKind::Causal, false, false),
            sight(MaskKind::Cached, false, false),
            sight(MaskKind::Cached, false, true),
            sight(MaskKind::Cached, true, false),
            sight(MaskKind::Cached, true, true),
            Sight { q8: true, ..sight(MaskKind::Cached, false, false) },
            eight,
        ] {
            specs.extend((0..4).map(|stage| reference(stage, elem, sight)));
            for (d4, split) in [(8, false), (10, true), (16, false), (128, true)] {
                let wg = lanes8(d4 as usize);
                for variant in [
                    Variant::Rows { wg: wg.max(8) },
                    Variant::Rows { wg: wg.max(32) },
                    Variant::Vec { wg: 128 },
                ] {
                    specs.push(fast(variant, elem, sight, d4, split));
                }
            }
            for (fours, split) in [(1, false), (2, true), (5, false)] {
                specs.push(fast(Variant::Lanes { fours }, elem, sight, 8 * fours, split));
            }
            specs.push(fast(Variant::Vec { wg: 8 }, elem, sight, 8, false));
        }
    }
    vec![OpInfo { name: "attention", specs, params: Params::FIELDS }]
}

/// One call for [`oracle`]; `start` is None without a mask, 0 for causal, the position of query 0 with a cache.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub batch: usize,
    pub sq: usize,
    pub sk: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub d: usize,
    pub scale: f32,
    pub start: Option<usize>,
    pub window: Option<usize>,
    pub cap: Option<f32>,
}

/// The truth, in f64. q `[batch, sq, heads · d]`, k and v `[batch, sk, kv_heads · d]`.
pub fn oracle(q: &[f32], k: &[f32], v: &[f32], case: Case) -> Vec<f64> {
    let Case { batch, sq, sk, heads, kv_heads, d, scale, start, window, cap } = case;
    let mut y = vec![0.0; batch * sq * heads * d];
    for (row, out) in y.chunks_exact_mut(d).enumerate() {
        let (b, i, head) = (row / heads / sq, row / heads % sq, row % heads);
        let seen = start.map_or(sk, |start| (start + i + 1).min(sk));
        let from = seen - window.unwrap_or(seen).min(seen);
        let query = &q[row * d..][..d];
        let at = |j: usize| ((b * sk + j) * kv_heads + head / (heads / kv_heads)) * d;
        let dot = |j: usize| -> f64 {
            query.iter().zip(&k[at(j)..]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let capped = |s: f64| cap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh());
        let scores: Vec<f64> = (from..seen).map(|j| capped(f64::from(scale) * dot(j))).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
        for (j, s) in (from..).zip(&scores) {
            let w = (s - most).exp() / total;
            out.iter_mut().zip(&v[at(j)..]).for_each(|(o, v)| *o += w * f64::from(*v));
        }
    }
    y
}
