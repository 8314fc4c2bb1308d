//! Vocabularies of GGUF files against the tokenizer.json of the same model.

use std::path::Path;

use inknib::text::generation_config::GenerationConfig;
use inknib::text::template::{Message, RenderOptions, Template};
use inknib::text::tokenizer::Tokenizer;
use inknib::weights::Gguf;
use serde_json::Value;

use crate::writer::{File, Meta};
use crate::{golden, shared};

const TEXTS: [&str; 16] = [
    "",
    " ",
    "Once upon a time, there was a little girl named Lily.",
    "  two  spaces   three ",
    "Tabs\tand\nlines\r\n\r\n",
    "I'm 12345 years old; it's 3.14 o'clock!?",
    "naïve café — déjà vu… “quoted”",
    "Füße über Äpfel",
    "Привет, мир!",
    "你好,世界。",
    "こんにちは カタカナ",
    "안녕하세요",
    "مرحبا بالعالم",
    "हिन्दी में",
    "😀👩‍👩‍👧 e\u{301}",
    "<s>bos</s> and <unk> inside<s> text </s>",
];

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn assert_same(a: &Tokenizer, b: &Tokenizer, texts: &[&str]) {
    assert_eq!(a.vocab_size(), b.vocab_size());
    for text in texts {
        for special in [true, false] {
            let expected = b.encode(text, special).unwrap();
            assert_eq!(a.encode(text, special).unwrap(), expected, "{text:?}");
            assert_eq!(a.decode(&expected, true).unwrap(), b.decode(&expected, true).unwrap());
        }
    }
}

#[test]
fn stories_have_the_tokenizer_of_their_folder() {
    let Some(folder) = shared("data/llm/stories260K") else { return };
    let own = Tokenizer::load(folder.join("stories260K-Q8_0.gguf")).unwrap();
    let expected = Tokenizer::load(&folder).unwrap();
    assert_same(&own, &expected, &TEXTS);
    assert_eq!(own.eos_ids(), expected.eos_ids());
    assert_eq!((own.max_length(), own.special_id("bos_token")), (Some(512), Some(1)));
    let config = GenerationConfig::load(folder.join("stories260K-Q8_0.gguf")).unwrap();
    assert_eq!((config.eos_token_ids.as_slice(), config.bos_token_id), (&[2][..], Some(1)));
    let error = Template::load(folder.join("stories260K-Q8_0.gguf")).unwrap_err().to_string();
    assert!(error.contains("no chat template"), "{error}");
}

/// A SentencePiece vocabulary as llama.cpp's converter writes it, from a tokenizer.json that was made
/// from one: a token's score is the negative rank of the first merge that makes it.
fn as_sentencepiece(tokenizer: &Value) -> File {
    let model = &tokenizer["model"];
    let mut tokens: Vec<(&str, u64)> = model["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(token, id)| (token.as_str(), id.as_u64().unwrap()))
        .collect();
    tokens.sort_by_key(|(_, id)| *id);
    let mut ranks = std::collections::HashMap::new();
    for (rank, merge) in model["merges"].as_array().unwrap().iter().enumerate() {
        let whole = merge.as_str().unwrap().replacen(' ', "", 1);
        ranks.entry(whole).or_insert(rank as f32);
    }
    let added: Vec<&str> = tokenizer["added_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["content"].as_str().unwrap())
        .collect();
    let kinds = tokens.iter().map(|(token, _)| match *token {
        "<unk>" => 2,
        token if added.contains(&token) => 3,
        token if token.len() == 6 && token.starts_with("<0x") => 6,
        _ => 1,
    });
    let mut file = File::default();
    file.text("general.architecture", "llama");
    file.text("tokenizer.ggml.model", "llama");
    file.put("tokenizer.ggml.token_type", Meta::I32s(kinds.collect()));
    let score = |token: &str| ranks.get(token).map_or(-1e6, |rank| -rank);
    file.put("tokenizer.ggml.scores", Meta::F32s(tokens.iter().map(|(t, _)| score(t)).collect()));
    file.put(
        "tokenizer.ggml.tokens",
        Meta::Texts(tokens.iter().map(|(t, _)| t.to_string()).collect()),
    );
    for (name, id) in [("bos", 1), ("eos", 2), ("unknown", 0)] {
        file.put(&format!("tokenizer.ggml.{name}_token_id"), Meta::U32(id));
    }
    file
}

#[test]
fn llama_2_passes_every_conformance_case() {
    let (Some(folder), Some(cases)) =
        (shared("data/tokenizers/llama2"), shared("data/tokenizers/conformance"))
    else {
        return;
    };
    let file = as_sentencepiece(&json(&folder.join("tokenizer.json")));
    let gguf = Gguf::from_bytes("llama2.gguf", file.bytes()).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    assert_same(&tokenizer, &Tokenizer::load(&folder).unwrap(), &TEXTS);
    let inputs = json(&cases.join("inputs.json"));
    let expected = json(&cases.join("TinyLlama__TinyLlama-1.1B-Chat-v1.0.json"));
    let inputs = inputs["inputs"].as_array().unwrap();
    let entries = expected["entries"].as_object().unwrap();
    assert_eq!(entries.len(), 30);
    for (key, want) in entries {
        let input = inputs.iter().find(|input| input["id"] == key.as_str()).unwrap();
        let text = input["text"].as_str().unwrap();
        assert_eq!(
            tokenizer.encode(text, true).unwrap(),
            ids(&want["input_ids"]),
            "{key}: {text:?}"
        );
        let plain = tokenizer.decode(&ids(&want["input_ids"]), true).unwrap();
        assert_eq!(plain, want["decoded_skip_special"].as_str().unwrap(), "{key}");
    }
}

/// Gemma's way: no space is put before a text.
#[test]
fn without_a_space_prefix() {
    let Some(folder) = shared("data/tokenizers/llama2") else { return };
    let mut json = json(&folder.join("tokenizer.json"));
    let mut file = as_sentencepiece(&json);
    file.put("tokenizer.ggml.add_space_prefix", Meta::Bool(false));
    file.put("tokenizer.ggml.add_bos_token", Meta::Bool(false));
    let own = Tokenizer::from_gguf(&Gguf::from_bytes("x.gguf", file.bytes()).unwrap()).unwrap();
    json["normalizer"] =
        serde_json::json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    json["decoder"]["decoders"].as_array_mut().unwrap().pop();
    json["post_processor"] = Value::Null;
    let expected = Tokenizer::from_json(json.to_string().as_bytes(), Path::new("x.json")).unwrap();
    assert_same(&own, &expected, &TEXTS);
    assert_eq!(own.decode(&own.encode(" a b", true).unwrap(), true).unwrap(), " a b");
}

/// Phi-3's special tokens take the spaces behind them along.
#[test]
fn phi_3_strips_behind_its_special_tokens() {
    let Some(folder) = shared("data/tokenizers/llama2") else { return };
    let mut file = as_sentencepiece(&json(&folder.join("tokenizer.json")));
    let tokenizer = |file: &File| {
        Tokenizer::from_gguf(&Gguf::from_bytes("x.gguf", file.bytes()).unwrap()).unwrap()
    };
    let count = |t: &Tokenizer| t.encode("</s> \n x", false).unwrap().len();
    let plain = count(&tokenizer(&file));
    file.text("general.name", "Phi-3-mini-4k-instruct");
    assert!(count(&tokenizer(&file)) < plain);
}

/// No damage to a vocabulary makes more of it than an error.
#[test]
fn damaged_vocabularies_do_not_panic() {
    let mut files = vec![std::fs::read(golden("bpe/qwen2.gguf")).unwrap()];
    if let Some(folder) = shared("data/llm/stories260K") {
        files.push(std::fs::read(folder.join("stories260K-Q4_0.gguf")).unwrap());
    }
    let (mut read, mut refused) = (0, 0);
    for good in files {
        // Both headers end within the first 20 kB; a prime step meets every kind of field.
        for at in (0..good.len().min(20_000)).step_by(61) {
            let mut bad = good.clone();
            bad[at] ^= [1, 0x80, 0x20][at % 3];
            let Ok(gguf) = Gguf::from_bytes("damaged", bad) else { continue };
            let _ = Template::from_gguf(&gguf);
            match Tokenizer::from_gguf(&gguf) {
                Ok(tokenizer) => {
                    read += 1;
                    let ids = tokenizer.encode("Hello <|im_end|> wörld 12", true);
                    let _ = ids.and_then(|ids| tokenizer.decode(&ids, true));
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(read > 50 && refused > 5, "{read} read, {refused} refused");
}

#[test]
fn byte_level_splits_agree_with_the_tokenizers_package() {
    for name in ["qwen2", "llama3", "gpt2", "smollm"] {
        let file = golden(&format!("bpe/{name}.gguf"));
        let tokenizer = Tokenizer::load(&file).unwrap();
        let cases = json(&golden(&format!("bpe/{name}.json")));
        let cases = cases.as_array().unwrap();
        assert!(cases.len() > 20);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let want = ids(&case["ids"]);
            // The file says that no bos is to be added, Llama 3's splits notwithstanding.
            assert_eq!(tokenizer.encode(text, true).unwrap(), want, "{name}: {text:?}");
            assert_eq!(
                tokenizer.decode(&want, true).unwrap(),
                case["decoded"].as_str().unwrap(),
                "{name}: {text:?}"
            );
        }
        let end = tokenizer.token_id("<|im_end|>").unwrap();
        assert_eq!(tokenizer.eos_ids(), [end], "{name}");
        let also = tokenizer.token_id("<|endoftext|>").unwrap();
        assert!(tokenizer.end_of_turn_ids().contains(&also), "{name}");
        let template = Template::load(&file).unwrap();
        let text = template.render(&[Message::user("Hi")], &RenderOptions::default()).unwrap();
        assert_eq!(text, "<|im_start|>user\nHi<|im_end|>\n", "{name}");
    }
}

/// The texts do tell the splits from each other: otherwise the test above could not fail.
#[test]
fn every_split_differs_from_the_others() {
    let tokenizer = |name: &str, pre: &str| {
        let gguf = Gguf::open(golden(&format!("bpe/{name}.gguf"))).unwrap();
        let texts = |key: &str| {
            Meta::Texts(gguf.texts(key).unwrap().unwrap().into_iter().map(String::from).collect())
        };
        let mut file = File::default();
        file.text("general.architecture", "llama");
        file.text("tokenizer.ggml.model", "gpt2");
        file.text("tokenizer.ggml.pre", pre);
        for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.merges"] {
            file.put(key, texts(key));
        }
        Tokenizer::from_gguf(&Gguf::from_bytes("x", file.bytes()).unwrap())
    };
    let cases = json(&golden("bpe/qwen2.json"));
    let agreeing = |pre: &str| {
        let tokenizer = tokenizer("qwen2", pre).unwrap();
        let cases = cases.as_array().unwrap().iter();
        cases
            .filter(|case| {
                let text = case["text"].as_str().unwrap();
                // Without kinds of tokens the special ones are plain text; those cases differ anyway.
                !text.contains('<') && tokenizer.encode(text, false).unwrap() == ids(&case["ids"])
            })
            .count()
    };
    let own = agreeing("qwen2");
    for other in ["llama-bpe", "gpt-2", "smollm", "tekken", "gpt-4o", "olmo"] {
        assert!(agreeing(other) < own, "{other}: {} of {own}", agreeing(other));
    }
    let error = tokenizer("qwen2", "klingon").err().unwrap().to_string();
    assert!(error.contains("tokenizer.ggml.pre") && error.contains("klingon"), "{error}");
}

#[test]
fn sampling_settings_and_named_templates_are_read() {
    let mut file = File::default();
    file.text("general.architecture", "llama");
    file.text("tokenizer.ggml.model", "gpt2");
    file.put(
        "tokenizer.ggml.tokens",
        Meta::Texts(["a", "<|end|>", "<eom>"].map(String::from).into()),
    );
    file.put("tokenizer.ggml.eos_token_id", Meta::U32(1));
    file.put("tokenizer.ggml.eom_token_id", Meta::U32(2));
    file.put("tokenizer.ggml.padding_token_id", Meta::U32(9));
    file.put("general.sampling.temp", Meta::F32(0.7));
    file.put("general.sampling.top_k", Meta::I32(20));
    file.text("tokenizer.chat_template", "plain");
    file.put("tokenizer.chat_templates", Meta::Texts(vec!["tool_use".into()]));
    file.text("tokenizer.chat_template.tool_use", "tools");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    // The folder stands for its only GGUF file.
    let config = GenerationConfig::load(folder.path()).unwrap();
    assert_eq!((config.eos_token_ids.as_slice(), config.top_k), (&[1, 2][..], 20));
    assert_eq!((config.temperature, config.do_sample), (0.7, true));
    let error = Template::load(&path).unwrap_err().to_string();
    assert!(error.contains("padding_token_id") && error.contains("3 tokens"), "{error}");
    file.put("tokenizer.ggml.padding_token_id", Meta::U32(u32::MAX));
    std::fs::write(&path, file.bytes()).unwrap();
    let template = Template::load(&path).unwrap();
    let mut options = RenderOptions::default();
    assert_eq!(template.render(&[], &options).unwrap(), "plain");
    options.tools = Some(serde_json::json!([{ "name": "f" }]));
    assert_eq!(template.render(&[], &options).unwrap(), "tools");
    let error = Tokenizer::load(&path).err().unwrap().to_string();
    assert!(error.contains("tokenizer.ggml.merges"), "{error}");
}
