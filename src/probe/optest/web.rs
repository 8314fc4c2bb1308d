//! The same cases for a browser: a folder with a page that runs the same linked WGSL through the browser's WebGPU, a second
//! compiler and another way to the driver, and holds the results against the same oracle.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::Choice;
use super::judge::allowed;
use super::problem::{Answers, Feed, Problem, Site};
use super::tier::Tier;
use super::trial::name;
use crate::files::write_whole;
use crate::gpu::{Buffer, Elem, Gpu, GpuOptions, Target, interrupted, link};
use crate::graph::{Graph, Kernels, Plan, PlanOptions};
use crate::{Error, Result};

const PAGE: &str = include_str!("web.html");

/// Writes the chosen problems into `folder`: index.html, cases.json, and a file of memory for each case. Kernels are those
/// of an adapter with no optional feature, since that is what every browser has. Returns the number of cases.
///
/// # Errors
/// `Io`, and as planning does. A problem that the adapter has no room for is left out.
pub fn export(
    options: &GpuOptions,
    choice: &Choice,
    folder: &Path,
    mut on_problem: impl FnMut(&Problem, usize, usize),
) -> Result<usize> {
    let gpu = Gpu::open(&GpuOptions { without: Tier::None.without(), ..options.clone() })?;
    let memory = folder.join("memory");
    fs::create_dir_all(&memory).map_err(|e| Error::io(&memory, e))?;
    let mut book = Book::default();
    let problems = choice.problems()?;
    for (done, problem) in problems.iter().enumerate() {
        interrupted()?;
        on_problem(problem, done, problems.len());
        match book.add(&gpu, problem, &memory) {
            Err(Error::OutOfMemory(_)) => {}
            other => other?,
        }
    }
    let cases = json!({
        "inknib": env!("CARGO_PKG_VERSION"),
        "kernels": book.kernels,
        "cases": book.cases,
    });
    write_whole(folder.join("cases.json"), cases.to_string().as_bytes())?;
    write_whole(folder.join("index.html"), PAGE.as_bytes())?;
    Ok(book.cases.len())
}

/// What cases.json holds.
#[derive(Default)]
struct Book {
    /// Linked WGSL, each text once.
    kernels: Vec<String>,
    places: HashMap<String, usize>,
    cases: Vec<Value>,
}

impl Book {
    fn add(&mut self, gpu: &Gpu, problem: &Problem, memory: &Path) -> Result<()> {
        let answers = Answers::default();
        let prepared = (problem.make)(&Site { gpu, act: Elem::F32, answers: &answers })?;
        for kernels in [Kernels::Reference, Kernels::Fast] {
            if kernels == Kernels::Reference && (problem.heavy || problem.fast_only) {
                continue;
            }
            let graph = Graph::new(Elem::F32);
            let y = (prepared.build)(&graph);
            graph.output("y", y);
            let integers = y.elem() == Elem::U32;
            let options = PlanOptions { kernels, poison: true, ..Default::default() };
            let plan = Plan::new(gpu, &graph, &options)?;
            for feed in &prepared.feeds {
                match feed {
                    Feed::F32(name, values) => plan.set(name, values)?,
                    Feed::U32(name, values) => plan.set_u32(name, values)?,
                }
            }
            let file = format!("{}.bin", self.cases.len());
            let (steps, buffers, bytes) = self.trace(gpu, &plan)?;
            let (output, offset, length) = plan.place("y")?;
            let at = buffers.iter().position(|buffer| buffer.same(output));
            let Some(at) = at else { continue };
            write_whole(memory.join(&file), &bytes)?;
            let (nmse, max) = allowed(Elem::F32);
            self.cases.push(json!({
                "op": problem.op, "spec": problem.spec, "shape": problem.shape, "set": problem.set,
                "tier": Tier::None, "kernels": name(kernels), "activations": "f32",
                "tolerance": nmse * prepared.slack, "max_tolerance": max * prepared.slack.sqrt(),
                "memory": file, "buffers": buffers.iter().map(Buffer::bytes).collect::<Vec<_>>(),
                "steps": steps, "output": [at, offset, length], "integers": integers,
                // JSON has no word for what is not finite.
                "want": prepared.want.iter().map(|v| v.is_finite().then_some(*v)).collect::<Vec<_>>(),
                "at": prepared.at.as_deref(),
            }));
        }
        Ok(())
    }

    /// The launches of a plan, the buffers that they bind, and what these hold before the run.
    fn trace(&mut self, gpu: &Gpu, plan: &Plan) -> Result<(Vec<Value>, Vec<Buffer>, Vec<u8>)> {
        let (mut steps, mut buffers, mut bytes) = (Vec::new(), Vec::<Buffer>::new(), Vec::new());
        for step in plan.steps() {
            let text = link(step.spec(), Target::Web).text;
            let next = self.kernels.len();
            let kernel = *self.places.entry(text.clone()).or_insert(next);
            if kernel == next {
                self.kernels.push(text);
            }
            let mut sets = Vec::new();
            for set in step.sets() {
                let mut binds = Vec::new();
                for bind in set {
                    let Some(bind) = bind else {
                        binds.push(Value::Null);
                        continue;
                    };
                    let known = buffers.iter().position(|buffer| buffer.same(&bind.buffer));
                    let index = match known {
                        Some(index) => index,
                        None => {
                            bytes.extend(gpu.read(&bind.buffer, 0, bind.buffer.bytes())?);
                            buffers.push(bind.buffer.clone());
                            buffers.len() - 1
                        }
                    };
                    binds.push(json!([index, bind.offset, bind.bytes]));
                }
                sets.push(binds);
            }
            steps.push(json!({ "kernel": kernel, "dims": step.dims(), "sets": sets }));
        }
        Ok((steps, buffers, bytes))
    }
}
