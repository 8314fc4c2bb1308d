//! Every family in every packed format.

use inknib::nets::language::{Language, LanguageConfig};
use inknib::nn::Loader;
use inknib::quant::Recipe;
use inknib::weights::WeightStore;
use serde_json::json;

use super::pack::{Scheme, awq, compressed, gptq};
use super::{Net, PLAIN, check, compressed_config, gpu, packed_and_plain, write};

/// Four bits in groups of 16 and 32 change the logits of these nets by 7 to 40 per cent.
const fn net(case: &'static str, layers: usize) -> Net {
    Net { case, with_head: false, layers, loss: 0.05..0.5 }
}

/// The golden folders of every family, and the group size that divides their widths.
pub(super) const NETS: [(Net, usize); 18] = [
    (net("llama", 14), 32),
    (net("llama3rope", 14), 32),
    (net("llama_tied", 14), 32),
    (net("mistral", 14), 16),
    (net("qwen2", 14), 32),
    (net("qwen2_yarn", 14), 32),
    (net("qwen3", 14), 16),
    (net("smollm3", 21), 32),
    (net("olmo2", 14), 32),
    (net("phi", 12), 16),
    (net("phi3", 8), 32),
    (net("phi3_long", 8), 32),
    (net("gemma", 14), 16),
    (net("gemma2", 14), 16),
    (net("gemma3", 21), 16),
    (net("gemma3_vision", 21), 16),
    (net("gpt2", 8), 32),
    (net("gpt2_bare", 8), 32),
];

#[test]
fn gptq_of_every_family() {
    for (net, group) in NETS {
        let config = json!({"quant_method": "gptq", "bits": 4, "group_size": group, "sym": true,
                            "desc_act": false});
        let scheme = Scheme { group, symmetric: true, ..PLAIN };
        check("gptq v1", &net, scheme, &config, |q| gptq(q, 1));
    }
}

/// The columns of a group lie apart and zero points are stored as they are, also in layers that are taken apart along their rows (Phi-3's and
/// GPT-2's fused ones).
#[test]
fn gptq_v2_with_act_order_of_every_family() {
    for (net, group) in NETS {
        let config = json!({"quant_method": "gptq", "bits": 4, "group_size": group, "sym": false,
                            "desc_act": true, "checkpoint_format": "gptq_v2"});
        let scheme = Scheme { group, scattered: true, ..PLAIN };
        check("gptq v2 desc_act", &net, scheme, &config, |q| gptq(q, 0));
    }
}

/// GPTQModel's `lm_head: true`, and compressed-tensors without `ignore`; Phi's head has a bias.
#[test]
fn heads_may_be_packed_too() {
    for (case, layers) in [("llama", 15), ("phi", 13)] {
        let net = Net { with_head: true, ..net(case, layers) };
        let scheme = Scheme { group: 16, symmetric: true, ..PLAIN };
        let config = json!({"quant_method": "gptq", "bits": 4, "group_size": 16, "sym": true,
                            "desc_act": false, "lm_head": true});
        check("gptq v1 with head", &net, scheme, &config, |q| gptq(q, 1));
        let mut config = compressed_config(Some(16), true);
        config["ignore"] = json!([]);
        check("ct with head", &net, scheme, &config, |q| compressed(q, false, false));
    }
}

/// AutoAWQ itself has no GPT-2. Its layout `[K, N/8]` says which axis is which, so that it is read.
#[test]
fn awq_of_every_family() {
    for (net, group) in NETS {
        let config =
            json!({"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"});
        check("awq", &net, Scheme { group, ..PLAIN }, &config, awq);
    }
}

#[test]
fn compressed_tensors_of_every_family() {
    for (net, group) in NETS.into_iter().filter(|(net, _)| !net.case.starts_with("gpt2")) {
        let config = compressed_config(Some(group), false);
        check("ct", &net, Scheme { group, ..PLAIN }, &config, |q| compressed(q, true, false));
        let scheme = Scheme { group, symmetric: true, ..PLAIN };
        let config = compressed_config(Some(group), true);
        check("ct sym", &net, scheme, &config, |q| compressed(q, false, false));
    }
}

/// llm-compressor quantizes linear layers, which GPT-2 has none of; a file that holds its `Conv1D`
/// nevertheless does not say along which axis the groups of a square one run.
#[test]
fn compressed_tensors_of_a_gpt2_are_refused() {
    let Some(gpu) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (parts, _, _) = packed_and_plain("gpt2", false, PLAIN, |q| compressed(q, true, false));
    write(folder.path(), "gpt2", &parts, Some(&compressed_config(Some(32), false)));
    let config = LanguageConfig::read(folder.path()).unwrap();
    let store = WeightStore::open(folder.path()).unwrap();
    let recipe = Recipe::from_argument("auto", "llm").unwrap();
    let error = Language::load(&Loader::new(gpu, &store, &recipe), &config).err().unwrap();
    let text = error.to_string();
    assert!(text.contains("Conv1D") && text.contains("`transformer.h.0."), "{text}");
    assert!(text.contains("original checkpoint"), "{text}");
}
