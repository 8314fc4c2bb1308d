"""Golden GGUF files, written by gguf-py, and what it decodes them to.

    pip install gguf tokenizers numpy safetensors
    python tools/golden_gguf.py [--out tests/golden/gguf]

blocks.gguf      one small matrix of random bytes with finite scales for each type, and metadata of
                 each kind; blocks.safetensors holds gguf-py's decoding of the same bytes
bpe/             for some pre-tokenizers a small byte-level BPE as a GGUF vocabulary, and texts with
                 the ids that the tokenizers package gives with the split of that model family
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from safetensors.numpy import save_file

TYPES = [T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q4_K, T.Q5_K, T.Q6_K]
ROWS, COLUMNS = 3, 256


def f16(rng, low, high, shape):
    sign = rng.choice([-1.0, 1.0], shape)
    return (sign * rng.uniform(low, high, shape)).astype("<f2").view(np.uint8).reshape(*shape, 2)


def random_blocks(rng, kind):
    """Random codes; scales as real files have them, some negative."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    n = ROWS * COLUMNS // block
    b = rng.integers(0, 256, (n, size), dtype=np.uint8)
    if kind == T.F32:
        b = rng.standard_normal((n, 1)).astype("<f4").view(np.uint8)
    elif kind == T.F16:
        b = f16(rng, 0.0, 2.0, (n,))
    elif kind == T.BF16:
        b = (rng.standard_normal((n, 1)).astype("<f4").view("<u4") >> 16).astype("<u2").view(np.uint8)
    elif kind == T.Q6_K:
        b[:, 208:210] = f16(rng, 1e-4, 1e-3, (n,))
    else:
        b[:, 0:2] = f16(rng, 1e-3, 1e-2, (n,))
        if kind in (T.Q4_1, T.Q5_1, T.Q4_K, T.Q5_K):
            b[:, 2:4] = f16(rng, 1e-3, 1e-2, (n,))
    return b.reshape(ROWS, -1)


def blocks(out):
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(out / "blocks.gguf", "llama")
    writer.add_uint8("kinds.u8", 200)
    writer.add_int8("kinds.i8", -100)
    writer.add_uint16("kinds.u16", 60000)
    writer.add_int16("kinds.i16", -30000)
    writer.add_uint32("kinds.u32", 4_000_000_000)
    writer.add_int32("kinds.i32", -2_000_000_000)
    writer.add_float32("kinds.f32", 1e-5)
    writer.add_uint64("kinds.u64", 2**63)
    writer.add_int64("kinds.i64", -(2**62))
    writer.add_float64("kinds.f64", 0.1)
    writer.add_bool("kinds.bool", True)
    writer.add_string("kinds.text", "nib ✒")
    writer.add_array("kinds.numbers", [1, -2, 3])
    writer.add_array("kinds.texts", ["a", "", "ü"])
    writer.add_array("kinds.flags", [True, False])
    decoded = {}
    for kind in TYPES:
        data = random_blocks(rng, kind)
        writer.add_tensor(f"{kind.name}.weight", data, raw_dtype=kind)
        decoded[kind.name] = gguf.quants.dequantize(data, kind).astype(np.float32).reshape(ROWS, COLUMNS)
        assert np.isfinite(decoded[kind.name]).all()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(decoded, out / "blocks.safetensors")


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEXTS = [
    "", " ", "  two  spaces ", "Hello, world!", "I'm sure we'll see; IT'S 12345 o'clock.\n\n  Done.\r\n",
    "naïve café — déjà vu… “quoted”", "Füße über Äpfel", "Привет, мир! 2024 год", "你好,世界。今天天气很好", "日本語のテキスト、カタカナ",
    "안녕하세요 세계", "مرحبا بالعالم", "हिन्दी में पाठ", "ไทยภาษา", "😀🎉👩‍👩‍👧 emoji", "tab\tand\nnewline\n", "x = 3.14159 * (y + 2)  # comment",
    "e\u0301 decomposed", "<|im_start|>user\nHi<|im_end|>\n", "a<|endoftext|>b", "1 22 333 4444 55555",
]


def byte_level(out, name, pre, pattern, digits=False):
    """A trained byte-level BPE as tokenizer.json has it, and as a GGUF vocabulary."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers as p
    from tokenizers import trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=pre in ("llama-bpe", "tekken")))
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    parts = [p.Digits(individual_digits=True)] if digits else []
    if pattern:
        parts.append(p.Split(Regex(pattern), "isolated"))
    parts.append(p.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    tokenizer.pre_tokenizer = p.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=p.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3 + [Path(__file__).read_text(encoding="utf-8")], trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    folder = out / "bpe"
    folder.mkdir(parents=True, exist_ok=True)
    data = json.loads(tokenizer.to_str())
    # Only what tells a tokenizer from the next is kept: the ids are the test.
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    tokens = [t for t, _ in sorted(vocab.items(), key=lambda item: item[1])]
    kinds = [3 if t in special else 4 if t == "<tool>" else 1 for t in tokens]
    writer = gguf.GGUFWriter(folder / f"{name}.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    writer.add_token_merges(merges)
    writer.add_bos_token_id(vocab["<|endoftext|>"])
    writer.add_eos_token_id(vocab["<|im_end|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    cases = [{"text": t, "ids": tokenizer.encode(t, add_special_tokens=False).ids} for t in TEXTS + ["<tool>x</tool>"]]
    for case in cases:
        case["decoded"] = tokenizer.decode(case["ids"], skip_special_tokens=True)
    (folder / f"{name}.json").write_text(json.dumps(cases, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def main():
    here = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=here / "tests/golden/gguf")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    blocks(args.out)
    byte_level(args.out, "qwen2", "qwen2", QWEN2)
    byte_level(args.out, "llama3", "llama-bpe", LLAMA3)
    byte_level(args.out, "gpt2", "gpt-2", None)
    byte_level(args.out, "smollm", "smollm", None, digits=True)


main()
