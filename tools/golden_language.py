#!/usr/bin/env python3
"""Golden logits of small random language models of every family, computed by transformers on the CPU in float32.

    python tools/golden_language.py [--out tests/golden] [CASE ...]

Needs torch, transformers and safetensors from PyPI; downloads nothing. The committed files were made with torch 2.15
and transformers 5.23. What each folder holds is written in tests/golden/README.md. As in golden_nets.py every
parameter is rounded to float16 before the run, and vectors are disturbed. Windows, caps and scalings are chosen so
small that a net without them gives other logits.
"""
import argparse
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import transformers as T

from golden_nets import ROOT, half_state, hub_rope, settle, write

VOCAB = 192
TOKENS = 44


def base(**changes):
    """Heads of 16 channels and four of them on a stream of 48: head_dim is not hidden / heads."""
    return dict(dict(vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                     head_dim=16, intermediate_size=96, max_position_embeddings=128, pad_token_id=0, bos_token_id=1,
                     eos_token_id=2), **changes)


def square(**changes):
    """For families whose heads divide the stream: four of 16 channels on 64."""
    changes = base(hidden_size=64, **changes)
    changes.pop("head_dim")
    return changes


def made(config, gain, cached=True):
    """A model, its ids, and the logits of all positions, checked once through the key/value cache."""
    torch.manual_seed(1234)
    model = T.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    model = settle(model, matrix_gain=gain)  # at the default size attention is nearly uniform and hides a wrong angle
    ids = torch.randint(3, VOCAB, (1, TOKENS), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        logits = model(ids).logits[0]
        if cached:
            half = TOKENS // 2
            first = model(ids[:, :half], use_cache=True)
            second = model(ids[:, half:], past_key_values=first.past_key_values, use_cache=True)
            both = torch.cat([first.logits[0], second.logits[0]])
            assert (both - logits).abs().max() < 1e-4 * logits.abs().max(), "cached and full logits differ"
    print(f"logits of std {logits.std():.2f}  ", end="")
    return model, ids, logits


def case(folder, config, gain=5.0, cached=True, edit=None, rename=None, drop=()):
    """`edit` changes the configuration as it is written, `rename` the names of tensors."""
    model, ids, logits = made(config, gain, cached)
    weights = half_state(model)
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    weights = {(rename(name) if rename else name): value for name, value in weights.items()}
    settings = json.loads(model.config.to_json_string(use_diff=False))
    settings = {name: value for name, value in settings.items() if name not in UNUSED + tuple(drop)}
    settings["architectures"] = [type(model).__name__]
    write(folder, edit(settings) if edit else settings, weights, {"input_ids": ids[0].int(), "logits": logits},
          names=("model.safetensors", "golden.safetensors"))


# What transformers writes into every configuration and no net depends on.
UNUSED = ("_name_or_path", "chunk_size_feed_forward", "id2label", "label2id", "is_encoder_decoder", "output_attentions",
          "output_hidden_states", "problem_type", "return_dict", "dtype", "transformers_version", "use_cache", "_sliding_window_pattern")


def gemma3_on_the_hub(settings):
    """As Gemma 3 of 4 billion parameters and more: beside a vision tower, with the fields of transformers 4."""
    rope = settings.pop("rope_parameters")
    settings["rope_theta"] = rope["full_attention"]["rope_theta"]
    settings["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    settings["rope_scaling"] = {"rope_type": "linear", "factor": rope["full_attention"]["factor"]}
    kinds = settings.pop("layer_types")
    settings["sliding_window_pattern"] = kinds.index("full_attention") + 1
    settings.pop("architectures")
    return {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": settings,
            "vision_config": {"model_type": "siglip_vision_model"}}


LONG = [1.0 + 0.5 * i for i in range(6)]
GEMMA3 = dict(num_hidden_layers=3, sliding_window=8, query_pre_attn_scalar=24, tie_word_embeddings=True,
              rope_parameters={"full_attention": dict(rope_type="linear", factor=8.0, rope_theta=1e6),
                               "sliding_attention": dict(rope_type="default", rope_theta=1e4)},
              layer_types=["sliding_attention", "full_attention", "sliding_attention"])
CASES = {
    "mistral": lambda to: case(to, T.MistralConfig(**base(sliding_window=8))),
    "qwen2": lambda to: case(to, T.Qwen2Config(**square(tie_word_embeddings=True))),
    "qwen2_yarn": lambda to: case(to, T.Qwen2Config(**square(
        use_sliding_window=True, sliding_window=12, max_window_layers=1, tie_word_embeddings=False,
        rope_parameters=dict(rope_type="yarn", rope_theta=1000.0, factor=4.0, original_max_position_embeddings=32))),
        edit=hub_rope, drop=("layer_types",)),
    "qwen3": lambda to: case(to, T.Qwen3Config(**base(head_dim=32, tie_word_embeddings=True))),
    "smollm3": lambda to: case(to, T.SmolLM3Config(**square(num_hidden_layers=3, no_rope_layer_interval=2))),
    "olmo2": lambda to: case(to, T.Olmo2Config(**square())),
    "phi": lambda to: case(to, T.PhiConfig(**dict(square(num_key_value_heads=4), hidden_size=80),
                                           partial_rotary_factor=0.4)),
    "phi3": lambda to: case(to, T.Phi3Config(**square(sliding_window=16, tie_word_embeddings=False))),
    "phi3_long": lambda to: case(to, T.Phi3Config(**square(
        tie_word_embeddings=True, original_max_position_embeddings=32,
        rope_parameters=dict(rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.75,
                             original_max_position_embeddings=32, short_factor=[1.0] * 6, long_factor=LONG))),
        cached=False, edit=hub_rope),
    "gemma": lambda to: case(to, T.GemmaConfig(**base(num_key_value_heads=1))),
    "gemma2": lambda to: case(to, T.Gemma2Config(**base(
        sliding_window=8, query_pre_attn_scalar=24, attn_logit_softcapping=4.0, final_logit_softcapping=3.0))),
    "gemma3": lambda to: case(to, T.Gemma3TextConfig(**base(**GEMMA3))),
    "gemma3_vision": lambda to: case(to, T.Gemma3TextConfig(**base(**GEMMA3)), edit=gemma3_on_the_hub,
                                     rename=lambda name: f"language_model.{name}"),
    "gpt2": lambda to: case(to, T.GPT2Config(vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=4, n_positions=64)),
    "gpt2_bare": lambda to: case(to, T.GPT2Config(
        vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=4, n_positions=64, n_inner=96,
        scale_attn_by_inverse_layer_idx=True), rename=lambda name: name.removeprefix("transformer.")),
}

if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("cases", nargs="*", metavar="CASE", help=f"some of: {' '.join(CASES)}")
    arguments.add_argument("--out", default=os.path.join(ROOT, "tests", "golden"))
    options = arguments.parse_args()
    for name in options.cases or CASES:
        CASES[name](os.path.join(options.out, name))
