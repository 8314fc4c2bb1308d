//! The tensors that a configuration asks for, by name: what is missing from a checkpoint, and what is
//! there that its configuration does not know, is said before anything is loaded.

use std::collections::BTreeSet;

use serde_json::Value;

use super::image_model::Part;
use super::nearest_names;

/// What a part has to have and may have.
#[derive(Debug, Default)]
pub(super) struct Expected {
    pub(super) needed: BTreeSet<String>,
    /// Beside those: a VAE's encoder, which painting from text does without, a projection of CLIP's.
    pub(super) possible: BTreeSet<String>,
}

/// The tensors of a part; `None` for a configuration of another kind than those listed here, whose net
/// then says itself what it lacks.
pub(super) fn expected(part: Part, config: &Value) -> Option<Expected> {
    let class = config.get("_class_name").and_then(Value::as_str);
    match (part, class) {
        (Part::Unet, None | Some("UNet2DConditionModel")) => unet(config),
        (Part::Vae, None | Some("AutoencoderKL")) => vae(config),
        (Part::TextEncoder | Part::TextEncoder2, _) => clip(config),
        _ => None,
    }
}

/// What is wrong with a part that has the tensors `names`, by diffusers' names, if anything is.
pub(super) fn complaint(expected: &Expected, names: &[String]) -> Option<String> {
    let there: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let missing: Vec<&String> =
        expected.needed.iter().filter(|n| !there.contains(n.as_str())).collect();
    let known = |n: &&&String| !expected.needed.contains(**n) && !expected.possible.contains(**n);
    let spare: Vec<&String> =
        names.iter().collect::<Vec<_>>().iter().filter(known).copied().collect();
    let list = |all: &[&String]| {
        let first: Vec<String> = all.iter().take(3).map(|n| format!("`{n}`")).collect();
        format!("{}{}", first.join(", "), if all.len() > 3 { " …" } else { "" })
    };
    if let Some(first) = missing.first() {
        let from = if spare.is_empty() { names.iter().collect() } else { spare };
        return Some(format!(
            "lacks {} of the {} tensors that its configuration asks for: {}{}",
            missing.len(),
            expected.needed.len(),
            list(&missing),
            nearest_names(first, from.into_iter().map(String::as_str))
        ));
    }
    let first = spare.first()?;
    Some(format!(
        "has {} tensors that its configuration does not know: {}{}; the configuration belongs to \
         another model",
        spare.len(),
        list(&spare),
        nearest_names(first, expected.needed.iter().map(String::as_str))
    ))
}

/// Names below places, collected.
#[derive(Default)]
struct List(BTreeSet<String>);

impl List {
    /// `place.name.weight` and `place.name.bias`.
    fn both(&mut self, place: &str, names: &[&str]) {
        for name in names {
            self.0.insert(format!("{place}{name}.weight"));
            self.0.insert(format!("{place}{name}.bias"));
        }
    }
    fn weights(&mut self, place: &str, names: &[&str]) {
        self.0.extend(names.iter().map(|name| format!("{place}{name}.weight")));
    }
    fn resnet(&mut self, place: &str, time: bool, shortcut: bool) {
        self.both(place, &["norm1", "conv1", "norm2", "conv2"]);
        self.both(place, if time { &["time_emb_proj"] } else { &[] });
        self.both(place, if shortcut { &["conv_shortcut"] } else { &[] });
    }
    fn transformer(&mut self, place: &str, depth: usize) {
        self.both(place, &["norm", "proj_in", "proj_out"]);
        for i in 0..depth {
            let block = format!("{place}transformer_blocks.{i}.");
            self.both(&block, &["norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"]);
            self.both(&block, &["attn1.to_out.0", "attn2.to_out.0"]);
            self.weights(&block, &["attn1.to_q", "attn1.to_k", "attn1.to_v"]);
            self.weights(&block, &["attn2.to_q", "attn2.to_k", "attn2.to_v"]);
        }
    }
}

/// More of anything than models have is a broken file.
const MOST: u64 = 1 << 12;

fn number(config: &Value, field: &str) -> Option<usize> {
    let n = config.get(field)?.as_u64().filter(|n| *n <= MOST);
    n.map(|n| n as usize)
}

/// Widths may be larger than counts.
fn widths(config: &Value) -> Option<Vec<u64>> {
    config.get("block_out_channels")?.as_array()?.iter().map(Value::as_u64).collect()
}

fn texts<'a>(config: &'a Value, field: &str) -> Option<Vec<&'a str>> {
    config.get(field)?.as_array()?.iter().map(Value::as_str).collect()
}

/// A number for all levels or one for each, `default` where the field is absent.
fn per_level(config: &Value, field: &str, levels: usize, default: usize) -> Option<Vec<usize>> {
    match config.get(field) {
        None | Some(Value::Null) => Some(vec![default; levels]),
        Some(Value::Array(list)) if list.len() == levels => {
            list.iter().map(|n| n.as_u64().filter(|n| *n <= MOST).map(|n| n as usize)).collect()
        }
        Some(_) => Some(vec![number(config, field)?; levels]),
    }
}

fn unet(config: &Value) -> Option<Expected> {
    let is_null = |field: &str| config.get(field).is_none_or(Value::is_null);
    let plain = ["class_embed_type", "encoder_hid_dim_type", "num_class_embeds"];
    if !plain.into_iter().all(is_null) {
        return None;
    }
    let widths = widths(config)?;
    let (levels, last) = (widths.len(), widths.len().checked_sub(1)?);
    let layers = per_level(config, "layers_per_block", levels, 2)?;
    let depths = per_level(config, "transformer_layers_per_block", levels, 1)?;
    let kinds = [texts(config, "down_block_types")?, texts(config, "up_block_types")?];
    if kinds.iter().any(|list| list.len() != levels) {
        return None;
    }
    let mut list = List::default();
    list.both("", &["conv_in", "conv_norm_out", "conv_out"]);
    list.both("time_embedding.", &["linear_1", "linear_2"]);
    match config.get("addition_embed_type").and_then(Value::as_str) {
        Some("text_time") => list.both("add_embedding.", &["linear_1", "linear_2"]),
        Some(_) => return None,
        None => {}
    }
    if !is_null("time_cond_proj_dim") {
        list.weights("time_embedding.", &["cond_proj"]);
    }
    for (i, kind) in kinds[0].iter().enumerate() {
        let place = format!("down_blocks.{i}.");
        for j in 0..layers[i] {
            let from = if j == 0 { widths[i.saturating_sub(1)] } else { widths[i] };
            list.resnet(&format!("{place}resnets.{j}."), true, from != widths[i]);
            if kind.starts_with("CrossAttn") {
                list.transformer(&format!("{place}attentions.{j}."), depths[i]);
            }
        }
        list.both(&place, if i < last { &["downsamplers.0.conv"] } else { &[] });
    }
    list.resnet("mid_block.resnets.0.", true, false);
    list.resnet("mid_block.resnets.1.", true, false);
    list.transformer("mid_block.attentions.0.", depths[last]);
    for (i, kind) in kinds[1].iter().enumerate() {
        let (place, level) = (format!("up_blocks.{i}."), last - i);
        for j in 0..layers[level] + 1 {
            // Every resnet on the way up reads a skip beside its input.
            list.resnet(&format!("{place}resnets.{j}."), true, true);
            if kind.starts_with("CrossAttn") {
                list.transformer(&format!("{place}attentions.{j}."), depths[level]);
            }
        }
        list.both(&place, if i < last { &["upsamplers.0.conv"] } else { &[] });
    }
    Some(Expected { needed: list.0, possible: BTreeSet::new() })
}

fn vae(config: &Value) -> Option<Expected> {
    let widths = widths(config)?;
    let last = widths.len().checked_sub(1)?;
    let layers = number(config, "layers_per_block").or(Some(1))?;
    let flag = |field: &str| config.get(field).and_then(Value::as_bool).unwrap_or(true);
    let half = |list: &mut List, place: &str| {
        list.both(place, &["conv_in", "conv_norm_out", "conv_out"]);
        list.resnet(&format!("{place}mid_block.resnets.0."), false, false);
        list.resnet(&format!("{place}mid_block.resnets.1."), false, false);
        let attention = format!("{place}mid_block.attentions.0.");
        if flag("mid_block_add_attention") {
            list.both(&attention, &["group_norm", "to_q", "to_k", "to_v", "to_out.0"]);
        }
    };
    let (mut decoder, mut encoder) = (List::default(), List::default());
    half(&mut decoder, "decoder.");
    half(&mut encoder, "encoder.");
    decoder.both("", if flag("use_post_quant_conv") { &["post_quant_conv"] } else { &[] });
    encoder.both("", if flag("use_quant_conv") { &["quant_conv"] } else { &[] });
    for i in 0..=last {
        let (down, up) = (format!("encoder.down_blocks.{i}."), format!("decoder.up_blocks.{i}."));
        for j in 0..layers {
            let changes = j == 0 && widths[i.saturating_sub(1)] != widths[i];
            encoder.resnet(&format!("{down}resnets.{j}."), false, changes);
        }
        for j in 0..layers + 1 {
            let changes = j == 0 && i > 0 && widths[last - i + 1] != widths[last - i];
            decoder.resnet(&format!("{up}resnets.{j}."), false, changes);
        }
        if i < last {
            encoder.both(&down, &["downsamplers.0.conv"]);
            decoder.both(&up, &["upsamplers.0.conv"]);
        }
    }
    Some(Expected { needed: decoder.0, possible: encoder.0 })
}

fn clip(config: &Value) -> Option<Expected> {
    let layers = number(config, "num_hidden_layers")?;
    let mut list = List::default();
    list.weights("text_model.embeddings.", &["token_embedding", "position_embedding"]);
    list.both("text_model.", &["final_layer_norm"]);
    for i in 0..layers {
        let layer = format!("text_model.encoder.layers.{i}.");
        list.both(&layer, &["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"]);
        let attention = format!("{layer}self_attn.");
        list.both(&attention, &["q_proj", "k_proj", "v_proj", "out_proj"]);
    }
    let possible = BTreeSet::from(["text_projection.weight".to_string()]);
    Some(Expected { needed: list.0, possible })
}
