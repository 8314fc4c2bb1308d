//! The cases of [`super::bench_ops`]: every op on shapes of Stable Diffusion 1.5, SmolLM2 135M, Llama 3.2 1B and Llama 2
//! 7B. Software adapters get smaller pictures and no 7B.

use super::bench_case::Case;
use crate::gpu::Elem;
use crate::graph::Var;
use crate::ops::attention::{Attention, Mask, attention};
use crate::ops::conv2d::{Conv, conv2d};
use crate::ops::embed::embed;
use crate::ops::kv_cache::{kv_write, q8_words};
use crate::ops::matmul::linear;
use crate::ops::norm::{group_norm, layer_norm, rms_norm};
use crate::ops::pointwise::{Act, gated, geglu, silu};
use crate::ops::rope::{Rotary, rope};
use crate::ops::sampler::{COEFFICIENTS, MEMORY, step};
use crate::ops::softmax::softmax;
use crate::ops::topk::{MAX_K, argmax, top_k};
use crate::quant::{Layout, QuantSpec};

const SMOL: &str = "SmolLM2 135M";
const LLAMA1: &str = "Llama 3.2 1B";
const LLAMA7: &str = "Llama 2 7B";
const SD15: &str = "Stable Diffusion 1.5";

/// All cases, by op.
pub fn all(software: bool) -> Vec<Case> {
    [
        products(software),
        convolutions(software),
        attentions(software),
        norms(software),
        tokens(software),
        element_wise(software),
        choices(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn products(software: bool) -> Vec<Case> {
    const THREE: [QuantSpec; 3] = [QuantSpec::INT4, QuantSpec::INT8, QuantSpec::F16];
    const ONE: [QuantSpec; 1] = [QuantSpec::INT4];
    // Rows of x, rows of w, their length.
    let mut shapes = vec![
        (SMOL, [1, 1536, 576], &ONE[..], true),
        (LLAMA1, [1, 2048, 2048], &THREE, false),
        (LLAMA1, [1, 8192, 2048], &ONE, false),
        (SMOL, [128, 576, 576], &ONE, true),
        (LLAMA1, [128, 2048, 2048], &THREE, false),
        (SD15, [1024, 640, 640], &THREE, false),
        (SD15, [256, 1280, 1280], &ONE, false),
    ];
    if software {
        shapes.push((SD15, [1024, 320, 320], &ONE, false));
    } else {
        shapes.extend([
            (LLAMA7, [1, 4096, 4096], &THREE[..], false),
            (LLAMA7, [1, 11008, 4096], &ONE, false),
            (LLAMA7, [128, 4096, 4096], &ONE, false),
            (SD15, [4096, 320, 320], &ONE, false),
            (SD15, [4096, 2560, 320], &ONE, false),
        ]);
    }
    let mut cases = Vec::new();
    for (model, [m, n, k], specs, quick) in shapes {
        let form = if m == 1 { "gemv" } else { "gemm" };
        cases.extend(specs.iter().map(|&weights| {
            let shape = format!("{m}x{k}, {n}x{k}");
            let case = Case::new("matmul", format!("{form} {weights}"), shape, model, move |r| {
                let weight = r.weight(Layout::linear(n, k), weights)?;
                Ok(linear(r.floats([1, m, k]), &weight, None))
            });
            Case { quick, ..case }
        }));
    }
    cases
}

fn convolutions(software: bool) -> Vec<Case> {
    // Pixels a side and channels: a quarter of the picture where a processor computes.
    let full = [(64, 320), (32, 640), (16, 1280)];
    let sides = full.map(|(side, c)| (if software { side / 2 } else { side }, c));
    let case = |side: usize, c: usize, weights: QuantSpec| {
        let shape = format!("{side}x{side}, {c} to {c}");
        Case::new("conv2d", format!("3x3 {weights}"), shape, SD15, move |r| {
            let weight = r.weight(Layout { rows: c, taps: 9, channels: c }, weights)?;
            Ok(conv2d(r.floats([1, side, side, c]), &weight, None, Conv::default()))
        })
    };
    let mut cases: Vec<Case> =
        sides.iter().map(|&(side, c)| case(side, c, QuantSpec::INT4)).collect();
    cases.push(case(sides[0].0, sides[0].1, QuantSpec::F16));
    cases.push(case(8, 320, QuantSpec::INT4).quick());
    cases
}

fn attentions(software: bool) -> Vec<Case> {
    let over = |what: &str, model, [heads, d, sq, sk]: [usize; 4]| {
        let shape = format!("{heads} heads of {d}, {sq} over {sk}");
        Case::new("attention", what, shape, model, move |r| {
            let c = heads * d;
            let (q, k, v) = (r.floats([1, sq, c]), r.floats([1, sk, c]), r.floats([1, sk, c]));
            Ok(attention(q, k, v, how(heads, heads, d, Mask::None)))
        })
    };
    let decode = |model, [heads, kv_heads, d, sk]: [usize; 4]| {
        let shape = format!("{heads} heads of {d} on {kv_heads}, 1 over {sk}");
        Case::new("attention", "decode", shape, model, move |r| {
            let (q, c) = (r.floats([1, 1, heads * d]), kv_heads * d);
            let (k, v) = (r.floats([1, sk, c]), r.floats([1, sk, c]));
            let mask = Mask::Cached { start: r.words(vec![sk as u32 - 1], [1]), window: None };
            Ok(attention(q, k, v, how(heads, kv_heads, d, mask)))
        })
    };
    let eight = |[heads, kv_heads, d, sk]: [usize; 4]| {
        let shape = format!("{heads} heads of {d} on {kv_heads}, 1 over {sk}");
        Case::new("attention", "decode, int8 cache", shape, LLAMA1, move |r| {
            let (q, words) = (r.floats([1, 1, heads * d]), q8_words(kv_heads, d));
            let cache = || r.memory([1, sk, words], Elem::U32);
            r.reads(2 * 4 * (sk * words) as u64);
            let mask = Mask::Cached { start: r.words(vec![sk as u32 - 1], [1]), window: None };
            Ok(attention(q, cache()?, cache()?, how(heads, kv_heads, d, mask)))
        })
    };
    let tokens = if software { 1024 } else { 4096 };
    let mut cases = vec![
        over("self", SD15, [8, 40, tokens, tokens]),
        over("cross", SD15, [8, 40, tokens, 77]),
        over("self", SD15, [8, 40, 256, 256]).quick(),
        over("cross", SD15, [8, 40, 256, 77]).quick(),
        decode(LLAMA1, [32, 8, 64, 1024]),
        decode(LLAMA1, [32, 8, 64, 4096]),
        eight([32, 8, 64, 4096]),
        decode(SMOL, [9, 3, 64, 1024]).quick(),
    ];
    if !software {
        cases.push(decode(LLAMA7, [32, 32, 128, 4096]));
    }
    cases
}

fn how(heads: usize, kv_heads: usize, d: usize, mask: Mask<'_>) -> Attention<'_> {
    Attention { heads, kv_heads, scale: 1.0 / (d as f32).sqrt(), cap: None, mask }
}

fn norms(software: bool) -> Vec<Case> {
    const EPS: f32 = 1e-5;
    let side = if software { 32 } else { 64 };
    let group = |side: usize, c: usize| {
        let shape = format!("{side}x{side}, {c} in 32 groups");
        Case::new("norm", "group, SiLU", shape, SD15, move |r| {
            let (gamma, beta) = (r.vector(c)?, r.vector(c)?);
            Ok(silu(group_norm(r.floats([1, side, side, c]), &gamma, &beta, 32, EPS)))
        })
    };
    let layer = Case::new("norm", "layer", format!("{}x320", side * side), SD15, move |r| {
        let (gamma, beta) = (r.vector(320)?, r.vector(320)?);
        Ok(layer_norm(r.floats([1, side * side, 320]), &gamma, &beta, EPS))
    });
    let rms = |model, rows: usize, c: usize| {
        Case::new("norm", "RMS", format!("{rows}x{c}"), model, move |r| {
            let gamma = r.vector(c)?;
            Ok(rms_norm(r.floats([1, rows, c]), &gamma, EPS))
        })
    };
    vec![
        group(side, 320),
        group(side / 2, 640),
        layer,
        rms(SMOL, 1, 576).quick(),
        rms(LLAMA1, 1, 2048),
        rms(LLAMA1, 128, 2048),
    ]
}

/// What is done to tokens one by one.
fn tokens(software: bool) -> Vec<Case> {
    let turn = |rows: usize, heads: usize| {
        let shape = format!("{rows} rows, {heads} heads of 64");
        Case::new("rope", "64 of 64", shape, LLAMA1, move |r| {
            let rotary = Rotary { inv_freq: r.vector(32)?, scale: 1.0 };
            let start = r.words(vec![100], [1]);
            Ok(rope(r.floats([1, rows, heads * 64]), start, &rotary, heads))
        })
    };
    let write = |rows: usize, eight: bool| {
        let (heads, d, context) = (8, 64, 4096);
        let spec = if eight { "int8" } else { "as activations" };
        let shape = format!("{rows}x{} into {context}", heads * d);
        Case::new("kv_cache", spec, shape, LLAMA1, move |r| {
            let width = if eight { q8_words(heads, d) } else { heads * d };
            let elem = if eight { Elem::U32 } else { r.graph.act() };
            let cache = r.memory([1, context, width], elem)?;
            r.writes((rows * width) as u64 * elem.bytes());
            let start = r.words(vec![context as u32 / 2], [1]);
            Ok(kv_write(cache, r.floats([1, rows, heads * d]), start))
        })
    };
    let (model, vocabulary, channels) =
        if software { (SMOL, 8192, 576) } else { (LLAMA1, 32_768, 2048) };
    let look_up = |rows: usize| {
        let shape = format!("{rows} of {vocabulary}x{channels}");
        Case::new("embed", QuantSpec::INT4.to_string(), shape, model, move |r| {
            let table = r.table(Layout::linear(vocabulary, channels), QuantSpec::INT4)?;
            r.reads(table.bytes() * rows as u64 / vocabulary as u64);
            let id = |i: usize| (i * 2_654_435_761 % vocabulary) as u32;
            Ok(embed(r.words((0..rows).map(id).collect(), [1, rows]), &table))
        })
    };
    vec![
        turn(1, 32).quick(),
        turn(128, 32),
        write(1, false).quick(),
        write(128, false),
        write(128, true),
        look_up(1).quick(),
        look_up(128),
    ]
}

fn element_wise(software: bool) -> Vec<Case> {
    let pixels = if software { 1024 } else { 4096 };
    let halves = Case::new("pointwise", "GEGLU", format!("{pixels}x2560"), SD15, move |r| {
        Ok(geglu(r.floats([1, pixels, 2560])))
    });
    let swish = Case::new("pointwise", "SiLU", format!("{pixels}x320"), SD15, move |r| {
        Ok(silu(r.floats([1, pixels, 320])))
    });
    let sum = Case::new("pointwise", "add", format!("{pixels}x320"), SD15, move |r| {
        Ok(r.floats([1, pixels, 320]) + r.floats([1, pixels, 320]))
    });
    let unit = |model, rows: usize, c: usize| {
        Case::new("pointwise", "SiLU times", format!("{rows}x{c}"), model, move |r| {
            Ok(gated(r.floats([1, rows, c]), r.floats([1, rows, c]), Act::Silu))
        })
    };
    let scores = |model, rows: usize, c: usize| {
        Case::new("softmax", "rows", format!("{rows}x{c}"), model, move |r| {
            Ok(softmax(r.floats([rows, c])))
        })
    };
    vec![
        halves,
        swish,
        sum,
        unit(SMOL, 1, 1536).quick(),
        unit(LLAMA1, 128, 8192),
        scores(SD15, 1024, 1024),
        scores(SD15, 512, 77).quick(),
    ]
}

/// The next latents and the next token.
fn choices() -> Vec<Case> {
    let latents = |side: usize| {
        Case::new("sampler", "step", format!("{side}x{side}x4"), SD15, move |r| {
            let floats = |parts: usize| r.stored([parts, side, side, 4], Elem::F32);
            let coef = r.stored([COEFFICIENTS], Elem::F32);
            Ok(step(floats(1), floats(1), floats(MEMORY), floats(1), coef))
        })
    };
    let pick = |model, vocabulary: usize, k: usize| {
        let spec = if k == 1 { "argmax".to_string() } else { format!("top {k}") };
        Case::new("topk", spec, format!("{vocabulary}"), model, move |r| {
            let logits: Var<'_> = r.stored([1, vocabulary], Elem::F32);
            Ok(if k == 1 { argmax(logits) } else { top_k(logits, k) })
        })
    };
    vec![
        latents(64).quick(),
        pick(SMOL, 49_152, 1).quick(),
        pick(LLAMA1, 128_256, 1),
        pick(LLAMA1, 128_256, MAX_K),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn cases_have_names_of_their_own_and_quick_runs_have_every_op() {
        for software in [false, true] {
            let cases = all(software);
            let names: HashSet<_> = cases.iter().map(|c| (c.op, &c.spec, &c.shape)).collect();
            assert_eq!(names.len(), cases.len());
            let ops: HashSet<&str> = cases.iter().map(|c| c.op).collect();
            let quick: HashSet<&str> = cases.iter().filter(|c| c.quick).map(|c| c.op).collect();
            assert_eq!(ops, quick);
        }
    }
}
