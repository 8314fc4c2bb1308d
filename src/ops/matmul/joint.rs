//! Three products with one x in one launch, where few rows meet weights that lie side by side: queries, keys and values.

use super::pieces::{Pieces, load_pieces};
use super::{Matmul, Tail, whole_groups};
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Arg, Chunk, Dispatch, Joint, Lower};
use crate::ops::pointwise::Act;
use crate::ops::round8::rounded;
use crate::ops::{OpInfo, formats};
use crate::quant::{Format, Offset};
use crate::{Result, params, source};

const JOINT: Source = source!("matmul_joint.wgsl");

/// Storage buffers that the kernel binds: more than WebGPU promises, fewer than any GPU has.
pub const BUFFERS: u32 = 11;

params! {
    pub struct Params {
        pub k: u32,
        pub blocks: u32,
        pub total: u32,
        pub context: u32,
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
    /// Bits of a norm's ε.
    eps: Option<u32>,
}

fn spec(pieces: Pieces, form: Form) -> Spec {
    load_pieces(Spec::new(JOINT), pieces, form.x, form.eps, 6)
        .alias("act", form.act)
        .flag("BIAS", form.bias)
        .u32("CACHES", form.caches)
}

/// Whether one launch may compute this product and another of the same x.
pub(super) fn may_join(one: &Matmul, other: &Matmul) -> bool {
    let plain = |m: &Matmul| {
        m.act == Act::None
            && m.tail == Tail::None
            && m.out.is_none()
            && m.weight.columns().is_none()
    };
    plain(one) && plain(other) && alike(one, other)
}

/// Whether one kernel can multiply with the weights of both, behind the same norm.
pub(super) fn alike(one: &Matmul, other: &Matmul) -> bool {
    let same_norm = match (&one.norm, &other.norm) {
        (Some((a, ea)), Some((b, eb))) => a.buffer.same(&b.buffer) && ea == eb,
        (None, None) => true,
        _ => false,
    };
    let kind = |format| match format {
        Format::Q4 { group, cubic, offset } => (4, group, cubic != 0.0, offset),
        Format::Q8 { group } => (8, group, false, Offset::None),
        Format::F16 => (16, 0, false, Offset::None),
        Format::F32 => (32, 0, false, Offset::None),
    };
    let (ours, theirs) = (one.weight.format(), other.weight.format());
    same_norm
        && one.bias.is_some() == other.bias.is_some()
        && one.weight.channels() == other.weight.channels()
        && kind(ours) == kind(theirs)
        && whole_groups(ours, one.weight.channels())
        && matches!((one.weight.chunks(), other.weight.chunks()), ([a], [b]) if a.beside([b].into_iter()).is_some())
}

/// Where a weight at these bytes begins as kernels count, its scales, and what makes its levels cubic.
pub(super) fn side(matmul: &Matmul, [words, scales]: [u64; 2]) -> (u32, u32, f32) {
    let cubic = match matmul.weight.format() {
        Format::Q4 { cubic, .. } => cubic,
        _ => 0.0,
    };
    ((words / 16) as u32, (scales / 4) as u32, cubic)
}

/// Emits one launch for `first` and two others, all of which were asked whether they join ([`may_join`]). False where this
/// device has no kernel for it.
pub(super) fn lower(cx: &mut Lower<'_>, first: &Matmul, others: &[Joint]) -> Result<bool> {
    let matmul = |joint: &'_ Joint| joint.op.as_any().downcast_ref::<Matmul>().cloned();
    let Some(rest) = others.iter().map(matmul).collect::<Option<Vec<_>>>() else {
        return Ok(false);
    };
    let all: Vec<&Matmul> = [first].into_iter().chain(&rest).collect();
    let chunks: Option<Vec<&Chunk>> = all.iter().map(|m| m.weight().chunks().first()).collect();
    let Some([a, b, c]) = chunks.as_deref() else { return Ok(false) };
    let x = cx.input(0)?.clone();
    let (m, k) = (x.shape.rows(), x.shape.last());
    let codes = first.codes(cx).filter(|_| all.iter().all(|m| m.codes(cx).is_some()));
    let few = Pieces::fit(cx, codes, (m, k, all.iter().map(|m| m.weight().rows()).sum()));
    let Some(pieces) = few.filter(|_| cx.caps.max_storage_buffers >= BUFFERS) else {
        return Ok(false);
    };
    let Some(places) = a.beside([*a, *b, *c].into_iter()) else { return Ok(false) };
    // The kernel knows one first row and one length of caches.
    if all.iter().filter(|m| m.into_cache).count() > 1 {
        return Ok(false);
    }

    let mut p = Params { k: k as u32, blocks: k.div_ceil(8) as u32, ..Default::default() };
    for (i, (matmul, place)) in all.iter().zip(&places).enumerate() {
        let rows = matmul.weight().rows() as u32;
        (p.begins[i], p.counts[i]) = (p.total, rows);
        (p.words[i], p.scales[i], p.cubic[i]) = side(matmul, *place);
        p.total += rows;
    }
    let gamma = first.norm.as_ref().map(|(gamma, _)| gamma);
    let eight = pieces.codes.map(|codes| rounded(cx, &x, codes, gamma)).transpose()?;
    let inputs: Vec<&[_]> =
        [cx.inputs()].into_iter().chain(others.iter().map(|o| &o.inputs[..])).collect();
    let outputs: Vec<_> =
        [cx.output()].into_iter().chain(others.iter().map(|o| &o.output)).collect();
    let mut start = Arg::Nothing;
    let mut caches = 0;
    for (i, _) in all.iter().enumerate().filter(|(_, m)| m.into_cache) {
        caches |= 1 << i;
        p.context = outputs[i].shape.rows() as u32;
        start = Arg::from(inputs[i].get(2));
    }
    let form = Form {
        x: x.elem,
        act: cx.act,
        bias: first.bias.is_some(),
        caches,
        eps: first.norm.as_ref().map(|(_, eps)| eps.to_bits()),
    };
    let mut dispatch =
        Dispatch::new(spec(pieces, form), &p).arg(eight.as_ref().unwrap_or(&x)).arg(start);
    for matmul in &all {
        dispatch = dispatch.arg(matmul.bias.as_ref());
    }
    // Rounded, x is bound once more, as floats.
    dispatch = dispatch.arg(eight.as_ref().map_or(Arg::from(gamma), Arg::from));
    for output in &outputs {
        dispatch = dispatch.arg(*output);
    }
    let total = p.total as usize;
    let dispatch = dispatch
        .weight_as(&a.whole_side(), |spec| pieces.dot_part(spec, first.weight().format()))
        .flops(2 * m * total * k);
    cx.dispatch(pieces.launch(dispatch, m, total, k))?;
    Ok(true)
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let mut specs = Vec::new();
    for format in formats() {
        for (x, vec8) in [(Elem::F32, true), (Elem::F16, true), (Elem::F16, false)] {
            let form = Form { x, act: x, bias: true, caches: 4, eps: Some(1e-5f32.to_bits()) };
            for pieces in Pieces::all(vec8, format) {
                specs.push(pieces.dot_part(spec(pieces, form), format));
            }
        }
    }
    vec![OpInfo { name: "matmul_joint", specs, params: Params::FIELDS }]
}
