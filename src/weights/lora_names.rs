//! What the tensors of a LoRA file are called. Every program has names of its own; here a module of the net
//! has one, diffusers' path with underscores for dots and without `text_model`, because kohya's names do not
//! tell the two apart.

/// The net that a module belongs to, named as the folders of a model are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LoraNet {
    Unet,
    TextEncoder,
    TextEncoder2,
}

impl LoraNet {
    /// The folder's name.
    pub fn name(self) -> &'static str {
        match self {
            LoraNet::Unet => "unet",
            LoraNet::TextEncoder => "text_encoder",
            LoraNet::TextEncoder2 => "text_encoder_2",
        }
    }
}

/// What a tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Down,
    Up,
    Alpha,
}

/// The ends of names, longest first where one ends in another.
const PARTS: [(&str, Part); 14] = [
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    ("_lora.down.weight", Part::Down),
    ("_lora.up.weight", Part::Up),
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_linear_layer.alpha", Part::Alpha),
    ("_lora.alpha", Part::Alpha),
    (".lora.alpha", Part::Alpha),
    (".alpha", Part::Alpha),
];

/// Parts of names that tell of another kind of adapter, and what it is called.
const OTHER_KINDS: [(&str, &str); 14] = [
    ("lora_mid", "LoCon with a middle matrix"),
    ("hada_w", "LoHa"),
    ("lokr_w", "LoKr"),
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("oft_blocks", "OFT"),
    ("oft_diag", "OFT"),
    ("oft_R", "OFT"),
    ("on_input", "IA3"),
    ("lora_embedding_", "LoRA of an embedding"),
    ("lora_A.bias", "LoRA with biases"),
    ("lora_B.bias", "LoRA with biases"),
    (".diff", "a full difference of weights"),
    ("bundle_emb", "LoRA bundled with textual inversions"),
];

/// How names begin. PEFT's own files do not name the net.
const NETS: [(&str, LoraNet); 9] = [
    ("lora_unet_", LoraNet::Unet),
    ("lora_te1_", LoraNet::TextEncoder),
    ("lora_te2_", LoraNet::TextEncoder2),
    ("lora_te_", LoraNet::TextEncoder),
    ("unet.", LoraNet::Unet),
    ("text_encoder_2.", LoraNet::TextEncoder2),
    ("text_encoder.", LoraNet::TextEncoder),
    ("model.diffusion_model.", LoraNet::Unet),
    ("diffusion_model.", LoraNet::Unet),
];

/// Net, module and part of the tensor `name`; `Err` says what it is instead.
pub(super) fn parse(name: &str) -> Result<(LoraNet, String, Part), String> {
    if let Some((_, kind)) = OTHER_KINDS.iter().find(|(mark, _)| name.contains(mark)) {
        return Err(format!("is {kind}, which is not supported; supported is plain LoRA"));
    }
    let Some((module, part)) = split(name) else {
        return Err("is no part of a LoRA that is known here: names end in lora_down.weight, \
                    lora_A.weight, lora.down.weight, their other halves, or alpha"
            .into());
    };
    let bare = |name: &'_ str| name.strip_prefix("base_model.model.").map(str::to_string);
    let module = bare(&module).unwrap_or(module);
    let net = NETS.iter().find_map(|(start, net)| Some((*net, module.strip_prefix(start)?)));
    let (net, module) = match net {
        Some((net, module)) => (net, module),
        None if module.starts_with("text_model.") => (LoraNet::TextEncoder, module.as_str()),
        None if module.starts_with("lora_") => {
            return Err("belongs to a net that no model here has".into());
        }
        None => (LoraNet::Unet, module.as_str()),
    };
    let module = flat(&bare(module).unwrap_or_else(|| module.to_string()));
    Ok((net, if net == LoraNet::Unet { unet_module(&module) } else { text_module(&module) }, part))
}

/// A module's path as it is compared: `text_model.encoder.layers.0` → `encoder_layers_0`.
pub(super) fn flat(path: &str) -> String {
    let flat = path.replace('.', "_");
    flat.strip_prefix("text_model_").map(str::to_string).unwrap_or(flat)
}

/// Takes the end that names the part off, the adapter's name in PEFT's unsaved form
/// (`lora_A.default.weight`) as well.
fn split(name: &str) -> Option<(String, Part)> {
    let found = PARTS.iter().find_map(|(end, part)| Some((name.strip_suffix(end)?, *part)));
    if let Some((module, part)) = found {
        return Some((module.to_string(), part));
    }
    let (rest, _adapter) = name.strip_suffix(".weight")?.rsplit_once('.')?;
    let ends = [(".lora_A", Part::Down), (".lora_B", Part::Up)];
    ends.iter().find_map(|(end, part)| Some((rest.strip_suffix(end)?.to_string(), *part)))
}

/// diffusers before 0.21 kept adapters in `processor`s, where `to_out` is the layer `to_out.0`.
fn unet_module(flat: &str) -> String {
    let module = from_blocks(flat).unwrap_or_else(|| flat.to_string());
    let module = module.replace("_processor_to_", "_to_");
    match module.ends_with("_to_out") {
        true => module + "_0",
        false => module,
    }
}

/// The same files call the text encoder's projections as the UNet's.
fn text_module(flat: &str) -> String {
    let renames = [
        ("self_attn_to_q", "self_attn_q_proj"),
        ("self_attn_to_k", "self_attn_k_proj"),
        ("self_attn_to_v", "self_attn_v_proj"),
        ("self_attn_to_out_0", "self_attn_out_proj"),
        ("self_attn_to_out", "self_attn_out_proj"),
    ];
    let found = renames
        .iter()
        .find_map(|(from, to)| flat.strip_suffix(from).map(|start| format!("{start}{to}")));
    found.unwrap_or_else(|| flat.to_string())
}

/// Resnets, then the change of size, in a level of Stable Diffusion's UNets, all of which have two
/// resnets on the way down and three on the way up.
const PER_LEVEL: usize = 3;

/// A module by diffusers' name out of the original program's numbered blocks
/// (`input_blocks_4_1_proj_in` → `down_blocks_1_attentions_0_proj_in`); None for other names.
fn from_blocks(flat: &str) -> Option<String> {
    for (from, to) in [
        ("time_embed_0", "time_embedding_linear_1"),
        ("time_embed_2", "time_embedding_linear_2"),
        ("label_emb_0_0", "add_embedding_linear_1"),
        ("label_emb_0_2", "add_embedding_linear_2"),
        ("input_blocks_0_0", "conv_in"),
        ("out_2", "conv_out"),
    ] {
        if flat == from {
            return Some(to.to_string());
        }
    }
    if let Some(rest) = flat.strip_prefix("middle_block_") {
        let (number, rest) = rest.split_once('_')?;
        let block = match number {
            "0" => "resnets_0",
            "1" => "attentions_0",
            "2" => "resnets_1",
            _ => return None,
        };
        return Some(format!("mid_block_{block}_{}", inner(rest)));
    }
    let (up, rest) = match flat.strip_prefix("input_blocks_") {
        Some(rest) => (false, rest),
        None => (true, flat.strip_prefix("output_blocks_")?),
    };
    let mut words = rest.splitn(3, '_');
    let block: usize = words.next()?.parse().ok()?;
    let _place_in_block: usize = words.next()?.parse().ok()?;
    let rest = words.next()?;
    // The first block on the way down is conv_in.
    let block = if up { block } else { block.checked_sub(1)? };
    let (level, layer) = (block / PER_LEVEL, block % PER_LEVEL);
    let side = if up { "up" } else { "down" };
    Some(match rest {
        "op" => format!("down_blocks_{level}_downsamplers_0_conv"),
        "conv" => format!("up_blocks_{level}_upsamplers_0_conv"),
        _ if inner(rest) != rest => {
            format!("{side}_blocks_{level}_resnets_{layer}_{}", inner(rest))
        }
        _ => format!("{side}_blocks_{level}_attentions_{layer}_{rest}"),
    })
}

/// The layers of a resnet; those of a transformer have the same names everywhere.
fn inner(rest: &str) -> &str {
    match rest {
        "in_layers_0" => "norm1",
        "in_layers_2" => "conv1",
        "emb_layers_1" => "time_emb_proj",
        "out_layers_0" => "norm2",
        "out_layers_3" => "conv2",
        "skip_connection" => "conv_shortcut",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names out of published files, with what diffusers makes of them.
    #[test]
    fn every_programs_names_become_one() {
        let (unet, te, te2) = (LoraNet::Unet, LoraNet::TextEncoder, LoraNet::TextEncoder2);
        let (down, up, alpha) = (Part::Down, Part::Up, Part::Alpha);
        let q = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
        let o = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0";
        let dotted = "down_blocks.0.attentions.0.transformer_blocks.0.attn1";
        let clip = "encoder_layers_11_self_attn_q_proj";
        for (name, net, module, part) in [
            (format!("lora_unet_{q}.lora_down.weight"), unet, q, down),
            (format!("lora_unet_{o}.alpha"), unet, o, alpha),
            (format!("unet.{dotted}.to_q.lora_A.weight"), unet, q, down),
            (format!("unet.{dotted}.to_q.lora_B.style.weight"), unet, q, up),
            (format!("unet.{dotted}.to_q.lora.up.weight"), unet, q, up),
            (format!("unet.base_model.model.{dotted}.to_q.lora_B.weight"), unet, q, up),
            (format!("base_model.model.{dotted}.to_out.0.lora_A.weight"), unet, o, down),
            (format!("{dotted}.processor.to_q_lora.down.weight"), unet, q, down),
            (format!("unet.{dotted}.processor.to_out_lora.up.weight"), unet, o, up),
            (format!("lora_te_text_model_{clip}.lora_up.weight"), te, clip, up),
            (format!("lora_te1_text_model_{clip}.lora_up.weight"), te, clip, up),
            (format!("lora_te2_text_model_{clip}.alpha"), te2, clip, alpha),
            (
                "text_encoder.text_model.encoder.layers.11.self_attn.q_proj.lora_linear_layer.down.weight"
                    .into(),
                te,
                clip,
                down,
            ),
            ("text_encoder_2.encoder.layers.11.self_attn.q_proj.lora_A.weight".into(), te2, clip, down),
            ("base_model.model.text_model.encoder.layers.11.self_attn.q_proj.lora_A.weight".into(), te, clip, down),
            ("text_encoder.text_model.encoder.layers.11.self_attn.to_q_lora.up.weight".into(), te, clip, up),
        ] {
            assert_eq!(parse(&name), Ok((net, module.to_string(), part)), "{name}");
        }
    }

    #[test]
    fn numbered_blocks_become_levels() {
        for (from, to) in [
            ("input_blocks_0_0", "conv_in"),
            ("input_blocks_1_0_in_layers_2", "down_blocks_0_resnets_0_conv1"),
            ("input_blocks_1_1_proj_in", "down_blocks_0_attentions_0_proj_in"),
            ("input_blocks_3_0_op", "down_blocks_0_downsamplers_0_conv"),
            ("input_blocks_4_0_skip_connection", "down_blocks_1_resnets_0_conv_shortcut"),
            (
                "input_blocks_8_1_transformer_blocks_9_attn2_to_out_0",
                "down_blocks_2_attentions_1_transformer_blocks_9_attn2_to_out_0",
            ),
            ("middle_block_0_emb_layers_1", "mid_block_resnets_0_time_emb_proj"),
            (
                "middle_block_1_transformer_blocks_3_ff_net_0_proj",
                "mid_block_attentions_0_transformer_blocks_3_ff_net_0_proj",
            ),
            ("middle_block_2_out_layers_3", "mid_block_resnets_1_conv2"),
            ("output_blocks_2_1_conv", "up_blocks_0_upsamplers_0_conv"),
            ("output_blocks_2_2_conv", "up_blocks_0_upsamplers_0_conv"),
            ("output_blocks_5_1_proj_out", "up_blocks_1_attentions_2_proj_out"),
            ("output_blocks_8_0_in_layers_2", "up_blocks_2_resnets_2_conv1"),
            ("time_embed_2", "time_embedding_linear_2"),
            ("label_emb_0_0", "add_embedding_linear_1"),
            ("out_2", "conv_out"),
        ] {
            let expected = Ok((LoraNet::Unet, to.to_string(), Part::Up));
            assert_eq!(parse(&format!("lora_unet_{from}.lora_up.weight")), expected, "{from}");
        }
    }

    #[test]
    fn numbered_blocks_may_have_dots() {
        let name =
            "diffusion_model.output_blocks.4.1.transformer_blocks.1.attn2.to_k.lora_A.weight";
        let module = "up_blocks_1_attentions_1_transformer_blocks_1_attn2_to_k".to_string();
        assert_eq!(parse(name), Ok((LoraNet::Unet, module, Part::Down)));
    }

    #[test]
    fn other_kinds_are_named() {
        for (end, kind) in [
            ("lora_mid.weight", "LoCon"),
            ("hada_w1_a", "LoHa"),
            ("lokr_w2", "LoKr"),
            ("dora_scale", "DoRA"),
            ("diff_b", "full difference"),
            ("weight", "no part of a LoRA"),
        ] {
            let error = parse(&format!("lora_unet_mid_block_resnets_0_conv1.{end}")).unwrap_err();
            assert!(error.contains(kind), "{end}: {error}");
        }
        assert!(parse("lora_prior_x.alpha").unwrap_err().contains("no model here"));
    }
}
