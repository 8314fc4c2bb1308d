use std::path::Path;

use inknib::diffusion::chunks::Chunks;
use inknib::diffusion::embedding::Placeholders;
use inknib::diffusion::prompt::{Prompt, PromptSyntax};
use inknib::text::generation_config::{GenerationConfig, Overrides};
use inknib::text::tokenizer::{ClipTokenizer, Streamer, Tokenizer};
use serde_json::Value;

use crate::{model, shared};

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

#[test]
fn broken_tokenizers_are_errors_and_never_panics() {
    let origin = Path::new("tokenizer.json");
    let good = r#"{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}"#;
    let tokenizer = Tokenizer::from_json(good.as_bytes(), origin).unwrap();
    assert_eq!(tokenizer.encode("ab", false).unwrap(), [2]);
    for length in 0..good.len() {
        assert!(
            Tokenizer::from_json(&good.as_bytes()[..length], origin).is_err(),
            "{length} bytes"
        );
    }
    for at in 0..good.len() {
        for value in [0, b'0', b'"', b'{', b']', b',', 0xff, good.as_bytes()[at] ^ 1] {
            let mut bad = good.as_bytes().to_vec();
            bad[at] = value;
            if let Ok(tokenizer) = Tokenizer::from_json(&bad, origin) {
                let _ = tokenizer.encode("ab", true).map(|ids| tokenizer.decode(&ids, true));
            }
        }
    }
}

/// Every id pushed alone must give the same text as decoding them together.
fn assert_streams(tokenizer: &Tokenizer, ids: &[u32]) {
    let mut streamer = tokenizer.streamer(true);
    let mut text = String::new();
    for id in ids {
        text.extend(streamer.push(*id).unwrap());
        assert!(!text.contains('\u{fffd}'), "half a character was shown: {text:?}");
    }
    text.extend(streamer.finish().unwrap());
    assert_eq!(text, tokenizer.decode(ids, true).unwrap());
}

/// A copy of CLIP's folder with only these files, under a temporary folder.
fn clip_folder(files: &[&str]) -> Option<tempfile::TempDir> {
    let from = shared("data/tokenizers/clip")?;
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        std::fs::copy(from.join(file), folder.path().join(file)).unwrap();
    }
    Some(folder)
}

fn assert_reference_prompts(clip: &ClipTokenizer) {
    let Some(reference) = shared("data/tokenizers/clip/ref_prompts.json") else { return };
    let cases = json(&reference);
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 10);
    for case in cases {
        let mut prompt = case["prompt"].as_str().unwrap().to_string();
        if case["hf_tokenizer_json_same"] == false {
            // OpenAI's own code turns HTML entities into characters first; the tokenizer.json that
            // transformers and diffusers use does not, and we go with them.
            assert_ne!(clip.encode_padded(&prompt, 77).unwrap().ids, ids(&case["padded77"]));
            prompt = prompt.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
        }
        let padded = clip.encode_padded(&prompt, 77).unwrap();
        assert_eq!(padded.ids, ids(&case["padded77"]), "{prompt:?}");
        assert_eq!(padded.kept, ids(&case["openai_ids"]).len() - 2, "{prompt:?}");
        assert_eq!(padded.dropped == 0, padded.dropped_text.is_empty(), "{prompt:?}");
        let plain = Prompt::parse(&prompt, PromptSyntax::Plain).unwrap();
        let chunks = Chunks::new(&plain, clip, &Placeholders::default()).unwrap();
        assert_eq!(chunks.ids, [padded.ids], "{prompt:?}");
        assert_eq!((chunks.kept, chunks.dropped), (padded.kept, padded.dropped), "{prompt:?}");
        assert_eq!(chunks.dropped_text, padded.dropped_text, "{prompt:?}");
    }
}

#[test]
fn clip_prompts_from_tokenizer_json() {
    let Some(folder) = shared("data/tokenizers/clip") else { return };
    let clip = ClipTokenizer::load(folder).unwrap();
    assert_eq!(clip.length(), 77);
    assert_eq!(clip.inner().vocab_size(), 49408);
    assert_reference_prompts(&clip);
}

#[test]
fn clip_prompts_from_vocab_and_merges() {
    let Some(folder) = clip_folder(&["vocab.json", "merges.txt"]) else { return };
    // Without tokenizer_config.json the names and the length are OpenAI's.
    let clip = ClipTokenizer::load(folder.path()).unwrap();
    assert_eq!((clip.length(), clip.inner().vocab_size()), (77, 49408));
    assert_reference_prompts(&clip);
}

#[test]
fn a_long_prompt_says_what_was_cut() {
    let Some(folder) = shared("data/tokenizers/clip") else { return };
    let clip = ClipTokenizer::load(folder).unwrap();
    let padded = clip.encode_padded("A red, round ball on Ünïversal grass", 6).unwrap();
    assert_eq!((padded.kept, padded.ids.len()), (4, 6));
    assert_eq!(padded.dropped_text, "ball on Ünïversal grass");
    assert_eq!(padded.ids[5], clip.inner().token_id("<|endoftext|>").unwrap());
    let full = clip.encode_padded("a red ball", 5).unwrap();
    assert_eq!((full.dropped, full.dropped_text.as_str()), (0, ""));
    assert!(clip.encode_padded("a", 1).is_err());
}

#[test]
fn stable_diffusion_2_pads_with_its_own_token() {
    let Some(folder) = clip_folder(&["tokenizer.json"]) else { return };
    let config = r#"{"pad_token": "!", "model_max_length": 77}"#;
    std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    let clip = ClipTokenizer::load(folder.path()).unwrap();
    assert_eq!(clip.encode_padded("cat", 5).unwrap().ids, [49406, 2368, 49407, 0, 0]);
}

#[test]
fn llama_agrees_on_every_language() {
    let (Some(folder), Some(cases)) =
        (shared("data/tokenizers/llama2"), shared("data/tokenizers/conformance"))
    else {
        return;
    };
    let tokenizer = Tokenizer::load(folder).unwrap();
    let inputs = json(&cases.join("inputs.json"));
    let expected = json(&cases.join("TinyLlama__TinyLlama-1.1B-Chat-v1.0.json"));
    let inputs = inputs["inputs"].as_array().unwrap();
    let entries = expected["entries"].as_object().unwrap();
    assert_eq!(entries.len(), 30);
    for (key, want) in entries {
        let input = inputs.iter().find(|input| input["id"] == key.as_str()).unwrap();
        let text = input["text"].as_str().unwrap();
        let want_ids = ids(&want["input_ids"]);
        assert_eq!(tokenizer.encode(text, true).unwrap(), want_ids, "{key}: {text:?}");
        let plain = tokenizer.decode(&want_ids, true).unwrap();
        assert_eq!(plain, want["decoded_skip_special"].as_str().unwrap(), "{key}");
        assert_streams(&tokenizer, &want_ids);
    }
}

#[test]
fn a_character_of_four_byte_tokens_comes_whole_or_not_at_all() {
    let Some(folder) = shared("data/tokenizers/llama2") else { return };
    let tokenizer = Tokenizer::load(folder).unwrap();
    // Byte tokens <0x00>.. start at id 3; U+1F980 is F0 9F A6 80.
    let crab: Vec<u32> = [0xf0, 0x9f, 0xa6, 0x80].iter().map(|b| b + 3).collect();
    let mut streamer = tokenizer.streamer(true);
    for id in &crab[..3] {
        assert_eq!(streamer.push(*id).unwrap(), None);
    }
    assert_eq!(streamer.push(crab[3]).unwrap().as_deref(), Some("🦀"));
    let mut cut = tokenizer.streamer(true);
    let hello = tokenizer.encode("ok", false).unwrap();
    let mut shown = String::new();
    for id in hello.iter().chain(&crab[..2]) {
        shown.extend(cut.push(*id).unwrap());
    }
    shown.extend(cut.finish().unwrap());
    assert_eq!(shown, "ok");
}

#[test]
fn a_stream_after_a_prompt_keeps_its_leading_space() {
    let Some(folder) = shared("data/tokenizers/llama2") else { return };
    let tokenizer = Tokenizer::load(folder).unwrap();
    let prompt = tokenizer.encode("Once upon", true).unwrap();
    let all = tokenizer.encode("Once upon a time", true).unwrap();
    assert_eq!(all[..prompt.len()], prompt);
    let mut streamer = Streamer::after(&tokenizer, &prompt, true);
    let text: String =
        all[prompt.len()..].iter().filter_map(|id| streamer.push(*id).unwrap()).collect();
    assert_eq!(text, " a time");
}

#[test]
fn demo_scenes_reads_its_prompts_in_both_forms() {
    let Some(folder) = model("demo-scenes/tokenizer") else { return };
    let clip = ClipTokenizer::load(folder.parent().unwrap()).unwrap();
    assert_eq!(clip.length(), 48);
    let bare = tempfile::tempdir().unwrap();
    for file in ["vocab.json", "merges.txt"] {
        std::fs::copy(folder.join(file), bare.path().join(file)).unwrap();
    }
    let other = ClipTokenizer::load(bare.path()).unwrap();
    for prompt in ["a red house beside a tall tree", "", "two suns, 3 boats!"] {
        let a = clip.encode_padded(prompt, 48).unwrap();
        assert_eq!(a, other.encode_padded(prompt, 48).unwrap());
        assert_eq!(a.ids.len(), 48);
        assert_eq!(a.ids[0], clip.inner().token_id("<|startoftext|>").unwrap());
    }
}

#[test]
fn demo_chat_ends_its_turns() {
    let Some(folder) = model("demo-chat") else { return };
    let tokenizer = Tokenizer::load(&folder).unwrap();
    assert_eq!(tokenizer.eos_ids(), [2, 0]);
    assert_eq!(tokenizer.max_length(), Some(512));
    let ids = tokenizer.encode("<|im_start|>user\nHello!<|im_end|>\n", false).unwrap();
    assert_eq!(ids, [1, 585, 201, 440, 3, 2, 201]);
    assert_streams(&tokenizer, &ids);
    let config = GenerationConfig::load(&folder).unwrap();
    assert_eq!((config.eos_token_ids.as_slice(), config.max_new_tokens), (&[2, 0][..], Some(200)));
    assert_eq!(config.sampler_options(&Overrides::default()).temperature, 0.0);
}

#[test]
fn a_folder_without_tokenizer_says_what_was_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let error = Tokenizer::load(folder.path()).err().unwrap();
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
    assert_eq!(error.exit_code(), 4);
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    let error = Tokenizer::load(folder.path()).err().unwrap();
    assert!(error.to_string().contains("tokenizer.json: not a readable"), "{error}");
}

#[test]
fn generation_settings_of_model_and_user_meet() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    // Only a config.json: its ids count, its generation fields do not.
    write("config.json", r#"{"eos_token_id": 5, "max_length": 20, "do_sample": true}"#);
    let config = GenerationConfig::load(folder.path()).unwrap();
    assert_eq!((config.eos_token_ids.as_slice(), config.do_sample), (&[5][..], false));
    assert_eq!((config.max_length, config.top_k), (None, 50));

    let text = r#"{"eos_token_id": [7, 8], "do_sample": true, "temperature": 0.6, "top_p": 0.9,
                   "min_p": null, "max_new_tokens": 100, "unknown": {}}"#;
    write("generation_config.json", text);
    let config = GenerationConfig::load(folder.path()).unwrap();
    let mut over = Overrides { seed: Some(3), ..Overrides::default() };
    let options = config.sampler_options(&over);
    assert_eq!((options.temperature, options.top_p, options.top_k), (0.6, 0.9, 50));
    assert_eq!((options.min_p, options.seed), (0.0, 3));
    over.temperature = Some(0.0);
    over.top_k = Some(5);
    let options = config.sampler_options(&over);
    assert_eq!((options.temperature, options.top_k), (0.0, 5));
    assert_eq!(config.new_token_limit(&over, 30, 512), 100);
    assert_eq!(config.new_token_limit(&over, 450, 512), 62);
    over.max_new_tokens = Some(4);
    assert_eq!(config.new_token_limit(&over, 30, 512), 4);

    write("generation_config.json", r#"{"temperature": "hot"}"#);
    let error = GenerationConfig::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("generation_config.json: temperature is \"hot\""), "{error}");
}

#[test]
fn a_sampling_flag_turns_a_greedy_model_to_sampling() {
    let config = GenerationConfig::default();
    let ask = |over: Overrides| config.sampler_options(&over).temperature;
    assert_eq!(ask(Overrides::default()), 0.0);
    assert_eq!(ask(Overrides { top_p: Some(0.9), ..Default::default() }), 1.0);
    assert_eq!(ask(Overrides { temperature: Some(0.7), ..Default::default() }), 0.7);
    assert_eq!(ask(Overrides { top_k: Some(1), ..Default::default() }), 0.0);
}

/// What the program carries is what the Hub has: every token, and OpenAI's own ids of ten prompts.
#[test]
fn the_shipped_vocabulary_is_clips() {
    let Some(folder) = shared("data/tokenizers/clip") else { return };
    let shipped = ClipTokenizer::shipped("<|endoftext|>").unwrap();
    let vocabulary = json(&folder.join("vocab.json"));
    let vocabulary = vocabulary.as_object().unwrap();
    assert_eq!(shipped.inner().vocab_size(), vocabulary.len());
    for (token, id) in vocabulary {
        assert_eq!(shipped.inner().token_id(token), id.as_u64().map(|n| n as u32), "{token}");
    }
    assert_reference_prompts(&shipped);
}
