//! `inknib show model.gguf`: what a GGUF file holds and what it becomes here.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::common::{Ui, table};
use super::json::round;
use crate::Result;
use crate::quant::{Format, Offset};
use crate::text::gguf_vocab::chat_template;
use crate::weights::{Architecture, GgmlType, Gguf, WeightStore, becomes};

/// Tensors of one type.
#[derive(Default)]
struct Sum {
    tensors: usize,
    weights: u64,
    bytes: u64,
    /// On the GPU with `--weights auto`.
    resident: f64,
}

/// Prints the file's header; tensors are not read.
pub(super) fn run(path: &Path, ui: &Ui) -> Result<()> {
    let gguf = Gguf::open(path)?;
    let text = |key: &str| Ok::<_, crate::Error>(gguf.text(key)?.unwrap_or_default().to_string());
    let (name, architecture) = (text("general.name")?, text("general.architecture")?);
    let context = gguf.count(&format!("{architecture}.context_length"))?;
    let tokenizer = text("tokenizer.ggml.model")?;
    let split = text("tokenizer.ggml.pre")?;
    let tokens = gguf.texts("tokenizer.ggml.tokens")?.map_or(0, |tokens| tokens.len());
    let template = chat_template(&gguf)?.is_some();
    let sums = sums(&gguf);
    let weights: u64 = sums.values().map(|s| s.weights).sum();
    // An empty sum is -0.0.
    let per_weight = |bytes: f64| 8.0 * bytes / weights.max(1) as f64 + 0.0;
    let file_bits = per_weight(sums.values().map(|s| s.bytes as f64).sum());
    let here_bits = per_weight(sums.values().map(|s| s.resident).sum());
    // What would keep it from running is worth a line, not an exit: the rest can be shown anyway.
    let obstacle = Architecture::of(&gguf).and_then(|_| WeightStore::from_gguf(Gguf::open(path)?));
    let obstacle = obstacle.err().map(|e| e.to_string());
    if ui.json() {
        let types: Vec<Value> = sums
            .iter()
            .map(|(ty, s)| {
                json!({ "type": ty.to_string(), "tensors": s.tensors, "weights": s.weights,
                    "bytes": s.bytes, "becomes": here(*ty, gguf.is_quantized()) })
            })
            .collect();
        return ui.answer(&json!({ "gguf": path, "version": gguf.version(), "name": name,
            "architecture": architecture, "context": context, "weights": weights,
            "bits_per_weight": round(file_bits, 3), "bits_per_weight_resident": round(here_bits, 3),
            "tokenizer": { "model": tokenizer, "pre": split, "tokens": tokens },
            "chat_template": template, "types": types, "obstacle": obstacle }));
    }
    ui.line(&format!("{}: GGUF version {}", path.display(), gguf.version()))?;
    ui.line(&format!(
        "  {} ({architecture}), {weights} weights at {file_bits:.2} bits, {here_bits:.2} bits on the \
         GPU with --weights auto",
        if name.is_empty() { "without a name" } else { &name }
    ))?;
    ui.line(&format!(
        "  context {}, {tokens} tokens ({tokenizer}{}{split}), {} chat template",
        context.map_or("unknown".to_string(), |n| n.to_string()),
        if split.is_empty() { "" } else { ", " },
        if template { "with a" } else { "no" }
    ))?;
    types(&sums, gguf.is_quantized(), ui)?;
    match obstacle {
        Some(why) => ui.line(&format!("It does not run here: {why}")),
        None => Ok(()),
    }
}

fn sums(gguf: &Gguf) -> BTreeMap<GgmlType, Sum> {
    let mut sums: BTreeMap<GgmlType, Sum> = BTreeMap::new();
    for tensor in gguf.tensors().values() {
        let sum = sums.entry(tensor.ty).or_default();
        let bits = bits_here(tensor.ty, tensor.shape.len(), gguf.is_quantized());
        sum.tensors += 1;
        sum.weights += tensor.len() as u64;
        sum.bytes += tensor.bytes() as u64;
        sum.resident += bits * tensor.len() as f64 / 8.0;
    }
    sums
}

fn types(sums: &BTreeMap<GgmlType, Sum>, quantized: bool, ui: &Ui) -> Result<()> {
    let mut rows = table(&["type", "tensors", "weights", "MiB", "here"]);
    for (ty, s) in sums {
        rows.add_row([
            ty.to_string(),
            s.tensors.to_string(),
            s.weights.to_string(),
            format!("{:.2}", s.bytes as f64 / f64::from(1 << 20)),
            here(*ty, quantized).to_string(),
        ]);
    }
    ui.line(&rows.to_string())
}

/// What `--weights auto` makes of a type.
fn here(ty: GgmlType, quantized: bool) -> &'static str {
    match ty {
        GgmlType::Q4_0 => "int4 g32, exactly",
        GgmlType::Q4_1 => "int4 g32 with a least value per group, exactly",
        GgmlType::Q4K => "int4 g32 with a least value per group, scales rounded to f16",
        GgmlType::Q5_0 | GgmlType::Q8_0 => "int8 g32, exactly",
        GgmlType::Q5_1 | GgmlType::Q5K => "int8 g32, quantized again",
        GgmlType::Q6K => "int8 g16, scales rounded to f16",
        GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16 if !quantized => "int4, as --weights says",
        GgmlType::F16 => "fp16",
        GgmlType::F32 | GgmlType::Bf16 => "fp16; norms and biases fp32",
        GgmlType::Other(_) => "not read here",
    }
}

/// Bits on the GPU with `--weights auto`, scales counted; for plain files int4's default of 4.25.
fn bits_here(ty: GgmlType, axes: usize, quantized: bool) -> f64 {
    match becomes(ty) {
        _ if axes == 1 => 32.0,
        Some(Format::Q4 { group, offset, .. }) => {
            4.0 + if offset == Offset::None { 16.0 } else { 32.0 } / f64::from(group)
        }
        Some(Format::Q8 { group }) => 8.0 + 16.0 / f64::from(group),
        Some(Format::F32) => 32.0,
        Some(Format::F16) => 16.0,
        None if quantized => 16.0,
        None => 4.25,
    }
}
