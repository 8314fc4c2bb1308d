//! Which kernels a device will run, and which of its properties decides that. For each family a small graph is
//! lowered as a plan would do it, with the device's capabilities and with one of them turned around: where that leads to
//! another kernel, it is a reason. Nothing is compiled, and nothing here knows how an op chooses.

use serde::Serialize;

use crate::Result;
use crate::gpu::{Caps, Elem, Gpu, Spec, Value};
use crate::graph::{Graph, Plan, PlanOptions, Var, Vector, Weight};
use crate::ops::attention::{Attention, Mask, attention};
use crate::ops::conv2d::{Conv, conv2d};
use crate::ops::kv_cache::{kv_write, q8_words};
use crate::ops::matmul::linear;
use crate::ops::norm::{group_norm, rms_norm};
use crate::ops::pointwise::{Act, activate};
use crate::ops::softmax::softmax;
use crate::quant::{Layout, Packed, QuantSpec};

/// What a family of kernels comes down to on a device.
#[derive(Clone, Debug, Serialize)]
pub struct Choice {
    pub family: &'static str,
    /// The form of problem that it is for.
    pub case: &'static str,
    /// The shaders, each with the constants that give its form.
    pub kernels: Vec<String>,
    /// The properties of the device that would lead to others if they were not; none where every device has the
    /// same.
    pub because: Vec<String>,
}

/// The choices that plans make on this device, with activations stored as `act`.
///
/// # Errors
/// What uploading a few small weights may end with.
pub fn choices(gpu: &Gpu, act: Elem) -> Result<Vec<Choice>> {
    let weight = |layout: Layout| -> Result<Weight> {
        let packed = Packed::pack(&vec![1.0; layout.len()], layout, &QuantSpec::INT4, None)?;
        Weight::upload(gpu, "choice", &packed)
    };
    let dense = weight(Layout::linear(256, 256))?;
    let square = weight(Layout { rows: 64, taps: 9, channels: 64 })?;
    let scale = Vector::upload(gpu, "choice", &[1.0; 256])?;
    let shift = Vector::upload(gpu, "choice", &[0.0; 256])?;
    let ask = |family, case, build: &dyn for<'g> Fn(&'g Graph) -> Var<'g>| {
        choice(gpu, act, (family, case), build)
    };
    Ok(vec![
        ask("matmul", "one row, INT4", &|g| linear(input(g, "x", [1, 256]), &dense, None))?,
        ask("matmul", "many rows, INT4", &|g| linear(input(g, "x", [64, 256]), &dense, None))?,
        ask("conv2d", "3x3, INT4", &|g| {
            conv2d(input(g, "x", [1, 16, 16, 64]), &square, None, Conv::default())
        })?,
        ask("attention", "many queries", &|g| {
            let [q, k, v] = ["q", "k", "v"].map(|name| input(g, name, [1, 64, 256]));
            attention(q, k, v, attend(Mask::None))
        })?,
        ask("attention", "one query over a cache", &|g| {
            let start = g.input("start", [1], Elem::U32);
            let [k, v] = ["k", "v"].map(|name| input(g, name, [1, 64, 256]));
            let mask = Mask::Cached { start, window: None };
            attention(input(g, "q", [1, 1, 256]), k, v, attend(mask))
        })?,
        ask("norm", "group norm", &|g| {
            group_norm(input(g, "x", [1, 16, 16, 256]), &scale, &shift, 32, 1e-5)
        })?,
        ask("norm", "RMS norm", &|g| rms_norm(input(g, "x", [1, 256]), &scale, 1e-6))?,
        ask("softmax", "rows of 256", &|g| softmax(input(g, "x", [64, 256])))?,
        ask("kv_cache", "eight bits", &|g| {
            let cache = g.input("cache", [1, 64, q8_words(4, 64)], Elem::U32);
            kv_write(cache, input(g, "x", [1, 1, 256]), g.input("start", [1], Elem::U32))
        })?,
        ask("pointwise", "SiLU", &|g| activate(input(g, "x", [64, 256]), Act::Silu))?,
    ])
}

fn attend(mask: Mask<'_>) -> Attention<'_> {
    Attention { heads: 4, kv_heads: 4, scale: 0.125, cap: None, mask }
}

fn input<'g, const N: usize>(graph: &'g Graph, name: &str, shape: [usize; N]) -> Var<'g> {
    graph.input(name, shape, graph.act())
}

fn choice(
    gpu: &Gpu,
    act: Elem,
    (family, case): (&'static str, &'static str),
    build: &dyn for<'g> Fn(&'g Graph) -> Var<'g>,
) -> Result<Choice> {
    let graph = Graph::new(act);
    graph.output("y", build(&graph));
    let with = |caps: &Caps| -> Result<Vec<String>> {
        let launches = Plan::kernels(gpu, &graph, &PlanOptions::default(), caps)?;
        Ok(launches.iter().map(|launch| form(&launch.spec)).collect())
    };
    let kernels = with(gpu.caps())?;
    let mut because = Vec::new();
    for (other, reason) in others(gpu.caps()) {
        if with(&other)? != kernels {
            because.push(reason);
        }
    }
    Ok(Choice { family, case, kernels, because })
}

/// These capabilities with one turned around, and what that one is like.
fn others(caps: &Caps) -> Vec<(Caps, String)> {
    let lanes = match (caps.subgroup_min, caps.subgroup_max) {
        (min, max) if min == max => format!("subgroups have {min} lanes"),
        (min, max) => format!("subgroups have {min} to {max} lanes"),
    };
    let says = |is: bool, yes: &str, no: &str| if is { yes } else { no }.to_string();
    let mut others = vec![
        (
            Caps { software: !caps.software, ..caps.clone() },
            says(caps.software, "a CPU plays the GPU", "this is no CPU that plays a GPU"),
        ),
        (
            Caps { subgroups: !caps.subgroups, ..caps.clone() },
            says(caps.subgroups, &lanes, "subgroups are missing or left out"),
        ),
    ];
    if caps.coop_edge > 0 {
        let edge = caps.coop_edge;
        let lacking = Caps { coop_edge: 0, ..caps.clone() };
        others.push((lacking, format!("it multiplies matrices of {edge} by {edge}")));
    }
    if !caps.fast_kernels {
        let fast = Caps { fast_kernels: true, ..caps.clone() };
        others.push((fast, "the fast kernels are left out".into()));
    }
    others
}

/// Name of a shader, and the constants that say how it shares out the work.
fn form(spec: &Spec) -> String {
    const FORM: [&str; 7] = ["LANES", "ROWS", "WG_X", "TALL", "FOURS", "EDGE", "SPAN"];
    let mut text = spec.source.name.to_string();
    for (name, value) in spec.head.iter().filter(|(name, _)| FORM.contains(name)) {
        text += &match value {
            Value::U32(value) => format!(" {name}={value}"),
            Value::Bool(value) => format!(" {name}={value}"),
            _ => String::new(),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{GpuOptions, Without};

    #[test]
    fn a_choice_has_its_reasons() {
        let open = |without| Gpu::open(&GpuOptions { without, ..GpuOptions::default() });
        let gpu = match open(Without::default()) {
            Ok(gpu) => gpu,
            Err(error) => return println!("skipped: {error}"),
        };
        let all = choices(&gpu, Elem::F32).unwrap();
        let of = |all: &[Choice], case: &str| {
            let found = all.iter().find(|c| c.case == case).unwrap();
            (found.kernels.join(", "), found.because.join(", "))
        };
        let (rows, why) = of(&all, "many rows, INT4");
        let caps = gpu.caps();
        match (caps.software, caps.subgroups && caps.subgroup_min == 8 && caps.subgroup_max == 8) {
            (false, _) => assert!(rows.contains("matmul_tiled.wgsl") && why.contains("no CPU")),
            (true, true) => {
                assert!(rows.contains("matmul_lanes.wgsl") && why.contains("8 lanes"), "{why}")
            }
            (true, false) => assert!(rows.contains("matmul.wgsl") && why.contains("a CPU")),
        }
        let reference = open(Without { fast_kernels: true, ..Without::default() }).unwrap();
        let all = choices(&reference, Elem::F32).unwrap();
        let (rows, why) = of(&all, "one row, INT4");
        assert!(rows.starts_with("reference/") && why.contains("left out"), "{rows}: {why}");
    }
}
