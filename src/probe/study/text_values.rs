//! Claims about the values between layers: how sparse the feed-forward net is, how much its weights resemble a matrix of
//! low rank, and what norms do to outliers.

use std::sync::{Arc, Mutex};

use super::text::{TextLab, fp16, matrix};
use super::{Outcome, Section};
use crate::Result;
use crate::diffusion::rng::{Rng, RngKind};
use crate::gpu::{Elem, interrupted};
use crate::graph::{Graph, Observe, Plan, PlanOptions};
use crate::nets::language::Language;
use crate::ops::gram::reader;
use crate::ops::norm::before_norm;
use crate::probe::compare::OnStage;
use crate::probe::plot::{Axis, Plot, number};
use crate::probe::scorer::CHUNK;
use crate::probe::singular::energy_of_largest;
use crate::quant::metrics::kurtosis;
use crate::quant::{Layout, Packed, QuantSpec};

/// Ends of the names of weights that read the inner values of a feed-forward net.
const DOWN: [&str; 3] = ["down_proj.weight", "fc2.weight", "mlp.c_proj.weight"];
/// Weights that read a norm, one of those that share it.
const AFTER_NORM: [&str; 10] = [
    "q_proj.weight",
    "qkv_proj.weight",
    "c_attn.weight",
    "gate_proj.weight",
    "gate_up_proj.weight",
    "fc1.weight",
    "c_fc.weight",
    "lm_head.weight",
    "embed_tokens.weight",
    "wte.weight",
];
/// Weights of feed-forward nets.
const FEED_FORWARD: [&str; 8] = [
    "gate_proj.weight",
    "up_proj.weight",
    "gate_up_proj.weight",
    "down_proj.weight",
    "fc1.weight",
    "fc2.weight",
    "c_fc.weight",
    "mlp.c_proj.weight",
];
/// Pieces of which the values are read, the first tokens of each.
const PIECES: usize = 8;
/// Weights whose spectrum is computed.
const SPECTRA: usize = 18;

/// Makes what layers read, and what their norm read before, outputs of every plan.
#[derive(Debug, Default)]
struct Inputs(Mutex<Vec<(String, bool)>>);

const BEFORE: &str = " before its norm";

impl Observe for Inputs {
    fn observe(&self, graph: &Graph) -> Result<()> {
        // A panic elsewhere leaves names that are still true.
        let mut names = self.0.lock().unwrap_or_else(|e| e.into_inner());
        names.clear();
        let mut seen: Vec<String> = Vec::new();
        for (op, inputs) in graph.ops() {
            let Some((weight, _, false)) = reader(op.as_ref()) else { continue };
            let name = weight.name().split('[').next().unwrap_or_default().to_string();
            let ends = |list: &[&str]| list.iter().any(|end| name.ends_with(end));
            // A large table is read in several parts.
            if seen.contains(&name) || !(ends(&DOWN) || ends(&AFTER_NORM)) {
                continue;
            }
            let before = before_norm(inputs[0]);
            if before.is_none() && !ends(&DOWN) {
                continue;
            }
            graph.output(&name, inputs[0]);
            if let Some(before) = before {
                graph.output(&format!("{name}{BEFORE}"), before);
            }
            names.push((name.clone(), before.is_some()));
            seen.push(name);
        }
        Ok(())
    }
}

/// Sums over tokens of what a layer reads.
#[derive(Clone, Debug, Default)]
struct Values {
    /// Every value of every token.
    all: Vec<f32>,
    width: usize,
}

impl Values {
    fn add(&mut self, values: &[f32], tokens: usize) {
        self.width = values.len() / tokens.max(1);
        self.all.extend_from_slice(values);
    }

    fn rms(&self) -> f64 {
        (squares(&self.all) / self.all.len().max(1) as f64).sqrt()
    }

    /// Share of the values whose magnitude is under 1 % of the root of the mean square.
    fn near_zero(&self) -> f64 {
        let limit = (0.01 * self.rms()) as f32;
        let count = self.all.iter().filter(|v| v.abs() < limit).count();
        count as f64 / self.all.len().max(1) as f64
    }

    /// Share of the energy in the tenth of the values of each token that is largest.
    fn top_tenth(&self) -> f64 {
        let each = self.all.chunks_exact(self.width.max(1)).map(|row| {
            let mut squared: Vec<f32> = row.iter().map(|v| v * v).collect();
            squared.sort_by(|a, b| b.total_cmp(a));
            let sum = |v: &[f32]| v.iter().map(|v| f64::from(*v)).sum::<f64>();
            sum(&squared[..squared.len().div_ceil(10)]) / sum(&squared).max(f64::MIN_POSITIVE)
        });
        let shares: Vec<f64> = each.collect();
        shares.iter().sum::<f64>() / shares.len().max(1) as f64
    }

    /// Mean over tokens of the largest magnitude over the token's root of the mean square.
    fn reach(&self) -> f64 {
        let each = self.all.chunks_exact(self.width.max(1)).map(|row| {
            let rms = (squares(row) / row.len() as f64).sqrt();
            f64::from(row.iter().fold(0f32, |m, v| m.max(v.abs()))) / rms.max(f64::MIN_POSITIVE)
        });
        let all: Vec<f64> = each.collect();
        all.iter().sum::<f64>() / all.len().max(1) as f64
    }

    /// Share of the energy in the hundredth of the channels that has most of it.
    fn top_channels(&self) -> f64 {
        let mut energy = vec![0.0; self.width];
        for row in self.all.chunks_exact(self.width.max(1)) {
            energy.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v).powi(2));
        }
        energy.sort_by(|a, b| b.total_cmp(a));
        let total: f64 = energy.iter().sum();
        let most: f64 = energy[..self.width.div_ceil(100)].iter().sum();
        most / total.max(f64::MIN_POSITIVE)
    }
}

fn squares(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum()
}

/// A layer's place, and the values there.
struct Layer {
    name: String,
    after: Values,
    before: Option<Values>,
}

/// L4, L8: from the values between the layers of the 16-bit net.
pub(super) fn values(lab: &mut TextLab, on_stage: &mut OnStage<'_>) -> Result<Vec<Section>> {
    let base = lab.base(on_stage)?;
    on_stage("loading", 0, 0);
    let (net, _) = lab.load(&fp16()?, &base)?;
    let mut layers: Vec<Layer> = Vec::new();
    let pieces = base.sequences().len().min(PIECES);
    for (i, sequence) in base.sequences().iter().take(PIECES).enumerate() {
        interrupted()?;
        on_stage("values between layers", i, pieces);
        read(lab, &net, &sequence.ids[..sequence.ids.len().min(CHUNK)], &mut layers)?;
    }
    drop(net);
    let spectra = spectra(lab, on_stage)?;
    Ok(vec![sparse(&layers, &spectra), smooths(&layers)])
}

fn read(lab: &TextLab, net: &Language, ids: &[u32], layers: &mut Vec<Layer>) -> Result<()> {
    let cache = net.config().kv_cache(&lab.gpu, ids.len(), lab.options.act)?;
    let graph = Graph::new(lab.options.act);
    let input = graph.input("ids", [1, ids.len()], Elem::U32);
    let start = graph.input("start", [1], Elem::U32);
    graph.output("logits", net.logits_all(input, start, &cache));
    let names = Arc::new(Inputs::default());
    let options = PlanOptions { observe: Some(names.clone()), ..Default::default() };
    let plan = Plan::new(&lab.gpu, &graph, &options)?;
    plan.set_u32("ids", ids)?;
    plan.set_u32("start", &[0])?;
    plan.run()?;
    let names = names.0.lock().unwrap_or_else(|e| e.into_inner()).clone();
    for (i, (name, normed)) in names.into_iter().enumerate() {
        if layers.len() == i {
            let before = normed.then(Values::default);
            layers.push(Layer { name: name.clone(), after: Values::default(), before });
        }
        layers[i].after.add(&plan.read(&name)?, ids.len());
        if let Some(before) = &mut layers[i].before {
            before.add(&plan.read(&format!("{name}{BEFORE}"))?, ids.len());
        }
    }
    Ok(())
}

/// Shares of the energy in the largest tenth of the singular values.
struct Spectrum {
    name: String,
    weight: f64,
    /// Of what int4 changes in it.
    error: f64,
    /// Of independent normal numbers in this shape.
    noise: f64,
}

fn spectra(lab: &TextLab, on_stage: &mut OnStage<'_>) -> Result<Vec<Spectrum>> {
    let store = lab.store()?;
    let is = |name: &&str| FEED_FORWARD.iter().any(|end| name.ends_with(end));
    let names: Vec<&str> = store.names().filter(is).collect();
    let every = names.len().div_ceil(SPECTRA).max(1);
    let mut found: Vec<Spectrum> = Vec::new();
    let mut noise: Vec<([usize; 2], f64)> = Vec::new();
    for (i, name) in names.iter().enumerate().step_by(every) {
        interrupted()?;
        on_stage("spectra of weights", i, names.len());
        let Some((values, [rows, columns])) = matrix(&store, name)? else { continue };
        let rank = rows.min(columns).div_ceil(10);
        let packed = Packed::pack(&values, Layout::linear(rows, columns), &QuantSpec::INT4, None)?;
        let error: Vec<f32> = values.iter().zip(packed.decode()).map(|(w, q)| q - w).collect();
        let shape = [rows, columns];
        let known = noise.iter().find(|(known, _)| *known == shape).map(|(_, share)| *share);
        let share = known.unwrap_or_else(|| {
            let random = Rng::new(RngKind::Cpu, 2).randn(rows * columns);
            energy_of_largest(&random, columns, rank)
        });
        if known.is_none() {
            noise.push((shape, share));
        }
        found.push(Spectrum {
            name: name.to_string(),
            weight: energy_of_largest(&values, columns, rank),
            error: energy_of_largest(&error, columns, rank),
            noise: share,
        });
    }
    Ok(found)
}

fn mean<T>(list: &[T], of: impl Fn(&T) -> f64) -> f64 {
    list.iter().map(of).sum::<f64>() / list.len().max(1) as f64
}

fn percent(share: f64) -> String {
    number(100.0 * share)
}

fn short(name: &str) -> String {
    // A table that is the head as well is read by a norm there.
    if name.ends_with("embed_tokens.weight") || name.ends_with("wte.weight") {
        return "head".into();
    }
    name.trim_end_matches(".weight").trim_start_matches("model.").to_string()
}

/// What SwiGLU makes of independent normal numbers, for comparison.
fn gated_noise() -> Values {
    const TOKENS: usize = 256;
    const WIDTH: usize = 1024;
    let mut random = Rng::new(RngKind::Cpu, 4);
    let (a, b) = (random.randn(TOKENS * WIDTH), random.randn(TOKENS * WIDTH));
    let mut values = Values::default();
    let gate = |(a, b): (&f32, &f32)| a / (1.0 + (-a).exp()) * b;
    values.add(&a.iter().zip(&b).map(gate).collect::<Vec<f32>>(), TOKENS);
    values
}

fn sparsity(inner: &[&Layer]) -> Plot {
    let line = |of: fn(&Values) -> f64| {
        inner.iter().enumerate().map(move |(i, l)| ((i + 1) as f64, 100.0 * of(&l.after)))
    };
    Plot::new(Axis::linear("layer"), Axis::linear("%").between(0.0, 100.0))
        .line("near zero", line(Values::near_zero))
        .line("energy of the top tenth", line(Values::top_tenth))
}

fn sparse(layers: &[Layer], spectra: &[Spectrum]) -> Section {
    let inner: Vec<&Layer> =
        layers.iter().filter(|l| DOWN.iter().any(|end| l.name.ends_with(end))).collect();
    let zero = mean(&inner, |l| l.after.near_zero());
    let tenth = mean(&inner, |l| l.after.top_tenth());
    let (weight, error, noise) =
        (mean(spectra, |s| s.weight), mean(spectra, |s| s.error), mean(spectra, |s| s.noise));
    let outcome = match (zero > 0.5, weight > 0.5) {
        (true, true) => Outcome::Holds,
        (false, false) => Outcome::DoesNotHold,
        _ => Outcome::UnderConditions,
    };
    let gated = gated_noise();
    let title = "Sparsity of the feed-forward nets, by layer";
    Section::new(
        "L4",
        "Is the feed-forward net sparse and of low rank?",
        "Feed-forward layers are sparse and of low rank, so that four bits lose little there.",
        "The values between the two halves of each feed-forward net of the fp16 model: how many are near zero (under 1 % of the \
         root of the mean square), and what the largest tenth of each token's values holds. And how much of a weight's energy \
         (sum of its squares) the largest tenth of its singular values holds. Sparse: more than half of the values are near zero. \
         Of low rank: a tenth of the singular values holds more than half of \
         the energy. The claim holds if both are true.",
    )
    .found(
        outcome,
        format!(
            "{} % of the values are near zero, and the largest tenth of them holds {} % of the energy: few zeros, many small values \
             (normal numbers behind a SwiGLU gate: {} % and {} %). The largest tenth of the singular values holds {} % of a weight ({} % of noise in that shape) and {} % of what int4 \
             changes in it.",
            percent(zero),
            percent(tenth),
            percent(gated.near_zero()),
            percent(gated.top_tenth()),
            percent(weight),
            percent(noise),
            percent(error),
        ),
    )
    .number("near_zero", zero)
    .number("energy_of_top_tenth", tenth)
    .number("weight_energy_in_top_tenth_of_singular_values", weight)
    .number("error_energy_in_top_tenth_of_singular_values", error)
    .number("noise_energy_in_top_tenth_of_singular_values", noise)
    .number("near_zero_of_gated_noise", gated.near_zero())
    .number("energy_of_top_tenth_of_gated_noise", gated.top_tenth())
    .paragraph(
        "The gates of today's models (SwiGLU) make few zeros, unlike ReLU, but many small values beside few large ones. A small value \
         spares nothing by itself: the errors of the weights that meet the large ones count all the more (what these layers cost \
         is in L3). Independent normal numbers behind such a gate, silu(a)·b, show how much of that is the gate's own \
         doing; plain ones have 0.8 % near zero and 44 % of the energy in a tenth. And what int4 changes in a weight has nearly the flat \
         spectrum of noise, whatever the weight's own: a small matrix beside it (a LoRA) could take back only that share of it. \
         That updates of weights have low rank, which LoRA rests on, says nothing of the weights themselves.",
    )
    .figure(title, sparsity(&inner).svg(title), "Means over tokens. Normal numbers: 0.8 % and 44 %.")
    .table(
        &["weight", "energy in a tenth of the singular values, %", "of what int4 changes, %", "of noise, %"],
        spectra
            .iter()
            .map(|s| vec![short(&s.name), percent(s.weight), percent(s.error), percent(s.noise)]),
    )
}

/// Of norms: what they belong to and the values before.
fn reaches(normed: &[(&Layer, &Values)]) -> Plot {
    let numbered = || normed.iter().enumerate();
    Plot::new(Axis::linear("norm, in order of computation"), Axis::linear("largest / rms"))
        .line("before the norm", numbered().map(|(i, (_, before))| (i as f64, before.reach())))
        .line("after", numbered().map(|(i, (l, _))| (i as f64, l.after.reach())))
}

fn smooths(layers: &[Layer]) -> Section {
    let normed: Vec<(&Layer, &Values)> =
        layers.iter().filter_map(|l| l.before.as_ref().map(|before| (l, before))).collect();
    let tails =
        [mean(&normed, |(_, b)| kurtosis(&b.all)), mean(&normed, |(l, _)| kurtosis(&l.after.all))];
    let reach = [mean(&normed, |(_, b)| b.reach()), mean(&normed, |(l, _)| l.after.reach())];
    let channels =
        [mean(&normed, |(_, b)| b.top_channels()), mean(&normed, |(l, _)| l.after.top_channels())];
    // Each measure has to fall by a fifth.
    let fallen = [tails, reach, channels].iter().filter(|[b, a]| *a < 0.8 * b).count();
    let outcome = match (normed.is_empty(), fallen) {
        (true, _) => Outcome::NotTested,
        (_, 3) => Outcome::Holds,
        (_, 0) => Outcome::DoesNotHold,
        _ => Outcome::UnderConditions,
    };
    let title = "Largest value of a token over its root of the mean square";
    let number_of =
        |pair: [f64; 2]| format!("{} before, {} after", number(pair[0]), number(pair[1]));
    Section::new(
        "L8",
        "Do norms smooth outliers away?",
        "LayerNorm evens the values out, so that layers see no outliers.",
        "The stream between layers of the fp16 model before and after every norm: excess kurtosis of all values, the largest \
         value of a token over its root of the mean square, and the share of the energy in the 1 % of channels that have most. \
         It holds if all three fall by a fifth.",
    )
    .found(
        outcome,
        format!(
            "Excess kurtosis: {}. Largest over root of the mean square: {}. Energy in 1 % of the channels, %: {}.",
            number_of(tails),
            number_of(reach),
            number_of(channels.map(|share| 100.0 * share)),
        ),
    )
    .number("kurtosis_before", tails[0])
    .number("kurtosis_after", tails[1])
    .number("largest_over_rms_before", reach[0])
    .number("largest_over_rms_after", reach[1])
    .number("energy_in_top_channels_before", channels[0])
    .number("energy_in_top_channels_after", channels[1])
    .paragraph(
        "A norm divides each token by one number. That makes tokens alike, but leaves the shape of a token as it is: only the \
         norm's own factors, one for each channel, change that, and training may use them either way. With weights alone in \
         four bits no activation is rounded, so that outliers do harm only by the weights that they meet; that is what \
         calibrated methods look at (M).",
    )
    .figure(title, reaches(&normed).svg(title), "Means over tokens. Normal numbers: 3 for 256 channels, 3.9 for 8,192.")
    .table(
        &["norm before", "kurtosis before", "after", "largest / rms before", "after", "energy in 1 % of channels before, %", "after, %"],
        normed.iter().map(|(l, b)| {
            vec![
                short(&l.name),
                number(kurtosis(&b.all)),
                number(kurtosis(&l.after.all)),
                number(b.reach()),
                number(l.after.reach()),
                percent(b.top_channels()),
                percent(l.after.top_channels()),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparsity_by_hand() {
        // Two tokens of ten channels: one large value each, in one channel.
        let row = |large: f32| [&[large][..], &[0.0; 8], &[1.0]].concat();
        let mut values = Values::default();
        values.add(&[row(3.0), row(7.0)].concat(), 2);
        // 16 of 20 are nothing.
        assert_eq!(values.near_zero(), 0.8);
        assert!((values.top_tenth() - 0.5 * (0.9 + 0.98)).abs() < 1e-9);
        assert!((values.top_channels() - 58.0 / 60.0).abs() < 1e-9);
        let reach = 0.5 * (3.0 / 1f64.sqrt() + 7.0 / 5f64.sqrt());
        assert!((values.reach() - reach).abs() < 1e-6);
        assert_eq!(Values::default().near_zero(), 0.0);
    }

    #[test]
    fn normal_numbers_are_not_sparse() {
        let mut values = Values::default();
        values.add(&Rng::new(RngKind::Cpu, 3).randn(64 * 1000), 64);
        // What the page says of them: 0.8 % and 44 %, and 3 for the largest of some hundred.
        assert!((values.near_zero() - 0.008).abs() < 0.002, "{}", values.near_zero());
        assert!((values.top_tenth() - 0.439).abs() < 0.01, "{}", values.top_tenth());
        assert!(values.reach() > 3.0 && values.reach() < 3.6);
    }
}
