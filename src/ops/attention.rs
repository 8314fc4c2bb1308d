//! Attention: `y = softmax(scale · q · kᵀ) v` per head, by online softmax (Milakov and Gimelshein 2018;
//! FlashAttention, Dao et al. 2022): the scores are never stored, whatever the length.

mod fast;

use std::any::Any;

use super::kv_cache::q8_heads;
use super::{ACTS, OpInfo};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, Op, Var};
use crate::{Result, params, source};

const REFERENCE: Source = source!("reference/attention.wgsl");
const MASK: Source = source!("parts/attention_mask.wgsl");
const KV1: Source = source!("parts/attention_kv1.wgsl");
const KV1_Q8: Source = source!("parts/attention_kv1_q8.wgsl");
const SOFT_CAP: Source = source!("parts/soft_cap.wgsl");

/// Most channels of a head that the fast kernels take.
const MAX_D: usize = 512;
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
            fast::lower(self, cx, &s)
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

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let sight = |mask, window, cap| Sight { mask, window, cap, q8: false };
    let sights = [
        sight(MaskKind::None, false, false),
        sight(MaskKind::Causal, false, false),
        sight(MaskKind::Cached, false, false),
        sight(MaskKind::Cached, false, true),
        sight(MaskKind::Cached, true, false),
        sight(MaskKind::Cached, true, true),
        Sight { q8: true, ..sight(MaskKind::Cached, false, false) },
        Sight { q8: true, ..sight(MaskKind::Cached, true, true) },
    ];
    let mut specs = Vec::new();
    for elem in ACTS {
        for sight in sights {
            specs.extend((0..4).map(|stage| reference(stage, elem, sight)));
        }
        specs.extend(fast::specs(elem, &sights));
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
