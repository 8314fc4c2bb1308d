"""Golden tables of diffusers' schedulers and of torch's CPU random numbers, for tests/schedules.rs.

usage: python tools/golden_schedules.py [OUTDIR]      (default: tests/golden)
needs: torch, diffusers, safetensors, numpy. Made with torch 2.15 and diffusers 0.42.1; nothing is downloaded.

schedules.safetensors holds per case (metadata CASE = JSON of class, config, step arguments, steps, first step); a row
is an evaluation of the network, of which a step has one or two:
  CASE/timesteps [rows], CASE/sigmas [n+1] (where the scheduler has them), CASE/init [24]
  CASE/in [rows,24] what the network is given, CASE/out [rows,24] what it answers (a fixed function plus noise),
  CASE/noise [rows,24] the noise that the scheduler drew (zeros where it drew none), CASE/x [rows,24] the sample after it
  CASE/start [rows,24] add_noise(clean, noise, t) for the tensors start.clean and start.noise; zeros within a step
  CASE/timesteps.N and CASE/sigmas.N for N steps alone
A case that starts at step k > 0 begins with the sample of CASE/start.
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
PLMS = dict(SD, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
DPM, DPM_S, DPM_SDE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler"
EULER, EULER_A, LMS, HEUN = (f"{name}Scheduler" for name in ("EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete", "HeunDiscrete"))
KDPM2, KDPM2_A = "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"
UNIPC, DEIS = "UniPCMultistepScheduler", "DEISMultistepScheduler"
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
    "ddim_clip": ("DDIMScheduler", dict(SD), {}, 12),
    "ddim_clip_eta_vpred": ("DDIMScheduler", dict(SD, **V), dict(eta=0.5), 12),
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
    "dpmpp_2m_vpred_zsnr": (DPM, dict(SD, **V, **ZERO_SNR), {}, 12),
    "dpmpp_2m_order3": (DPM, dict(SD, solver_order=3), {}, 12),
    "dpmpp_2m_order3_long": (DPM, dict(SD, solver_order=3, final_sigmas_type="sigma_min"), {}, 16),
    "dpmpp_2m_4": (DPM, SD, {}, 4),
    "dpmpp_2m_from": (DPM, SD, {}, 12, 5),
    "ddpm_vpred_zsnr": ("DDPMScheduler", dict(SD, clip_sample=False, **V, **ZERO_SNR), {}, 12),
    "euler_from": (EULER, dict(SD, **KARRAS), {}, 12, 5),
    "euler_a_vpred_zsnr": (EULER_A, dict(SD, **V, **ZERO_SNR), {}, 12),
    "lcm": ("LCMScheduler", dict(SD, original_inference_steps=50), {}, 4),
    "lcm_vpred_zsnr": ("LCMScheduler", dict(SD, **V, rescale_betas_zero_snr=True), {}, 4),
    "tcd": ("TCDScheduler", SD, {}, 4),
    "tcd_eta0": ("TCDScheduler", SD, dict(eta=0.0), 4),
    "tcd_eta1": ("TCDScheduler", SD, dict(eta=1.0), 8),
    "tcd_vpred_zsnr": ("TCDScheduler", dict(SD, **V, rescale_betas_zero_snr=True), dict(eta=0.7), 4),
    "pndm": ("PNDMScheduler", PLMS, {}, 12),
    "pndm_4": ("PNDMScheduler", PLMS, {}, 4),
    "pndm_linspace": ("PNDMScheduler", dict(PLMS, timestep_spacing="linspace"), {}, 12),
    "pndm_trailing_to_one": ("PNDMScheduler", dict(PLMS, timestep_spacing="trailing", set_alpha_to_one=True), {}, 12),
    "pndm_vpred": ("PNDMScheduler", dict(PLMS, **V), {}, 12),
    "pndm_prk": ("PNDMScheduler", SD, {}, 7),
    "pndm_prk_vpred": ("PNDMScheduler", dict(SD, steps_offset=1, **V), {}, 12),
    "lms": (LMS, SD, {}, 12),
    "lms_karras": (LMS, dict(SD, **KARRAS), {}, 12),
    "lms_exponential": (LMS, dict(SD, use_exponential_sigmas=True), {}, 12),
    "lms_trailing_vpred": (LMS, dict(SD, timestep_spacing="trailing", **V), {}, 12),
    "lms_leading_sample": (LMS, dict(SD, timestep_spacing="leading", prediction_type="sample"), {}, 12),
    "heun": (HEUN, SD, {}, 12),
    "heun_karras": (HEUN, dict(SD, **KARRAS), {}, 6),
    "heun_exponential_vpred": (HEUN, dict(SD, use_exponential_sigmas=True, **V), {}, 6),
    "heun_leading_clip": (HEUN, dict(SD, timestep_spacing="leading", steps_offset=1, clip_sample=True), {}, 6),
    "heun_from": (HEUN, SD, {}, 12, 5),
    "kdpm2": (KDPM2, SD, {}, 12),
    "kdpm2_karras": (KDPM2, dict(SD, **KARRAS), {}, 6),
    "kdpm2_exponential": (KDPM2, dict(SD, use_exponential_sigmas=True), {}, 6),
    "kdpm2_trailing_vpred": (KDPM2, dict(SD, timestep_spacing="trailing", **V), {}, 6),
    "kdpm2_from": (KDPM2, SD, {}, 12, 5),
    "kdpm2_a": (KDPM2_A, SD, {}, 12),
    "kdpm2_a_karras": (KDPM2_A, dict(SD, **KARRAS), {}, 6),
    "kdpm2_a_leading_vpred": (KDPM2_A, dict(SD, timestep_spacing="leading", steps_offset=1, **V), {}, 6),
    "kdpm2_a_from": (KDPM2_A, SD, {}, 12, 5),
    "dpmpp_sde": (DPM_SDE, SD, {}, 12),
    "dpmpp_sde_karras": (DPM_SDE, dict(SD, **KARRAS), {}, 6),
    "dpmpp_sde_trailing_vpred": (DPM_SDE, dict(SD, timestep_spacing="trailing", **V), {}, 6),
    "dpmpp_sde_from": (DPM_SDE, SD, {}, 12, 5),
    "dpmpp_2s": (DPM_S, SD, {}, 12),
    "dpmpp_2s_odd": (DPM_S, SD, {}, 7),
    "dpmpp_2s_karras": (DPM_S, dict(SD, **KARRAS), {}, 12),
    "dpmpp_2s_vpred_heun": (DPM_S, dict(SD, solver_type="heun", use_exponential_sigmas=True, **V), {}, 12),
    "dpmpp_2s_sigma_min": (DPM_S, dict(SD, final_sigmas_type="sigma_min"), {}, 12),
    "dpmpp_2s_order3": (DPM_S, dict(SD, solver_order=3), {}, 12),
    "dpmpp_2s_order3_heun": (DPM_S, dict(SD, solver_order=3, solver_type="heun", lower_order_final=True), {}, 7),
    "dpmpp_2s_order3_sigma_min": (DPM_S, dict(SD, solver_order=3, final_sigmas_type="sigma_min"), {}, 8),
    "dpmpp_2s_from": (DPM_S, dict(SD, solver_order=3), {}, 12, 4),
    "deis": (DEIS, SD, {}, 12),
    "deis_long": (DEIS, SD, {}, 20),
    "deis_karras": (DEIS, dict(SD, **KARRAS), {}, 12),
    "deis_exponential_vpred": (DEIS, dict(SD, use_exponential_sigmas=True, **V), {}, 16),
    "deis_leading_sample": (DEIS, dict(SD, timestep_spacing="leading", prediction_type="sample"), {}, 12),
    "deis_order3": (DEIS, dict(SD, solver_order=3), {}, 12),
    "deis_order3_long": (DEIS, dict(SD, solver_order=3, timestep_spacing="trailing"), {}, 16),
    "deis_from": (DEIS, dict(SD, solver_order=3), {}, 12, 5),
    "unipc": (UNIPC, SD, {}, 12),
    "unipc_4": (UNIPC, SD, {}, 4),
    # With bh1 and a last level of 0, diffusers' last sample is not a number.
    "unipc_bh1": (UNIPC, dict(SD, solver_type="bh1", final_sigmas_type="sigma_min"), {}, 12),
    "unipc_karras": (UNIPC, dict(SD, **KARRAS), {}, 12),
    "unipc_exponential_vpred": (UNIPC, dict(SD, use_exponential_sigmas=True, **V), {}, 12),
    "unipc_vpred_zsnr": (UNIPC, dict(SD, **V, **ZERO_SNR), {}, 12),
    "unipc_sigma_min": (UNIPC, dict(SD, final_sigmas_type="sigma_min", lower_order_final=False), {}, 12),
    "unipc_order3": (UNIPC, dict(SD, solver_order=3, disable_corrector=[0, 4]), {}, 12),
    "unipc_order3_karras": (UNIPC, dict(SD, solver_order=3, **KARRAS), {}, 20),
    "unipc_from": (UNIPC, dict(SD, solver_order=3), {}, 12, 5),
}
SHAPE = (1, 4, 2, 3)
COUNTS = (1, 5, 25, 50)


def randn(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(cls, config, steps):
    scheduler = getattr(diffusers, cls)(**config)
    scheduler.set_timesteps(steps)
    return scheduler


def order(scheduler):
    """Evaluations a step. A PNDM that begins with Runge-Kutta has others, which the class does not tell."""
    return getattr(scheduler, "order", 1)


def schedule_tensors(scheduler):
    yield "timesteps", scheduler.timesteps.float()
    sigmas = getattr(scheduler, "sigmas", None)
    if torch.is_tensor(sigmas):
        # Two evaluations a step: the level of each step stands there twice.
        steps = scheduler.num_inference_steps
        yield "sigmas", (torch.cat([sigmas[: 2 * steps : 2], sigmas[-1:]]) if order(scheduler) == 2 else sigmas).float()


def starts(cls, config, steps, clean, noise):
    """The noisy sample with which a run may begin, for each row that begins a step."""
    rows = []
    for i, t in enumerate(make(cls, config, steps).timesteps):
        fresh = make(cls, config, steps)
        if hasattr(fresh, "set_begin_index"):
            fresh.set_begin_index(i)
        begins = i % order(fresh) == 0
        rows.append(fresh.add_noise(clean, noise, t.reshape(1)) if begins else torch.zeros(SHAPE))
    return rows


class Draws:
    """Records what a scheduler draws."""

    def __init__(self, scheduler):
        self.scheduler, self.drawn = scheduler, []
        self.module = importlib.import_module(type(scheduler).__module__)
        self.kept = {}

    def __enter__(self):
        for name in ("randn_tensor", "BrownianTreeNoiseSampler"):
            if hasattr(self.module, name):
                self.kept[name] = getattr(self.module, name)
                setattr(self.module, name, getattr(self, name))
        return self

    def __exit__(self, *_):
        for name, original in self.kept.items():
            setattr(self.module, name, original)

    def randn_tensor(self, shape, **keywords):
        self.drawn.append(self.kept["randn_tensor"](shape, **keywords))
        return self.drawn[-1]

    def BrownianTreeNoiseSampler(self, *arguments):
        tree = self.kept["BrownianTreeNoiseSampler"](*arguments)

        def increment(start, end):
            self.drawn.append(tree(start, end))
            return self.drawn[-1]

        return increment

    def last(self, row):
        """The draw as a standard normal one that does not depend on earlier ones."""
        if not isinstance(self.scheduler, diffusers.DPMSolverSDEScheduler) or row % 2 == 0:
            return self.drawn[-1]
        # Increments of one path from sigma to the midpoint and to the end; the part beyond the midpoint is new.
        index = self.scheduler.step_index - 1
        start, end = self.scheduler.sigmas[index - 1].double(), self.scheduler.sigmas[index].double()
        share = (start - (start * end).sqrt()) / (start - end)
        return ((self.drawn[-1] - share.sqrt() * self.drawn[-2]) / (1 - share).sqrt()).float()


def run(cls, config, arguments, steps, first, clean, noise):
    """One denoising run from a step on with a fixed "network"; returns the tensors of the case."""
    scheduler = make(cls, config, steps)
    row = first * order(scheduler)
    rows = {"in": [], "out": [], "noise": [], "x": [], "start": starts(cls, config, steps, clean, noise)[row:]}
    x = rows["start"][0] if first else randn(11) * float(scheduler.init_noise_sigma)
    if first:
        scheduler.set_begin_index(row)
    tensors = {"init": x.flatten(), **dict(schedule_tensors(scheduler))}
    tensors["timesteps"] = tensors["timesteps"][row:]
    if "generator" in inspect.signature(scheduler.step).parameters:
        arguments = dict(arguments, generator=torch.Generator().manual_seed(12))
    if hasattr(scheduler, "noise_sampler_seed"):
        scheduler.noise_sampler_seed = 12
    with Draws(scheduler) as draws:
        for i, t in enumerate(scheduler.timesteps[row:]):
            given = scheduler.scale_model_input(x, t)
            answer = 0.5 * randn(100 + i) + 0.5 * torch.tanh(given)
            before = len(draws.drawn)
            x = scheduler.step(answer, t, x, **arguments).prev_sample
            rows["in"].append(given)
            rows["out"].append(answer)
            rows["noise"].append(draws.last(i) if len(draws.drawn) > before else torch.zeros(SHAPE))
            rows["x"].append(x)
    tensors.update({name: torch.stack([r.flatten() for r in values]) for name, values in rows.items()})
    return tensors


def schedules():
    clean, noise = randn(13), randn(14)
    tensors, metadata = {"start.clean": clean.flatten(), "start.noise": noise.flatten()}, {}
    for name, (cls, config, arguments, steps, *rest) in CASES.items():
        first = rest[0] if rest else 0
        for key, value in run(cls, config, arguments, steps, first, clean, noise).items():
            tensors[f"{name}/{key}"] = value
        for count in () if first or cls == "PNDMScheduler" and not config.get("skip_prk_steps") else COUNTS:
            for key, value in schedule_tensors(make(cls, config, count)):
                tensors[f"{name}/{key}.{count}"] = value
        # The configuration is written as diffusers would write it, with the class name and without defaults.
        written = {"_class_name": cls, **config}
        metadata[name] = json.dumps({"config": written, "step": arguments, "steps": steps, "first": first})
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
