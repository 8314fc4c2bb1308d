//! What it costs to decode 4-bit weights of a form, beside plain symmetric ones: products of a matrix with one vector and with
//! many, the forms in turn, so that whatever else the machine does falls on all of them alike.

use std::time::Instant;

use serde::Serialize;

use super::bench_ops::median;
use crate::Result;
use crate::diffusion::rng::{Rng, RngKind};
use crate::gpu::{Elem, Gpu, interrupted};
use crate::graph::{Graph, Plan, PlanOptions, Weight};
use crate::ops::matmul::linear;
use crate::quant::{Layout, Packed, QuantSpec};

/// What the others are held against.
pub const PLAIN: &str = "int4-g64-uniform";
/// Cubic levels, an offset to each scale, and groups of half the length.
const OTHERS: [&str; 3] = ["int4-g64-cubic", "int4-g64-hqq", "int4-g32-uniform"];
/// Rows of x, rows of w, and their length.
const SHAPES: [(&str, [usize; 3]); 2] = [("gemv", [1, 4096, 4096]), ("gemm", [256, 1024, 1024])];
/// Times that one sample runs the product: it should take milliseconds.
const TIMES: [usize; 2] = [16, 4];

/// One form in one product.
#[derive(Clone, Debug, Serialize)]
pub struct FormatCost {
    /// `gemv` or `gemm`.
    pub op: &'static str,
    /// Rows of x, rows of w, and their length.
    pub shape: [usize; 3],
    pub format: String,
    /// Of one product, the median over the samples.
    pub ms: f64,
    /// Median over the samples of the time over that of plain weights in the same turn, less 1.
    pub over_plain: f64,
}

/// Measures every form in turn, `samples` times.
///
/// # Errors
/// As planning and running do; `Interrupted` on Ctrl-C.
pub fn format_costs(
    gpu: &Gpu,
    act: Elem,
    options: &PlanOptions,
    samples: usize,
) -> Result<Vec<FormatCost>> {
    let mut costs = Vec::new();
    for ((op, shape), times) in SHAPES.into_iter().zip(TIMES) {
        let formats: Vec<&str> = [PLAIN].into_iter().chain(OTHERS).collect();
        let plans = formats.iter().map(|format| plan(gpu, act, options, format, shape));
        let plans: Vec<Plan> = plans.collect::<Result<_>>()?;
        let mut seconds = vec![Vec::new(); plans.len()];
        for _ in 0..samples.max(1) {
            interrupted()?;
            for (plan, seconds) in plans.iter().zip(&mut seconds) {
                seconds.push(time(gpu, plan, times)?);
            }
        }
        let plain = seconds[0].clone();
        costs.extend(formats.iter().zip(&seconds).map(|(format, seconds)| {
            let ratios: Vec<f64> = seconds.iter().zip(&plain).map(|(a, b)| a / b).collect();
            FormatCost {
                op,
                shape,
                format: (*format).to_string(),
                ms: 1e3 * median(seconds),
                over_plain: median(&ratios) - 1.0,
            }
        }));
    }
    Ok(costs)
}

fn plan(
    gpu: &Gpu,
    act: Elem,
    options: &PlanOptions,
    format: &str,
    [m, n, k]: [usize; 3],
) -> Result<Plan> {
    let mut rng = Rng::new(RngKind::Cpu, 5);
    let spec: QuantSpec = format.parse()?;
    let packed = Packed::pack(&rng.randn(n * k), Layout::linear(n, k), &spec, None)?;
    let weight = Weight::upload(gpu, format, &packed)?;
    let graph = Graph::new(act);
    graph.output("y", linear(graph.input("x", [1, m, k], act), &weight, None));
    let plan = Plan::new(gpu, &graph, options)?;
    plan.set("x", &rng.randn(m * k))?;
    // Kernels are compiled by the first run.
    time(gpu, &plan, 1)?;
    Ok(plan)
}

/// Seconds of one product.
fn time(gpu: &Gpu, plan: &Plan, times: usize) -> Result<f64> {
    gpu.wait()?;
    let start = Instant::now();
    for _ in 0..times {
        plan.run()?;
    }
    gpu.wait()?;
    Ok(start.elapsed().as_secs_f64() / times as f64)
}
