#!/usr/bin/env python3
"""Golden files of checkpoints that other programs quantized: GPTQ, AWQ and compressed-tensors.

    python tools/golden_int4.py [--out tests/golden/int4] [--upstream FOLDER]

Needs numpy, torch, safetensors and compressed-tensors from PyPI. The committed files were made with torch 2.15,
safetensors 0.8 and compressed-tensors 0.20. With --upstream, a folder into which the sources of autoawq 0.2.9 and
auto-gptq 0.7.1 were unpacked (pip download --no-deps), their own unpacking is held against ours; compressed-tensors
packs and unpacks its cases itself in any case.

A case is a folder: `config.json` with the quantization_config, `model.safetensors` with one layer, its bias and a plain
tensor, and `decoded.safetensors` with the layer's weight f32(scale) * (q - z), [N, K], as "weight".
"""
import argparse
import importlib.util
import json
import os
import shutil

import numpy as np
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
LAYER = "model.layers.0.mlp.down_proj"
N, K = 24, 256
AWQ_SHIFT = [0, 16, 4, 20, 8, 24, 12, 28]


class Layer:
    """Random codes [N, K], scales and zero points [N, G], and the group of each column."""

    def __init__(self, seed, group, bits=4, symmetric=False, act_order=False, n=N, k=K, scale=np.float16):
        draw = np.random.default_rng(seed)
        self.n, self.k, self.bits, self.group = n, k, bits, k if group == -1 else group
        groups = -(-k // self.group)
        self.codes = draw.integers(0, 1 << bits, (n, k))
        self.zeros = draw.integers(0, 1 << bits, (n, groups))
        if symmetric:
            self.zeros[:] = 1 << (bits - 1)
        # Scales of both signs and several orders of magnitude.
        size = draw.uniform(0.3, 1.0, (n, groups)) * 2.0 ** -draw.integers(2, 9, (n, groups))
        self.scales = (size * draw.choice([-1.0, 1.0, 1.0], (n, groups))).astype(scale)
        self.index = np.arange(k) // self.group
        if act_order:
            self.index = draw.permutation(self.index)

    def decoded(self):
        scales, zeros = self.scales.astype(np.float32), self.zeros.astype(np.float32)
        return (scales[:, self.index] * (self.codes.astype(np.float32) - zeros[:, self.index])).astype(np.float32)


def pack(values, bits, axis):
    """Neighbours along `axis` into words of 32 bits, the first in the low bits."""
    per = 32 // bits
    values = np.moveaxis(values.astype(np.uint64), axis, -1)
    words = (values.reshape(*values.shape[:-1], -1, per) << (bits * np.arange(per, dtype=np.uint64))).sum(-1)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(words, -1, axis)).astype(np.uint32).view(np.int32))


def awq_pack(values):
    """[.., N] to words [.., N/8] in AWQ's order."""
    values = values.astype(np.uint64).reshape(*values.shape[:-1], -1, 8)
    words = (values << np.array(AWQ_SHIFT, dtype=np.uint64)).sum(-1)
    return torch.from_numpy(np.ascontiguousarray(words.astype(np.uint32)).view(np.int32))


def floats(values):
    return torch.from_numpy(np.ascontiguousarray(values))


def gptq(layer, version, g_idx=True):
    stored = (layer.zeros - (1 if version == 1 else 0)) % (1 << layer.bits)
    tensors = {
        "qweight": pack(layer.codes.T, layer.bits, 0),
        "qzeros": pack(stored.T, layer.bits, 1),
        "scales": floats(layer.scales.T),
    }
    if g_idx:
        tensors["g_idx"] = torch.from_numpy(layer.index.astype(np.int32))
    return tensors


def gptq_config(layer, version, desc_act=False, whole=False, symmetric=False):
    config = {"quant_method": "gptq", "bits": layer.bits, "group_size": -1 if whole else layer.group}
    config |= {"desc_act": desc_act, "sym": symmetric}
    return config | ({"checkpoint_format": "gptq_v2"} if version == 2 else {})


def awq(layer):
    return {
        "qweight": awq_pack(layer.codes.T),
        "qzeros": awq_pack(layer.zeros.T),
        "scales": floats(layer.scales.T),
    }


def awq_config(layer, whole=False, zero_point=True):
    group = -1 if whole else layer.group
    return {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": zero_point}


def compressed(layer, symmetric, channel, dtype, act_order=False):
    """Packed by compressed-tensors itself; returns tensors and configuration."""
    strategy = "channel" if channel else "group"
    arguments = {"num_bits": layer.bits, "type": "int", "symmetric": symmetric, "strategy": strategy}
    if not channel:
        arguments["group_size"] = layer.group
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**arguments))
    middle = 1 << (layer.bits - 1)
    # Its quantize() must come to our codes: columns in the order of groups, and float64, where the division of a
    # product by its factor is exact enough to round to the right code.
    order = np.argsort(layer.index, kind="stable")
    exact = layer.scales.astype(np.float64)[:, layer.index] * (layer.codes - layer.zeros[:, layer.index])
    state = {
        "weight": torch.from_numpy(np.ascontiguousarray(exact[:, order])),
        "weight_scale": torch.from_numpy(layer.scales.astype(np.float64)),
    }
    if not symmetric:
        state["weight_zero_point"] = torch.from_numpy((layer.zeros - middle).astype(np.int8))
    packed = PackedQuantizationCompressor.compress(state, scheme)
    # Its dequantize() in float32 is the oracle.
    single = packed | {"weight_scale": torch.from_numpy(layer.scales.astype(np.float32))}
    oracle = PackedQuantizationCompressor.decompress(single, scheme)["weight"].numpy()
    assert oracle.dtype == np.float32 and np.array_equal(oracle, layer.decoded()[:, order])
    packed["weight_scale"] = floats(layer.scales.astype(np.float32)).to(dtype)
    assert np.array_equal(packed["weight_scale"].float().numpy(), layer.scales.astype(np.float32))
    if act_order:
        # Files with act-order keep the columns where they are and say which group each belongs to.
        packed["weight_packed"] = pack(layer.codes, layer.bits, 1)
        packed["weight_g_idx"] = torch.from_numpy(layer.index.astype(np.int32))
        arguments["actorder"] = "group"
    group = {"targets": ["Linear"], "weights": arguments, "input_activations": None, "output_activations": None}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}
    return packed, config | {"ignore": ["lm_head"], "quantization_status": "compressed"}


def bf16_scales(layer):
    """The layer with scales that bfloat16 holds."""
    layer.scales = floats(layer.scales.astype(np.float32)).bfloat16().float().numpy()
    return layer


def cases():
    def gptq_case(seed, group, version, bits=4, symmetric=False, act_order=False, g_idx=True):
        layer = Layer(seed, group, bits, symmetric, act_order)
        if act_order:
            # A zero point of 0 is stored as 15 in v1. AutoGPTQ's module for act-order reads 16 there, its others 0,
            # which is what its quantizer means; see gptq_v1_g32_asym.
            layer.zeros = np.maximum(layer.zeros, 1)
        config = gptq_config(layer, version, act_order, group == -1, symmetric)
        return layer, gptq(layer, version, g_idx), config

    yield "gptq_v1_g128_sym", gptq_case(1, 128, 1, symmetric=True)
    yield "gptq_v1_g32_asym", gptq_case(2, 32, 1, g_idx=False)
    yield "gptq_v2_g32_asym", gptq_case(3, 32, 2)
    yield "gptq_v1_g64_desc_act", gptq_case(4, 64, 1, act_order=True)
    yield "gptq_v2_g32_desc_act_sym", gptq_case(5, 32, 2, symmetric=True, act_order=True)
    yield "gptq_v1_row_asym", gptq_case(6, -1, 1)
    yield "gptq_v1_int8_g32_sym", gptq_case(7, 32, 1, bits=8, symmetric=True)
    yield "gptq_v1_int8_g64_asym", gptq_case(8, 64, 1, bits=8)

    layer = Layer(11, 128)
    yield "awq_g128_asym", (layer, awq(layer), awq_config(layer))
    layer = Layer(12, 32, symmetric=True)
    yield "awq_g32_sym", (layer, awq(layer), awq_config(layer, zero_point=False))
    layer = Layer(13, -1)
    yield "awq_row_asym", (layer, awq(layer), awq_config(layer, whole=True))

    layer = Layer(21, 128, symmetric=True)
    yield "ct_g128_sym", (layer, *compressed(layer, True, False, torch.float16))
    layer = bf16_scales(Layer(22, 32))
    yield "ct_g32_asym_bf16", (layer, *compressed(layer, False, False, torch.bfloat16))
    layer = Layer(23, -1, symmetric=True, n=21, k=250)
    yield "ct_channel_sym", (layer, *compressed(layer, True, True, torch.float16))
    layer = Layer(24, -1, n=21, k=250)
    yield "ct_channel_asym", (layer, *compressed(layer, False, True, torch.float16))
    layer = Layer(25, 64, act_order=True)
    yield "ct_g64_act_order", (layer, *compressed(layer, False, False, torch.float16, act_order=True))
    layer = Layer(26, -1, bits=8, symmetric=True)
    yield "ct_int8_channel_sym", (layer, *compressed(layer, True, True, torch.float16))


def load(path):
    spec = importlib.util.spec_from_file_location(os.path.basename(path)[:-3], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find(folder, name):
    for base, _, files in os.walk(folder):
        if name in files:
            return load(os.path.join(base, name))
    raise SystemExit(f"{folder}: no {name} in it")


def check_upstream(folder, layer, tensors, config):
    """What AutoGPTQ and AutoAWQ make of the file, with scales in float32."""
    if config["quant_method"] == "awq":
        unpack = find(folder, "packing_utils.py").dequantize_gemm
        weight = unpack(tensors["qweight"], tensors["qzeros"], tensors["scales"].float(), 4, layer.group).T.numpy()
    elif config["quant_method"] == "gptq" and "checkpoint_format" not in config:
        # The older module knows no g_idx.
        desc = config["desc_act"]
        module = find(folder, "qlinear_cuda.py" if desc else "qlinear_cuda_old.py").QuantLinear
        linear = module(layer.bits, layer.group, layer.k, layer.n, False)
        for name, value in tensors.items():
            setattr(linear, name, value.float() if name == "scales" else value)
        weight = linear(torch.eye(layer.k)).T.numpy()
    else:
        return "not checked"
    assert np.array_equal(weight, layer.decoded()), np.abs(weight - layer.decoded()).max()
    return "equal upstream"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default=os.path.join(ROOT, "tests/golden/int4"))
    parser.add_argument("--upstream")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out, ignore_errors=True)
    total = 0
    for name, (layer, tensors, config) in cases():
        checked = "packed and unpacked upstream"
        if not name.startswith("ct_"):
            checked = check_upstream(arguments.upstream, layer, tensors, config) if arguments.upstream else "not checked"
        folder = os.path.join(arguments.out, name)
        os.makedirs(folder)
        draw = np.random.default_rng(99)
        file = {f"{LAYER}.{part}": value.contiguous() for part, value in tensors.items()}
        file[f"{LAYER}.bias"] = floats(draw.normal(size=layer.n).astype(np.float16))
        file["lm_head.weight"] = floats(draw.normal(size=(8, 16)).astype(np.float32)).bfloat16()
        save_file(file, f"{folder}/model.safetensors", metadata={"format": "pt"})
        save_file({"weight": floats(layer.decoded())}, f"{folder}/decoded.safetensors")
        with open(f"{folder}/config.json", "w", encoding="utf-8") as out:
            json.dump({"model_type": "llama", "quantization_config": config}, out, indent=2, sort_keys=True)
            out.write("\n")
        size = sum(entry.stat().st_size for entry in os.scandir(folder))
        total += size
        print(f"{name:26} {size:6} bytes  {checked}")
    assert total < 1_000_000, total
    print(f"{total} bytes in all")


if __name__ == "__main__":
    main()
