//! How byte-level tokenizers cut a text before joining bytes: `tokenizer.ggml.pre` of a GGUF file to
//! the split that the tokenizer.json of those models has.

use crate::Result;
use crate::weights::Gguf;

/// The cutting of a tokenizer, and what else goes with the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// `None` is GPT-2's own, which the byte-level step has inside.
    pub(super) pattern: Option<&'static str>,
    /// Every digit stands alone.
    pub(super) digits: bool,
    /// Text is composed first (NFC).
    pub(super) nfc: bool,
    /// A piece that is a token as it stands is taken whole.
    pub(super) ignore_merges: bool,
    /// A text begins with bos unless the file says otherwise.
    pub(super) bos: bool,
}

const GPT2: Split =
    Split { pattern: None, digits: false, nfc: false, ignore_merges: false, bos: false };

/// cl100k's split, which Llama 3, Phi-4 and OLMo 2 have too.
const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with single digits.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's "tekken" (Nemo).
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// o200k's split (Phi-4-mini).
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The split that the file names. Files older than that key, and those that say `default`, get the
/// split of their architecture.
pub(super) fn split(gguf: &Gguf, tokens: usize) -> Result<Split> {
    let key = "tokenizer.ggml.pre";
    let architecture = gguf.text("general.architecture")?.unwrap_or_default();
    let named = gguf.text(key)?.filter(|name| !["", "default"].contains(name));
    let name = named.unwrap_or(match architecture {
        "qwen2" | "qwen3" => "qwen2",
        // Llama 3's vocabulary has 128,256 tokens, and those made from it more.
        "llama" | "smollm3" if tokens >= 128_000 => "llama-bpe",
        "phi3" | "olmo2" => "dbrx",
        _ => "gpt-2",
    });
    Ok(match name {
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "pixtral" | "lfm2" => {
            Split { pattern: Some(CL100K), ignore_merges: true, bos: true, ..GPT2 }
        }
        "dbrx" | "smaug-bpe" => Split { pattern: Some(CL100K), ..GPT2 },
        "qwen2" | "deepseek-r1-qwen" | "megrez" => {
            Split { pattern: Some(QWEN2), nfc: true, ..GPT2 }
        }
        "tekken" => Split { pattern: Some(TEKKEN), ignore_merges: true, bos: true, ..GPT2 },
        "gpt-4o" | "llama4" => Split { pattern: Some(O200K), ..GPT2 },
        "gpt-2" | "phi-2" => GPT2,
        "olmo" => Split { nfc: true, ..GPT2 },
        "smollm" | "starcoder" | "refact" => Split { digits: true, ..GPT2 },
        "command-r" => Split { digits: true, nfc: true, ..GPT2 },
        other => {
            return Err(gguf.bad(
                key,
                &format!(
                    "is `{other}`, a way to cut text that is not known here; take the safetensors of \
                     this model, whose tokenizer.json says how"
                ),
            ));
        }
    })
}
