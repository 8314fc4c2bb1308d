//! Configurations that checkpoints without a `config.json` imply: the published one of the family
//! (models/layouts/*.json), with every size that the tensors' shapes tell.
//!
//! Shapes do not tell numbers of heads and groups. Stable Diffusion 1.x has 8 heads everywhere, all
//! later UNets and all CLIPs heads of 64 channels, all nets 32 groups; where channels do not divide so
//! (small test models) it is 8 heads or as many as divide, and the largest power of two below 32.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::image_kind::ImageFamily;
use super::image_model::Part;

/// Shapes by diffusers' names.
pub(super) type Shapes = BTreeMap<String, Vec<usize>>;

const SD1: &str = include_str!("../../models/layouts/sd1.json");
const SD2: &str = include_str!("../../models/layouts/sd2.json");
const SDXL: &str = include_str!("../../models/layouts/sdxl.json");

/// The published configuration of a part (`unet`, `scheduler` …) in a family.
pub(super) fn published(family: ImageFamily, part: &str) -> Value {
    let text = match family {
        ImageFamily::Sd2 => SD2,
        ImageFamily::Sdxl | ImageFamily::SdxlRefiner => SDXL,
        ImageFamily::Sd1 | ImageFamily::Unconditional => SD1,
    };
    let whole: Value = serde_json::from_str(text).unwrap_or_default();
    whole.get(part).or_else(|| whole.get("text_encoder")).cloned().unwrap_or_default()
}

/// The family of a UNet. `encoders`: whether the file has a first and a second text encoder.
pub(super) fn family_of(unet: &Shapes, encoders: [bool; 2]) -> ImageFamily {
    let linear = unet.iter().any(|(n, s)| n.ends_with(".proj_in.weight") && s.len() == 2);
    match (unet.contains_key("add_embedding.linear_1.weight"), encoders) {
        (true, [false, true]) => ImageFamily::SdxlRefiner,
        // Without text encoders: the refiner reads OpenCLIP-G alone, 1280 channels.
        (true, [false, false]) if context(unet) == Some(1280) => ImageFamily::SdxlRefiner,
        (true, _) => ImageFamily::Sdxl,
        (false, _) if linear => ImageFamily::Sd2,
        (false, _) => ImageFamily::Sd1,
    }
}

fn context(unet: &Shapes) -> Option<usize> {
    let key = unet.iter().find(|(name, _)| name.ends_with(".attn2.to_k.weight"));
    key.and_then(|(_, shape)| shape.get(1)).copied()
}

/// Size `axis` of a tensor.
fn size(shapes: &Shapes, name: &str, axis: usize) -> Result<usize, String> {
    let found = shapes.get(name).and_then(|shape| shape.get(axis)).copied();
    found.ok_or_else(|| format!("there is no tensor `{name}` of more than {axis} axes"))
}

/// How many of `prefix0…`, `prefix1…` there are.
fn count(shapes: &Shapes, prefix: &str) -> usize {
    let there = |i: &usize| {
        let prefix = format!("{prefix}{i}.");
        shapes.range(prefix.clone()..).next().is_some_and(|(name, _)| name.starts_with(&prefix))
    };
    // A numbering has no gaps, and no model more of anything than it has tensors.
    (0..shapes.len()).take_while(there).count()
}

/// One number where all are equal, else the list.
fn one_or_list(list: &[usize]) -> Value {
    match list.iter().all(|n| Some(n) == list.first()) {
        true => json!(list.first().copied().unwrap_or(1)),
        false => json!(list),
    }
}

fn heads(channels: usize) -> usize {
    let divides = |n: &usize| channels.is_multiple_of(*n);
    match channels.is_multiple_of(64) {
        true => channels / 64,
        false => [8, 4, 2].into_iter().find(divides).unwrap_or(1),
    }
}

fn groups(widths: &[usize]) -> usize {
    let divides = |n: &usize| widths.iter().all(|w| w.is_multiple_of(*n));
    [32, 16, 8, 4, 2].into_iter().find(divides).unwrap_or(1)
}

/// Writes fields over a configuration.
fn with(mut base: Value, fields: Value) -> Value {
    if let (Some(base), Value::Object(fields)) = (base.as_object_mut(), fields) {
        base.extend(fields);
    }
    base
}

/// The configuration of a part; `pooled`: channels of the pooled text, for the UNets that take it.
///
/// # Errors
/// What is missing, or has a shape that no model of the family has.
pub(super) fn config(
    family: ImageFamily,
    part: Part,
    shapes: &Shapes,
    pooled: Option<usize>,
) -> Result<Value, String> {
    let base = published(family, part.folder());
    match part {
        Part::Unet => unet(family, shapes, base, pooled),
        Part::Vae => vae(shapes, base),
        Part::TextEncoder | Part::TextEncoder2 => clip(shapes, base),
    }
}

fn unet(
    family: ImageFamily,
    shapes: &Shapes,
    base: Value,
    pooled: Option<usize>,
) -> Result<Value, String> {
    let levels = count(shapes, "down_blocks.");
    let width = |i: usize| size(shapes, &format!("down_blocks.{i}.resnets.0.conv1.weight"), 0);
    let widths = (0..levels).map(width).collect::<Result<Vec<_>, _>>()?;
    if levels == 0 || count(shapes, "up_blocks.") != levels {
        return Err(format!("it has {levels} levels down and another number up"));
    }
    let layers: Vec<usize> =
        (0..levels).map(|i| count(shapes, &format!("down_blocks.{i}.resnets."))).collect();
    let depth = |place: String| count(shapes, &format!("{place}.attentions.0.transformer_blocks."));
    let mut depths = Vec::with_capacity(levels);
    for i in 0..levels {
        let (down, up) =
            (depth(format!("down_blocks.{i}")), depth(format!("up_blocks.{}", levels - 1 - i)));
        let mid = if i + 1 == levels { depth("mid_block".into()) } else { 0 };
        let found: Vec<usize> = [down, up, mid].into_iter().filter(|n| *n > 0).collect();
        if found.iter().any(|n| *n != found[0]) {
            return Err(format!(
                "level {i} has {down} transformer blocks down, {up} up, {mid} between"
            ));
        }
        depths.push(found.first().copied().unwrap_or(1));
    }
    let kinds = |way: &str, plain: &str, cross: &str| -> Vec<String> {
        let has = |i: &usize| depth(format!("{way}.{i}")) > 0;
        (0..levels).map(|i| if has(&i) { cross.into() } else { plain.into() }).collect()
    };
    let heads = match family {
        ImageFamily::Sd1 => json!(8),
        _ => json!(widths.iter().map(|&c| heads(c)).collect::<Vec<_>>()),
    };
    let mut fields = json!({
        "in_channels": size(shapes, "conv_in.weight", 1)?,
        "out_channels": size(shapes, "conv_out.weight", 0)?,
        "block_out_channels": widths,
        "down_block_types": kinds("down_blocks", "DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": kinds("up_blocks", "UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": one_or_list(&layers),
        "transformer_layers_per_block": one_or_list(&depths),
        "attention_head_dim": heads,
        "norm_num_groups": groups(&widths),
        "cross_attention_dim": context(shapes).ok_or("it has no cross attention")?,
    });
    if let Ok(guidance) = size(shapes, "time_embedding.cond_proj.weight", 1) {
        fields["time_cond_proj_dim"] = json!(guidance);
    }
    if let Ok(all) = size(shapes, "add_embedding.linear_1.weight", 1) {
        // Beside the pooled text: three pairs of sizes, the refiner two pairs and a score.
        let numbers = if family == ImageFamily::SdxlRefiner { 5 } else { 6 };
        let each = all.saturating_sub(pooled.unwrap_or(1280)) / numbers;
        fields["projection_class_embeddings_input_dim"] = json!(all);
        fields["addition_time_embed_dim"] = json!(each);
    }
    Ok(with(base, fields))
}

fn vae(shapes: &Shapes, base: Value) -> Result<Value, String> {
    let levels = count(shapes, "decoder.up_blocks.");
    let width =
        |i: usize| size(shapes, &format!("decoder.up_blocks.{i}.resnets.0.conv1.weight"), 0);
    let widths = (0..levels).rev().map(width).collect::<Result<Vec<_>, _>>()?;
    let layers = count(shapes, "decoder.up_blocks.0.resnets.");
    if levels == 0 || layers < 2 {
        return Err("its decoder has no blocks".into());
    }
    let fields = json!({
        "latent_channels": size(shapes, "decoder.conv_in.weight", 1)?,
        "out_channels": size(shapes, "decoder.conv_out.weight", 0)?,
        "block_out_channels": widths,
        "layers_per_block": layers - 1,
        "norm_num_groups": groups(&widths),
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
    });
    Ok(with(base, fields))
}

fn clip(shapes: &Shapes, base: Value) -> Result<Value, String> {
    let table = "text_model.embeddings.token_embedding.weight";
    let width = size(shapes, table, 1)?;
    let layers = count(shapes, "text_model.encoder.layers.");
    let mut fields = json!({
        "vocab_size": size(shapes, table, 0)?,
        "hidden_size": width,
        "intermediate_size": size(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", 0)?,
        "num_hidden_layers": layers,
        "num_attention_heads": heads(width),
        "max_position_embeddings":
            size(shapes, "text_model.embeddings.position_embedding.weight", 0)?,
    });
    if let Ok(projection) = size(shapes, "text_projection.weight", 0) {
        fields["projection_dim"] = json!(projection);
    }
    Ok(with(base, fields))
}
