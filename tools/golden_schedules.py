"""Golden tables of diffusers' schedulers and of torch's CPU random numbers, for tests/schedules.rs.

usage: python tools/golden_schedules.py [OUTDIR]      (default: tests/golden)
needs: torch, diffusers, safetensors, numpy. Made with torch 2.15 and diffusers 0.42.1; nothing is downloaded.

schedules.safetensors holds per case (metadata CASE = JSON of class, config, step arguments, steps):
  CASE/timesteps [n], CASE/sigmas [n+1] (where the scheduler has them), CASE/init [64]
  CASE/in [n,64] what the network is given, CASE/out [n,64] what it answers (a fixed function plus noise),
  CASE/noise [n,64] the noise that the scheduler drew (zeros where it drew none), CASE/x [n,64] the sample after the step
  CASE/start [n,64] add_noise(clean, noise, t_i) for the tensors start.clean and start.noise
  CASE/timesteps.N and CASE/sigmas.N for N steps alone
and alphas_cumprod.NAME [1000]. schedules_rng.safetensors holds torch.randn of one generator, call by call.
"""
import importlib
import inspect
import json
import os
import sys

import diffusers
import torch
from safetensors.torch import save_file

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SD_DDIM = dict(SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
V = dict(prediction_type="v_prediction")
DPM, EULER, EULER_A = "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"
SDE = dict(SD, algorithm_type="sde-dpmsolver++")
KARRAS = dict(use_karras_sigmas=True)
ZERO_SNR = dict(rescale_betas_zero_snr=True, timestep_spacing="trailing")

# name: (class, config, arguments of step(), number of steps)
CASES = {
    "ddim": ("DDIMScheduler", SD_DDIM, {}, 12),
    "ddim_eta1": ("DDIMScheduler", SD_DDIM, dict(eta=1.0), 12),
    "ddim_linspace": ("DDIMScheduler", dict(SD_DDIM, timestep_spacing="linspace"), {}, 12),
    "ddim_sample": ("DDIMScheduler", dict(SD_DDIM, prediction_type="sample"), {}, 12),
    "ddim_vpred_zsnr": ("DDIMScheduler", dict(SD, clip_sample=False, **V, **ZERO_SNR), {}, 12),
    "ddim_clip": ("DDIMScheduler", dict(SD), dict(use_clipped_model_output=True), 12),
    "ddpm": ("DDPMScheduler", dict(SD, clip_sample=False), {}, 12),
    "ddpm_cosine_clip": ("DDPMScheduler", dict(beta_schedule="squaredcos_cap_v2"), {}, 12),
    "ddpm_large": ("DDPMScheduler", dict(SD, clip_sample=False, steps_offset=1, variance_type="fixed_large"), {}, 12),
    "euler": (EULER, SD, {}, 12),
    "euler_leading": (EULER, dict(SD, timestep_spacing="leading", steps_offset=1), {}, 12),
    "euler_trailing": (EULER, dict(SD, timestep_spacing="trailing"), {}, 12),
    "euler_karras": (EULER, dict(SD, **KARRAS), {}, 12),
    "euler_exponential": (EULER, dict(SD, use_exponential_sigmas=True), {}, 12),
    "euler_vpred": (EULER, dict(SD, **V), {}, 12),
    "euler_vpred_zsnr": (EULER, dict(SD, **V, **ZERO_SNR), {}, 12),
    "euler_a": (EULER_A, SD, {}, 12),
    "euler_a_trailing": (EULER_A, dict(SD, timestep_spacing="trailing"), {}, 12),
    "euler_a_vpred": (EULER_A, dict(SD, **V), {}, 12),
    "dpmpp_2m": (DPM, SD, {}, 12),
    "dpmpp_2m_leading": (DPM, dict(SD, timestep_spacing="leading", steps_offset=1), {}, 12),
    "dpmpp_2m_karras": (DPM, dict(SD, **KARRAS), {}, 12),
    "dpmpp_2m_exponential": (DPM, dict(SD, use_exponential_sigmas=True), {}, 12),
    "dpmpp_2m_vpred": (DPM, dict(SD, **V), {}, 12),
    "dpmpp_2m_heun": (DPM, dict(SD, solver_type="heun"), {}, 12),
    "dpmpp_2m_sigma_min": (DPM, dict(SD, final_sigmas_type="sigma_min"), {}, 20),
    "dpmpp_2m_cosine": (DPM, dict(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1), {}, 12),
    "dpmpp_2m_sde": (DPM, SDE, {}, 12),
    "dpmpp_2m_sde_karras": (DPM, dict(SDE, **KARRAS), {}, 12),
    "dpmpp_2m_sde_heun": (DPM, dict(SDE, solver_type="heun"), {}, 12),
    "lcm": ("LCMScheduler", dict(SD, original_inference_steps=50), {}, 4),
}
SHAPE = (1, 4, 4, 4)
COUNTS = (1, 5, 25, 50)


def randn(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(cls, config, steps):
    scheduler = getattr(diffusers, cls)(**config)
    scheduler.set_timesteps(steps)
    return scheduler


def schedule_tensors(scheduler):
    yield "timesteps", scheduler.timesteps.float()
    if torch.is_tensor(getattr(scheduler, "sigmas", None)):
        yield "sigmas", scheduler.sigmas.float()


def run(cls, config, arguments, steps, clean, noise):
    """One whole denoising run with a fixed "network"; returns the tensors of the case."""
    scheduler = make(cls, config, steps)
    module = importlib.import_module(type(scheduler).__module__)
    original, drawn = module.randn_tensor, []

    def recording(shape, **keywords):
        drawn.append(original(shape, **keywords))
        return drawn[-1]

    x = randn(11) * float(scheduler.init_noise_sigma)
    tensors = {"init": x.flatten(), **dict(schedule_tensors(scheduler))}
    rows = {"in": [], "out": [], "noise": [], "x": []}
    if "generator" in inspect.signature(scheduler.step).parameters:
        arguments = dict(arguments, generator=torch.Generator().manual_seed(12))
    module.randn_tensor = recording
    try:
        for i, t in enumerate(scheduler.timesteps):
            given = scheduler.scale_model_input(x, t)
            answer = 0.5 * randn(100 + i) + 0.5 * torch.tanh(given)
            before = len(drawn)
            x = scheduler.step(answer, t, x, **arguments).prev_sample
            rows["in"].append(given)
            rows["out"].append(answer)
            rows["noise"].append(drawn[-1] if len(drawn) > before else torch.zeros(SHAPE))
            rows["x"].append(x)
    finally:
        module.randn_tensor = original
    fresh = make(cls, config, steps)
    rows["start"] = [fresh.add_noise(clean, noise, t.reshape(1)) for t in fresh.timesteps]
    tensors.update({name: torch.stack([r.flatten() for r in values]) for name, values in rows.items()})
    return tensors


def schedules():
    clean, noise = randn(13), randn(14)
    tensors, metadata = {"start.clean": clean.flatten(), "start.noise": noise.flatten()}, {}
    for name, (cls, config, arguments, steps) in CASES.items():
        for key, value in run(cls, config, arguments, steps, clean, noise).items():
            tensors[f"{name}/{key}"] = value
        for count in COUNTS:
            for key, value in schedule_tensors(make(cls, config, count)):
                tensors[f"{name}/{key}.{count}"] = value
        # The configuration is written as diffusers would write it, with the class name and without defaults.
        written = {"_class_name": cls, **config}
        metadata[name] = json.dumps({"config": written, "step": arguments, "steps": steps})
    for name, config in {
        "linear": {},
        "scaled_linear": SD,
        "cosine": dict(beta_schedule="squaredcos_cap_v2"),
        "zero_snr": dict(SD, rescale_betas_zero_snr=True),
    }.items():
        tensors[f"alphas_cumprod.{name}"] = diffusers.DDIMScheduler(**config).alphas_cumprod
    return tensors, metadata


def random_numbers():
    """Two generators, each called several times in a row, across the 16-element boundary and the cached sample."""
    tensors, metadata = {}, {}
    for seed, sizes in ((42, (1, 5, 15, 16, 17, 31, 64, 3, 1024, 2, 4 * 16 * 16)), (2**40 + 7, (3, 16, 1, 40))):
        generator = torch.Generator().manual_seed(seed)
        for i, size in enumerate(sizes):
            tensors[f"{seed}/{i}"] = torch.randn(size, generator=generator)
        metadata[str(seed)] = json.dumps(list(sizes))
    return tensors, metadata


def main():
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "..", "tests", "golden")
    os.makedirs(out, exist_ok=True)
    for file, (tensors, metadata) in (
        ("schedules.safetensors", schedules()),
        ("schedules_rng.safetensors", random_numbers()),
    ):
        path = os.path.join(out, file)
        save_file({k: v.float().contiguous().clone() for k, v in tensors.items()}, path, metadata=metadata)
        print(path, os.path.getsize(path), "bytes")


if __name__ == "__main__":
    main()
