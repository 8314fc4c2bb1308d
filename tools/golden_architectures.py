#!/usr/bin/env python3
"""Names and shapes of every tensor of published architectures, as diffusers and transformers build them.

    python tools/golden_architectures.py [--out tests/golden/architectures] [NAME ...]

Each file there holds a class, the `config.json` of a published model and, written by this script, the number of
parameters and the tensors as a tree of the parts of their names. Models are built on torch's meta device: nothing is
downloaded and nothing takes memory. To add one, write a file with `class` and `config` and run the script. The
committed files were made with torch 2.15, diffusers 0.42.1 and transformers 5.24.
"""
import argparse
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import diffusers
import torch
import transformers

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)


def build(name, config):
    with torch.device("meta"):
        if hasattr(diffusers, name):
            return getattr(diffusers, name).from_config(config)
        return getattr(transformers, name)(transformers.CLIPTextConfig(**config))


def tree(state):
    root = {}
    for name, value in sorted(state.items()):
        *parts, last = name.split(".")
        node = root
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = list(value.shape)
    return root


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("names", nargs="*", metavar="NAME")
    arguments.add_argument("--out", default=os.path.join(ROOT, "tests", "golden", "architectures"))
    options = arguments.parse_args()
    names = options.names or sorted(file.removesuffix(".json") for file in os.listdir(options.out))
    for name in names:
        path = f"{options.out}/{name}.json"
        with open(path, encoding="utf-8") as file:
            case = json.load(file)
        state = build(case["class"], case["config"]).state_dict()
        case["parameters"] = sum(value.numel() for value in state.values())
        case["tensors"] = tree(state)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(case, file, separators=(",", ":"))
            file.write("\n")
        print(f"{name:14} {len(state):5} tensors {case['parameters']:11} parameters {os.path.getsize(path):7} bytes")
