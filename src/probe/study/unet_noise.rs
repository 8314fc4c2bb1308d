//! Claims about amplitudes: made-up noise of a known size in ε, and guidance as an amplifier.

use super::unet::{UnetLab, fp16, named, painted};
use super::{Outcome, Section};
use crate::Result;
use crate::diffusion::rng::{Rng, RngKind};
use crate::diffusion::sampler::StepCoefficients;
use crate::diffusion::text_to_image::Request;
use crate::gpu::interrupted;
use crate::probe::compare::OnStage;
use crate::probe::compare_runs::Trajectory;
use crate::probe::compare_steps::guide;
use crate::probe::plot::{Axis, Plot, number};
use crate::quant::metrics::{correlation, nmse, psnr, rel_l2};

/// Relative amplitudes of the noise.
const AMPLITUDES: [f64; 4] = [0.01, 0.03, 0.1, 0.3];

/// What one amplitude did, fresh at every step or always the same.
struct Noisy {
    amplitude: f64,
    /// Fresh, frozen.
    latents: [f64; 2],
    psnr: [f64; 2],
}

/// dx'/dε of a step that remembers nothing: of DDIM and Euler.
fn gain(row: &StepCoefficients) -> f32 {
    // v and w are both value[0]·x + value[1]·ε where nothing is clipped.
    (row.next[1] + row.next[7]) * row.value[1]
}

/// U3: noise of a known amplitude in every answer.
pub(super) fn noise(lab: &mut UnetLab, on_stage: &mut OnStage<'_>) -> Result<Vec<Section>> {
    let requests = lab.few().to_vec();
    lab.set(&fp16()?, on_stage)?;
    let base = lab.again(&requests, "fp16", on_stage)?;
    let mut found = Vec::new();
    for (i, amplitude) in AMPLITUDES.into_iter().enumerate() {
        let (mut latents, mut db) = ([0.0; 2], [0.0; 2]);
        for frozen in [false, true] {
            on_stage("noise in ε", 2 * i + usize::from(frozen), 2 * AMPLITUDES.len());
            for (request, base) in requests.iter().zip(&base) {
                let (error, psnr) = noisy(lab, request, base, amplitude, frozen, on_stage)?;
                latents[usize::from(frozen)] += error / requests.len() as f64;
                db[usize::from(frozen)] += psnr / requests.len() as f64;
            }
        }
        found.push(Noisy { amplitude, latents, psnr: db });
    }
    let steps = requests.first().map_or(0, |r| r.steps);
    Ok(vec![tenth(&found, steps)])
}

/// A run with noise of an amplitude relative to ε in every guided answer; error of the final latents, and PSNR.
fn noisy(
    lab: &mut UnetLab,
    request: &Request,
    base: &Trajectory,
    amplitude: f64,
    frozen: bool,
    on_stage: &mut OnStage<'_>,
) -> Result<(f64, f64)> {
    let net = lab.net(on_stage)?;
    let mut run = net.prepare(request)?;
    let mut rng = Rng::new(RngKind::Cpu, request.seed + 1000);
    let first = rng.randn(base.latents[0].len());
    for i in 0..run.steps() {
        interrupted()?;
        run.step(i)?;
        let guided = guide(&run.eps()?, request.guidance as f32, base.eps[i].len() > first.len());
        let size = (guided.iter().map(|v| v * v).sum::<f32>() / guided.len() as f32).sqrt();
        let fresh = if frozen { first.clone() } else { rng.randn(first.len()) };
        let by = gain(&base.rows[i]) * amplitude as f32 * size;
        let latents: Vec<f32> =
            run.latents()?.iter().zip(&fresh).map(|(x, noise)| x + by * noise).collect();
        run.set_latents(&latents)?;
    }
    let last = base.latents.last().map_or(&[][..], Vec::as_slice);
    let error = rel_l2(&run.latents()?, last);
    let decoded = net.decode(run.latent(), run.shape())?;
    let db = decoded
        .images
        .first()
        .map_or(f64::NAN, |image| psnr(&image.to_f32(), &base.image.to_f32()));
    Ok((error, db))
}

fn tenth(found: &[Noisy], steps: usize) -> Section {
    let line =
        |which: usize| found.iter().map(move |n| (n.amplitude, n.psnr[which])).collect::<Vec<_>>();
    let plot =
        Plot::new(Axis::log("noise in ε, relative"), Axis::linear("PSNR of the picture, dB"))
            .line("fresh at every step", line(0))
            .line("the same at every step", line(1));
    let title = "Pictures under noise of a known size";
    let at = |amplitude: f64| found.iter().find(|n| n.amplitude == amplitude);
    let (fresh, frozen) = at(0.1).map_or((f64::NAN, f64::NAN), |n| (n.psnr[0], n.psnr[1]));
    // Below 20 dB another picture is seen.
    let outcome = match (fresh < 20.0, frozen < 20.0) {
        (true, true) => Outcome::Holds,
        (false, false) => Outcome::DoesNotHold,
        _ => Outcome::UnderConditions,
    };
    let mut section = Section::new(
        "U3",
        "A tenth wrong in every step",
        "An error of ±0.1 in every step makes the picture unusable after 50 steps.",
        format!(
            "fp16 weights paint in {steps} steps; normal noise of 1 to 30 % of ε's size is added to every answer, drawn anew each \
             time or the same pattern each time."
        ),
    )
    .found(
        outcome,
        format!(
            "With 10 % of noise the pictures are at {} dB PSNR if it is fresh and at {} dB if it is the same at every step.",
            number(fresh),
            number(frozen)
        ),
    )
    .paragraph(
        "Fresh noise partly averages out, and the net takes a part of it for noise of the picture and removes it. A pattern \
         that never changes adds up in full, and quantization errors are nearer to that kind (U9).",
    )
    .figure(title, plot.svg(title), "Means over the pairs; 20 dB is where another picture is seen.")
    .table(
        &["noise in ε", "latents, fresh", "latents, same", "PSNR, fresh", "PSNR, same"],
        found.iter().map(|n| {
            let [a, b] = n.latents.map(|e| format!("{} %", number(100.0 * e)));
            vec![format!("{} %", number(100.0 * n.amplitude)), a, b, number(n.psnr[0]), number(n.psnr[1])]
        }),
    );
    for n in found {
        let percent = (100.0 * n.amplitude).round();
        section = section
            .number(&format!("psnr_fresh_{percent}_percent_db"), n.psnr[0])
            .number(&format!("psnr_same_{percent}_percent_db"), n.psnr[1]);
    }
    section
}

/// Guidance scales; 1 is none.
const SCALES: [f64; 5] = [1.0, 2.0, 4.0, 7.5, 12.0];

struct Guided {
    scale: f64,
    /// Teacher-forced relative error of one answer before guidance and after it.
    plain: f64,
    after: f64,
    rho: f64,
    psnr: f64,
}

/// U13: the same weights under several guidance scales.
pub(super) fn guidance(lab: &mut UnetLab, on_stage: &mut OnStage<'_>) -> Result<Vec<Section>> {
    let mut found = Vec::new();
    for scale in SCALES {
        let mut requests = lab.few().to_vec();
        requests.iter_mut().for_each(|r| r.guidance = scale);
        let name = format!("guidance {scale}");
        let base = lab.record(&requests, &fp16()?, &name, on_stage)?;
        let ours = lab.record(&requests, &named("int4")?, &name, on_stage)?;
        let (plain, after, rho) = forced(lab, &requests, &base, on_stage)?;
        found.push(Guided { scale, plain, after, rho, psnr: painted(&ours, &base)?.psnr });
    }
    Ok(vec![amplifier(&found)])
}

/// Means over all answers on the latents of the 16-bit runs, with the weights set last.
fn forced(
    lab: &mut UnetLab,
    requests: &[Request],
    base: &[Trajectory],
    on_stage: &mut OnStage<'_>,
) -> Result<(f64, f64, f64)> {
    let net = lab.net(on_stage)?;
    let (mut plain, mut after, mut rho, mut count) = (0.0, 0.0, 0.0, 0.0);
    for (request, base) in requests.iter().zip(base) {
        let mut run = net.prepare(request)?;
        for i in (2..run.steps()).step_by(5) {
            interrupted()?;
            run.set_latents(&base.latents[i])?;
            run.step(i)?;
            let (eps, right) = (run.eps()?, &base.eps[i]);
            let guided = right.len() > base.latents[i].len();
            let guide = |eps: &[f32]| guide(eps, request.guidance as f32, guided);
            plain += nmse(&eps, right).sqrt();
            after += nmse(&guide(&eps), &guide(right)).sqrt();
            if guided {
                let error: Vec<f32> = eps.iter().zip(right).map(|(a, b)| a - b).collect();
                let (u, c) = error.split_at(error.len() / 2);
                rho += correlation(u, c);
            }
            count += 1.0;
        }
    }
    Ok((plain / count, after / count, rho / count))
}

fn amplifier(found: &[Guided]) -> Section {
    let of = |scale: f64| found.iter().find(|g| g.scale == scale);
    let (none, strong) = (of(1.0), of(7.5));
    let factor = |g: &Guided| g.after / g.plain;
    let independent = |g: f64| (g * g + (g - 1.0) * (g - 1.0)).sqrt();
    let amplified = strong.map_or(f64::NAN, factor);
    let plot = Plot::new(
        Axis::linear("guidance scale"),
        Axis::linear("error after guidance over error before"),
    )
    .line("measured", found.iter().map(|g| (g.scale, factor(g))))
    .line(
        "independent halves, √(g² + (g−1)²)",
        found.iter().map(|g| (g.scale, independent(g.scale))),
    );
    let title = "How much guidance multiplies the error";
    let line = Plot::new(Axis::linear("guidance scale"), Axis::linear("PSNR of the picture, dB"))
        .line("int4", found.iter().map(|g| (g.scale, g.psnr)));
    let title2 = "Pictures by guidance scale";
    let (from, to) = (none.map_or(f64::NAN, |g| g.psnr), strong.map_or(f64::NAN, |g| g.psnr));
    Section::new(
        "U13",
        "Guidance is an amplifier",
        "Classifier-free guidance subtracts two answers and multiplies the difference, and with it the errors.",
        "The same prompts at guidance 1 (none) to 12, int4 against fp16; errors of ε before and after guidance on the same latents.",
    )
    .found(
        match (amplified > 1.2, to < from) {
            (true, true) => Outcome::Holds,
            (true, false) => Outcome::UnderConditions,
            (false, _) => Outcome::DoesNotHold,
        },
        format!(
            "At guidance 7.5 the relative error of ε is {} times what it is before guidance (independent errors: {} times); \
             pictures are at {} dB without guidance and at {} dB with it.",
            number(amplified),
            number(independent(7.5)),
            number(from),
            number(to),
        ),
    )
    .number("factor_at_7.5", amplified)
    .number("rho_at_7.5", strong.map_or(f64::NAN, |g| g.rho))
    .number("psnr_at_1_db", from)
    .number("psnr_at_7.5_db", to)
    .paragraph(
        "Both halves of a guided answer come from the same wrong weights, so their errors are alike (ρ in the table) and mostly \
         cancel in the difference; that is why the factor stays far below what independent errors would give. What a picture \
         makes of it is another matter: guidance also makes pictures simpler, and a picture painted without it may differ more.",
    )
    .figure(title, plot.svg(title), "Teacher-forced, means over pairs and steps.")
    .figure(title2, line.svg(title2), "Free-running, means over the pairs.")
    .table(
        &["guidance", "ε before", "ε after", "factor", "ρ", "PSNR, dB"],
        found.iter().map(|g| {
            let rho = if g.scale == 1.0 { "–".into() } else { number(g.rho) };
            vec![
                number(g.scale),
                format!("{} %", number(100.0 * g.plain)),
                format!("{} %", number(100.0 * g.after)),
                number(factor(g)),
                rho,
                number(g.psnr),
            ]
        }),
    )
}
