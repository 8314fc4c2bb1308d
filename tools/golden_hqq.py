"""Golden numbers of HQQ: `hqq`'s own quantizer on the CPU, 4 bits, groups of 64 along the inputs.

    python tools/golden_hqq.py tests/golden/hqq

Needs torch and hqq (0.2.8.post1) from PyPI. Writes hqq.safetensors: w f32 [8, 192], codes u8 [24, 64], scale and zero
f32 [24].
"""

import sys

import torch
from hqq.core.quantize import Quantizer
from safetensors.torch import save_file

torch.manual_seed(11)
w = torch.randn(8, 192) * 0.05
w[3] *= 4.0
w[5, 7] = 1.0  # an outlier
w[6, 64:128] = 0.02  # a group without a range
codes, meta = Quantizer.quantize(
    w, nbits=4, group_size=64, round_zero=True, axis=1, bitpack=False, device="cpu", compute_dtype=torch.float32
)
out = {
    "w": w,
    "codes": codes.to(torch.uint8).reshape(-1, 64),
    "scale": meta["scale"].float().reshape(-1),
    "zero": meta["zero"].float().reshape(-1),
}
save_file({name: t.contiguous() for name, t in out.items()}, f"{sys.argv[1]}/hqq.safetensors")
