//! Three products with one x in one launch, where their weights lie side by side: queries, keys and values. Few rows meet them by
//! pieces here, and the first two are turned by their positions; many go by tiles (beside.rs).

use super::beside::Three;
use super::pieces::{Pieces, load_pieces};
use super::turned::Turned;
use super::{Matmul, Tail, VEC_ROWS, whole_groups};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Arg, Chunk, Dispatch, Joint, Lower, Op, Operand};
use crate::ops::pointwise::Act;
use crate::ops::rope::{Rope, SIN_COS};
use crate::ops::round8::rounded;
use crate::ops::{OpInfo, formats};
use crate::quant::Format;
use crate::{Result, params, source};

const JOINT: Source = source!("matmul_joint.wgsl");

/// Storage buffers that the kernel binds: more than WebGPU promises, fewer than any GPU has.
pub const BUFFERS: u32 = 12;

params! {
    pub struct Params {
        pub k: u32,
        pub blocks: u32,
        pub total: u32,
        pub context: u32,
        pub half: u32,
        pub d: u32,
        pub rows: u32,
        pub scale: f32,
        pub begins: [u32; 4],
        pub counts: [u32; 4],
        pub words: [u32; 4],
        pub scales: [u32; 4],
        pub cubic: [f32; 4],
    }
}

/// What the three have in common.
#[derive(Clone, Copy, Debug)]
struct Form {
    x: Elem,
    act: Elem,
    bias: bool,
    /// Bit i: what the i-th product makes goes into a cache.
    caches: u32,
    /// Bit i: it is turned first.
    turns: u32,
    /// Bits of a norm's ε.
    eps: Option<u32>,
}

fn spec(pieces: Pieces, form: Form) -> Spec {
    load_pieces(Spec::new(JOINT), pieces, form.x, form.eps, 6)
        .alias("act", form.act)
        .flag("BIAS", form.bias)
        .u32("CACHES", form.caches)
        .u32("TURNS", form.turns)
        .part(SIN_COS)
}

/// A product of three, and how it is turned if it is.
#[derive(Clone, Copy)]
struct Part<'a> {
    product: &'a Matmul,
    rope: Option<&'a Rope>,
}

impl<'a> Part<'a> {
    fn of(op: &'a dyn Op) -> Option<Part<'a>> {
        let op = op.as_any();
        if let Some(Turned { product, rope }) = op.downcast_ref() {
            return Some(Part { product, rope: Some(rope) });
        }
        op.downcast_ref().map(|product| Part { product, rope: None })
    }
    fn into_cache(self) -> bool {
        self.rope.map_or(self.product.into_cache, |rope| rope.in_place().is_some())
    }
    /// Those of the op's inputs that name its first row in a cache and its first position.
    fn places(self, inputs: &[Operand]) -> impl Iterator<Item = &Operand> {
        let (position, row) = match self.rope {
            Some(_) => (inputs.get(1), inputs.get(3)),
            None => (None, inputs.get(2)),
        };
        position.into_iter().chain(row.filter(|_| self.into_cache()))
    }
}

/// Whether nothing but a bias, or a cache, is behind a product.
pub(super) fn plain(m: &Matmul) -> bool {
    let alone = m.act == Act::None && m.tail == Tail::None && m.out.is_none();
    alone && m.weight.columns().is_none()
}

/// Whether one launch may compute these products of the same x; `inputs` and `theirs` are what both ops read. What else all of
/// them have to share is seen when they are lowered ([`Shared`]).
pub(super) fn joins(one: &dyn Op, inputs: &[usize], other: &dyn Op, theirs: &[usize]) -> bool {
    let (Some(a), Some(b)) = (Part::of(one), Part::of(other)) else { return false };
    let (a, b) = (a.product, b.product);
    inputs.first() == theirs.first() && plain(a) && plain(b) && alike(a, b)
}

/// Whether one kernel can multiply with the weights of both, behind the same norm.
pub(super) fn alike(one: &Matmul, other: &Matmul) -> bool {
    let same_norm = match (&one.norm, &other.norm) {
        (Some((a, ea)), Some((b, eb))) => a.buffer.same(&b.buffer) && ea == eb,
        (None, None) => true,
        _ => false,
    };
    let (ours, theirs) = (one.weight.format(), other.weight.format());
    same_norm
        && one.bias.is_some() == other.bias.is_some()
        && one.weight.channels() == other.weight.channels()
        && ours.even() == theirs.even()
        && whole_groups(ours, one.weight.channels())
        && matches!((one.weight.chunks(), other.weight.chunks()), ([a], [b]) if a.beside([b].into_iter()).is_some())
}

/// Where a weight at these bytes begins as kernels count, its scales, and what makes its levels cubic.
pub(super) fn side(matmul: &Matmul, [words, scales]: [u64; 2]) -> (u32, u32, f32) {
    ((words / 16) as u32, (scales / 4) as u32, matmul.weight.format().cubic())
}

/// Emits one launch for `first` and two others, all of which were asked whether they join ([`joins`]). False where this
/// device has no kernel for it.
pub(super) fn lower(cx: &mut Lower<'_>, first: &dyn Op, others: &[Joint]) -> Result<bool> {
    let ops = [first].into_iter().chain(others.iter().map(|other| other.op.as_ref()));
    let Some(all) = ops.map(Part::of).collect::<Option<Vec<_>>>() else { return Ok(false) };
    let [first, ..] = all[..] else { return Ok(false) };
    let chunks: Option<Vec<&Chunk>> =
        all.iter().map(|part| part.product.weight.chunks().first()).collect();
    let Some([a, b, c]) = chunks.as_deref() else { return Ok(false) };
    let Some(places) = a.beside([*a, *b, *c].into_iter()) else { return Ok(false) };
    let x = cx.input(0)?.clone();
    let (m, k) = (x.shape.rows(), x.shape.last());
    let Some(shared) = Shared::of(cx, &all, others) else { return Ok(false) };
    if m > VEC_ROWS {
        return many(cx, &all, others, shared);
    }
    let rounds = |part: &Part<'_>| part.product.codes(cx);
    let codes = rounds(&first).filter(|_| all.iter().all(|part| rounds(part).is_some()));
    let total = all.iter().map(|part| part.product.weight.rows()).sum();
    let formats = all.iter().map(|part| part.product.weight.format());
    let Some(format) = Format::of_all(formats) else { return Ok(false) };
    let few = Pieces::fit(cx, (format, codes), (m, k, total));
    let Some(pieces) = few.filter(|_| cx.caps.max_storage_buffers >= BUFFERS) else {
        return Ok(false);
    };
    let pieces =
        if all.iter().any(|part| part.rope.is_some()) { pieces.in_pairs() } else { pieces };
    let rows = if let [_, rows, _] = x.shape.dims() { *rows } else { m };
    let mut p = shared.params(k, rows);
    for (i, (part, place)) in all.iter().zip(&places).enumerate() {
        let rows = part.product.weight.rows() as u32;
        (p.begins[i], p.counts[i]) = (p.total, rows);
        (p.words[i], p.scales[i], p.cubic[i]) = side(part.product, *place);
        p.total += rows;
    }
    // A group of lanes has rows of one product then, and pairs of one head.
    if shared.rope.is_some() && p.begins.iter().any(|begin| !begin.is_multiple_of(4)) {
        return Ok(false);
    }
    let norm = first.product.norm.as_ref();
    let gamma = norm.map(|(gamma, _)| gamma);
    let eight = pieces.codes.map(|codes| rounded(cx, &x, codes, gamma)).transpose()?;
    let form = Form {
        x: x.elem,
        act: cx.act,
        bias: first.product.bias.is_some(),
        caches: bits(&all, |part| part.into_cache()),
        turns: bits(&all, |part| part.rope.is_some()),
        eps: norm.map(|(_, eps)| eps.to_bits()),
    };
    let mut dispatch = Dispatch::new(spec(pieces, form), &p)
        .arg(eight.as_ref().unwrap_or(&x))
        .arg(shared.start.as_ref());
    for part in &all {
        dispatch = dispatch.arg(part.product.bias.as_ref());
    }
    // Rounded, x is bound once more, as floats.
    dispatch = dispatch.arg(eight.as_ref().map_or(Arg::from(gamma), Arg::from));
    for output in [cx.output()].into_iter().chain(others.iter().map(|other| &other.output)) {
        dispatch = dispatch.arg(output);
    }
    let dispatch = dispatch
        .arg(shared.rope.map(|rope| &rope.rotary().inv_freq))
        .weight_as(&a.whole_side(), |spec| pieces.dot_part(spec, format))
        .flops(2 * m * total * k);
    cx.dispatch(pieces.launch(dispatch, m, total, k))?;
    Ok(true)
}

/// The same where x has many rows and nothing turns: what would turn has a launch of its own then.
fn many(
    cx: &mut Lower<'_>,
    all: &[Part<'_>],
    others: &[Joint],
    shared: Shared<'_>,
) -> Result<bool> {
    let ([a, b, c], [second, third]) = (all, others) else { return Ok(false) };
    if all.iter().any(|part| part.rope.is_some() || part.product.norm.is_some()) {
        return Ok(false);
    }
    let outputs = [cx.output(), &second.output, &third.output].map(Operand::clone);
    let products = [a, b, c].map(|part| part.product);
    Three { products, outputs, start: shared.start, context: shared.context }.lower(cx)
}

fn bits(all: &[Part<'_>], test: impl Fn(Part<'_>) -> bool) -> u32 {
    all.iter().enumerate().map(|(i, part)| u32::from(test(*part)) << i).sum()
}

/// What the kernel knows one of for all products.
struct Shared<'a> {
    /// Of those that turn.
    rope: Option<&'a Rope>,
    /// First row in the caches, first position.
    start: Option<Operand>,
    /// Rows of the caches.
    context: usize,
}

impl<'a> Shared<'a> {
    /// None if there are two of something.
    fn of(cx: &Lower<'_>, all: &[Part<'a>], others: &[Joint]) -> Option<Shared<'a>> {
        let inputs = [cx.inputs()].into_iter().chain(others.iter().map(|o| &o.inputs[..]));
        let outputs = [cx.output()].into_iter().chain(others.iter().map(|o| &o.output));
        let mut shared = Shared { rope: None, start: None, context: 0 };
        for ((part, inputs), output) in all.iter().zip(inputs).zip(outputs) {
            for place in part.places(inputs) {
                if shared.start.as_ref().is_some_and(|start| !start.same(place)) {
                    return None;
                }
                shared.start = Some(place.clone());
            }
            if part.into_cache() {
                let context = output.shape.rows();
                if shared.context != 0 && shared.context != context {
                    return None;
                }
                shared.context = context;
            }
            if let Some(rope) = part.rope {
                if shared.rope.is_some_and(|other| !rope.turns_as(other)) {
                    return None;
                }
                shared.rope = Some(rope);
            }
        }
        Some(shared)
    }
    /// For products of k channels, of `rows` rows of one batch item.
    fn params(&self, k: usize, rows: usize) -> Params {
        Params {
            k: k as u32,
            blocks: k.div_ceil(8) as u32,
            context: self.context as u32,
            half: self.rope.map_or(0, |rope| rope.rotary().inv_freq.len as u32),
            d: self.rope.map_or(1, |rope| rope.d() as u32),
            rows: rows.max(1) as u32,
            scale: self.rope.map_or(1.0, |rope| rope.rotary().scale),
            ..Default::default()
        }
    }
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let mut specs = Vec::new();
    for format in formats() {
        for (x, vec8) in [(Elem::F32, true), (Elem::F16, true), (Elem::F16, false)] {
            let eps = Some(1e-5f32.to_bits());
            let form = Form { x, act: x, bias: true, caches: 4, turns: 0, eps };
            let turning = Form { caches: 6, turns: 3, ..form };
            for pieces in Pieces::all(vec8, format) {
                specs.push(pieces.dot_part(spec(pieces, form), format));
                specs.push(pieces.dot_part(spec(pieces.in_pairs(), turning), format));
            }
        }
    }
    vec![OpInfo { name: "matmul_joint", specs, params: Params::FIELDS }]
}
