use serde_json::json;

use super::*;

fn read(mut config: Value, extra: Value) -> Result<LanguageConfig, String> {
    let all = config.as_object_mut().unwrap();
    all.extend(extra.as_object().unwrap().clone());
    LanguageConfig::from_json(&config, Path::new("x/config.json")).map_err(|e| e.to_string())
}

fn small(family: &str) -> Value {
    json!({"model_type": family, "vocab_size": 8, "hidden_size": 64, "intermediate_size": 8,
        "num_hidden_layers": 8, "num_attention_heads": 8, "head_dim": 16})
}

fn llama(family: &str, extra: Value) -> LlamaConfig {
    match read(small(family), extra).unwrap().net {
        NetConfig::Llama(c) => c,
        other => panic!("{other:?}"),
    }
}

/// The windows of the layers, and whether they have positions.
fn windows(c: &LlamaConfig) -> Vec<usize> {
    c.layers.iter().map(|layer| layer.window.unwrap_or(0)).collect()
}

#[test]
fn another_family_is_refused_with_the_names_of_those_there_are() {
    let e = read(small("mixtral"), json!({})).unwrap_err();
    assert!(e.contains("x/config.json") && e.contains("mixtral"), "{e}");
    for family in FAMILIES {
        assert!(e.contains(family), "{e}");
    }
}

#[test]
fn every_family_is_read_and_says_its_sizes() {
    for family in FAMILIES {
        let gpt2 = json!({"n_embd": 64, "n_head": 4, "n_layer": 8, "n_positions": 1024});
        let extra = if family == "gpt2" { gpt2 } else { json!({}) };
        let c = read(small(family), extra).unwrap();
        assert_eq!((c.vocab_size(), c.hidden_size(), c.layers()), (8, 64, 8), "{family}");
        assert!(c.max_position_embeddings() >= 1024);
        assert_eq!(c.family(), family.trim_end_matches("_text"));
    }
    let absent = small("llama");
    let mut absent = absent.as_object().unwrap().clone();
    absent.remove("model_type");
    assert_eq!(read(Value::Object(absent), json!({})).unwrap().family(), "llama");
}

#[test]
fn what_is_not_supported_is_refused_by_field_and_value() {
    for (family, extra, named) in [
        ("llama", json!({"num_local_experts": 8}), "`num_local_experts` is 8"),
        ("qwen3", json!({"num_experts": 128}), "`num_experts` is 128"),
        ("llama", json!({"attention_sinks": 4}), "`attention_sinks` is 4"),
        (
            "gemma3",
            json!({"use_bidirectional_attention": true}),
            "`use_bidirectional_attention` is true",
        ),
        ("llama", json!({"hidden_act": "relu2"}), "`hidden_act` is \"relu2\""),
        ("llama", json!({"partial_rotary_factor": 0.5}), "`partial_rotary_factor` 0.5"),
        ("qwen2", json!({"layer_types": vec!["linear_attention"; 8]}), "linear_attention"),
        ("qwen2", json!({"layer_types": ["full_attention"]}), "`layer_types` has 1 of 8 layers"),
        ("smollm3", json!({"no_rope_layers": [1]}), "`no_rope_layers` has 1 of 8 layers"),
        ("llama", json!({"num_key_value_heads": 3}), "8 heads over 3 key/value heads"),
        ("llama", json!({"hidden_size": "64"}), "`hidden_size` is \"64\""),
        ("llama", json!({"hidden_size": 1e30}), "`hidden_size`"),
        ("llama", json!({"vocab_size": null}), "there is no `vocab_size`"),
        ("llama", json!({"num_hidden_layers": 100_000}), "`num_hidden_layers` is 100000"),
        ("gemma2", json!({"attn_logit_softcapping": -1}), "`attn_logit_softcapping` is -1"),
        (
            "gpt2",
            json!({"n_positions": 8, "add_cross_attention": true}),
            "`add_cross_attention` is true",
        ),
    ] {
        let e = read(small(family), extra).unwrap_err();
        assert!(e.contains(named) && e.contains("x/config.json"), "{family}: {e}");
    }
}

#[test]
fn windows_are_where_transformers_has_them() {
    let mistral = |extra| windows(&llama("mistral", extra));
    assert_eq!(mistral(json!({"num_key_value_heads": 2})), [4096; 8]);
    assert_eq!(mistral(json!({"num_key_value_heads": 2, "sliding_window": null})), [0; 8]);
    let qwen = json!({"use_sliding_window": true, "sliding_window": 32, "max_window_layers": 6});
    assert_eq!(windows(&llama("qwen2", qwen)), [0, 0, 0, 0, 0, 0, 32, 32]);
    // Qwen 2.5's files have a window and do not use it.
    let unused = json!({"use_sliding_window": false, "sliding_window": 32, "max_window_layers": 6});
    assert_eq!(windows(&llama("qwen2", unused)), [0; 8]);
    let gemma2 = llama("gemma2", json!({"sliding_window": 16}));
    assert_eq!(windows(&gemma2), [16, 0, 16, 0, 16, 0, 16, 0]);
    assert_eq!((gemma2.attention_cap, gemma2.logit_cap), (Some(50.0), Some(30.0)));
    let uncapped = json!({"attn_logit_softcapping": null, "final_logit_softcapping": null});
    assert_eq!(llama("gemma2", uncapped).attention_cap, None);
}

#[test]
fn both_spellings_of_gemma3_mean_the_same() {
    let old = llama(
        "gemma3_text",
        json!({"sliding_window": 16, "sliding_window_pattern": 3,
        "rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    );
    let kinds: Vec<&str> =
        (1..=8).map(|i| if i % 3 == 0 { "full_attention" } else { "sliding_attention" }).collect();
    let new = llama(
        "gemma3_text",
        json!({"sliding_window": 16, "layer_types": kinds, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}}),
    );
    assert_eq!(windows(&old), [16, 16, 0, 16, 16, 0, 16, 16]);
    assert_eq!((old.layers.clone(), old.ropes.clone()), (new.layers.clone(), new.ropes));
    assert_ne!(old.ropes[0], old.ropes[1]);
    assert_eq!(old.layers[2].rope, Some(0));
    // Beside a vision tower, with all that is usual left out.
    let beside = json!({"model_type": "gemma3", "text_config": {"hidden_size": 2560, "num_hidden_layers": 34,
        "intermediate_size": 10240, "sliding_window": 1024,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}}});
    let c = read(beside, json!({})).unwrap();
    assert_eq!((c.vocab_size(), c.hidden_size(), c.layers()), (262_208, 2560, 34));
    assert_eq!((c.max_position_embeddings(), c.sizes.kv), (131_072, [4, 256]));
}

#[test]
fn some_layers_of_smollm3_have_no_positions() {
    let turns = |extra: Value| -> Vec<bool> {
        llama("smollm3", extra).layers.iter().map(|layer| layer.rope.is_some()).collect()
    };
    let every_fourth = [true, true, true, false, true, true, true, false];
    assert_eq!(turns(json!({})), every_fourth);
    assert_eq!(turns(json!({"no_rope_layers": [1, 1, 1, 0, 1, 1, 1, 0]})), every_fourth);
    assert!(turns(json!({"no_rope_layers": [1, 1, 1, 1, 1, 1, 1, 1]})).iter().all(|t| *t));
}
