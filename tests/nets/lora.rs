//! LoRA beside packed weights: peft's results, both ways of naming, and what is said of files that do not
//! fit.

use inknib::gpu::Elem;
use inknib::graph::{Graph, Kernels, Plan, PlanOptions, Var};
use inknib::nn::{Bias, Loader};
use inknib::ops::conv2d::{Conv, Pad, oracle};
use inknib::probe::evaluate_with;
use inknib::probe::verify::golden;
use inknib::quant::{QuantSpec, Recipe, conv_to_rows};
use inknib::tensor::Tensor;
use inknib::weights::lora::{Adapters, Lora, LoraNet};
use inknib::weights::{WeightStore, read_tensors};

use crate::device::gpu;
use crate::folder;

fn adapters(files: &[(&str, f32)]) -> Adapters {
    let mut adapters = Adapters::default();
    for (file, weight) in files {
        let lora = Lora::open(folder("lora").join(format!("{file}.safetensors"))).unwrap();
        adapters.push(lora, *weight);
    }
    adapters
}

fn rel_l2(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
        a.iter().zip(b).map(|(a, b)| f(f64::from(*a), f64::from(*b))).sum()
    };
    (sum(&|a, b| (a - b).powi(2)) / sum(&|_, b| b * b)).sqrt()
}

/// Limits are those of `verify`. In fp16 the LoRA's numbers are rounded once more, after their scale went
/// into them.
#[test]
fn two_loras_are_those_of_peft() {
    let Some(gpu) = gpu() else { return };
    let truth = read_tensors(folder("lora/io.safetensors")).unwrap();
    let nets = [("unet_sd15", "out"), ("clip_l", "last_hidden_state")];
    let namings = [("kohya", "peft"), ("peft", "kohya")];
    for ((case, output), (first, second)) in
        nets.into_iter().zip(namings).chain(nets.into_iter().zip([namings[1], namings[0]]))
    {
        let (style, detail) = (format!("style.{first}"), format!("detail.{second}"));
        let both = adapters(&[(&style, 0.75), (&detail, -0.5)]);
        let (dir, golden) = (folder(case), golden(&folder(case)).unwrap());
        let (_, truth) = truth.iter().find(|(name, _)| name == output).unwrap();
        let truth = truth.to_f32();
        for (spec, kernels, limit) in [
            (QuantSpec::F32, Kernels::Fast, 2e-5),
            (QuantSpec::F32, Kernels::Reference, 2e-5),
            (QuantSpec::F16, Kernels::Fast, 2e-3),
        ] {
            let recipe = Recipe::uniform(spec);
            let run = |adapters: &Adapters| {
                let all = evaluate_with(&dir, &golden, &recipe, kernels, Elem::F32, gpu, adapters);
                all.unwrap().remove(0).1.to_f32()
            };
            let e = rel_l2(&run(&both), &truth);
            println!("{case} {first} {spec} {kernels:?}: {e:.1e}");
            assert!(e <= limit, "{case} {first} {spec} {kernels:?}: {e:.2e}");
            // Without them, with the other weight, or with one alone, it is another result.
            if kernels == Kernels::Fast && spec == QuantSpec::F32 {
                let swapped = adapters(&[(&style, -0.5), (&detail, 0.75)]);
                for other in [Adapters::default(), swapped, adapters(&[(&style, 0.75)])] {
                    assert!(rel_l2(&run(&other), &truth) > 1e-2);
                }
            }
        }
        let rest = both.unused();
        let other = if case == "clip_l" { "unet" } else { "text_encoder" };
        let tells = |name: &String| {
            let kohya = if case == "clip_l" { "lora_unet_" } else { "lora_te_" };
            name.contains(kohya) || name.contains(&format!("{other}."))
        };
        assert!(!rest.is_empty() && rest.iter().all(tells), "{:?}", rest.first());
    }
}

/// Tensors with numbers that depend on their names' number alone.
fn tensors(shapes: &[(&str, &[usize])]) -> WeightStore {
    let tensors = shapes.iter().enumerate().map(|(i, (name, shape))| {
        let n: usize = shape.iter().product();
        let values = (0..n).map(|k| ((k * 37 + i * 11) as f32).sin() * 0.3).collect();
        (name.to_string(), Tensor::f32(shape, values))
    });
    WeightStore::from_tensors(&tensors.collect::<Vec<_>>()).unwrap()
}

fn run<'a>(
    shape: [usize; 4],
    x: &[f32],
    net: impl for<'g> Fn(Var<'g>) -> Var<'g> + 'a,
) -> Vec<f32> {
    let gpu = gpu().unwrap();
    let graph = Graph::new(Elem::F32);
    graph.output("y", net(graph.literal(shape, x.to_vec())));
    let plan = Plan::new(gpu, &graph, &PlanOptions::default()).unwrap();
    plan.run().unwrap();
    plan.read("y").unwrap()
}

/// A layer's result less what the same packed layer gives alone is the branch: nothing was merged. The
/// branch's own numbers are f16 (2⁻¹¹ each, 5e-4 at worst).
#[test]
fn a_branch_runs_beside_four_bits() {
    let Some(gpu) = gpu() else { return };
    let store = tensors(&[
        ("mid.conv1.weight", &[24, 64, 3, 3]),
        ("mid.conv1.bias", &[24]),
        ("mid.proj.weight", &[40, 64]),
    ]);
    let lora = tensors(&[
        ("lora_unet_mid_conv1.lora_down.weight", &[5, 64, 3, 3]),
        ("lora_unet_mid_conv1.lora_up.weight", &[24, 5, 1, 1]),
        ("lora_unet_mid_proj.lora_down.weight", &[3, 64]),
        ("lora_unet_mid_proj.lora_up.weight", &[40, 3]),
    ]);
    let mut adapters = Adapters::default();
    adapters.push(Lora::from_store(&lora, None).unwrap(), 0.5);
    let recipe = Recipe::uniform(QuantSpec::INT4);
    let plain = Loader::new(gpu, &store, &recipe);
    let adapted =
        Loader::new(gpu, &store, &recipe).with_adapters(&adapters, LoraNet::Unet).unwrap();
    let shape = [2, 6, 8, 64];
    let x: Vec<f32> = (0..2 * 6 * 8 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
    let value = |name: &str| lora.values(&format!("lora_unet_mid_{name}.weight")).unwrap();
    let product = |hidden: &[f64], up: &[f32], rank: usize| -> Vec<f32> {
        let rows = hidden.chunks(rank).flat_map(|h| {
            up.chunks(rank).map(move |u| {
                0.5 * h.iter().zip(u).map(|(h, u)| h * f64::from(*u)).sum::<f64>() as f32
            })
        });
        rows.collect()
    };
    let difference = |with: Vec<f32>, without: Vec<f32>| -> Vec<f32> {
        with.iter().zip(&without).map(|(a, b)| a - b).collect()
    };
    let (down, up) = (value("conv1.lora_down"), value("conv1.lora_up"));
    let down = conv_to_rows(&down, [5, 64, 3, 3]).0;
    for conv in [
        Conv::default(),
        Conv { stride: 2, ..Conv::default() },
        Conv { stride: 2, pad: Pad::End, ..Conv::default() },
        Conv { upsample: true, ..Conv::default() },
    ] {
        let layer = |ld: &Loader<'_>| ld.conv("mid.conv1", 64, 24, 3, conv).unwrap();
        let (with, without) = (layer(&adapted), layer(&plain));
        let y = |layer: &inknib::nn::Conv2d| run(shape, &x, |x| layer.forward(x));
        let expected = product(&oracle(&x, shape, &down, 3, conv), &up, 5);
        let e = rel_l2(&difference(y(&with), y(&without)), &expected);
        assert!(e <= 1e-3, "{conv:?}: {e:.2e}");
    }
    let layer = |ld: &Loader<'_>| ld.linear("mid.proj", 40, 64, Bias::No).unwrap();
    let (with, without) = (layer(&adapted), layer(&plain));
    let y = |layer: &inknib::nn::Linear| run(shape, &x, |x| layer.forward(x));
    let hidden = oracle(&x, shape, &value("proj.lora_down"), 1, Conv::default());
    let expected = product(&hidden, &value("proj.lora_up"), 3);
    let e = rel_l2(&difference(y(&with), y(&without)), &expected);
    assert!(e <= 1e-3, "linear: {e:.2e}");
    assert!(adapters.unused().is_empty(), "{:?}", adapters.unused());

    // The layer's own weight is what it was, and both matrices are counted.
    let report = adapted.report().tensors;
    let find = |name: &str| report.iter().find(|t| t.path == format!("mid.proj.{name}")).unwrap();
    assert_eq!(find("weight").format, plain.report().tensors.last().unwrap().format);
    let (down, up) = (find("lora_down"), find("lora_up"));
    assert_eq!((down.elements, up.elements), (3 * 64, 40 * 3));
    assert_eq!(down.format, inknib::quant::Format::F16);
    assert!(down.bytes >= 2 * 3 * 64 && up.bytes >= 2 * 40 * 3);
}

/// A layer that the checkpoint holds joined with others gets the rows of `up` that are its own.
#[test]
fn joined_layers_have_their_own_rows() {
    let Some(gpu) = gpu() else { return };
    let store = tensors(&[("qkv.weight", &[24, 32])]);
    let lora =
        tensors(&[("unet.qkv.lora_A.weight", &[2, 32]), ("unet.qkv.lora_B.weight", &[24, 2])]);
    let mut adapters = Adapters::default();
    adapters.push(Lora::from_store(&lora, None).unwrap(), 1.0);
    let recipe = Recipe::uniform(QuantSpec::F32);
    let loader = Loader::new(gpu, &store, &recipe).with_adapters(&adapters, LoraNet::Unet).unwrap();
    let whole = loader.linear("qkv", 24, 32, Bias::No).unwrap();
    let parts = loader.linears("qkv", [8, 4, 12], 32, Bias::No).unwrap();
    let x: Vec<f32> = (0..6 * 32).map(|i| (i as f32 * 0.37).sin()).collect();
    let whole = run([1, 1, 6, 32], &x, |x| whole.forward(x));
    let mut first = 0;
    for part in &parts {
        let n = part.weight.rows();
        let y = run([1, 1, 6, 32], &x, |x| part.forward(x));
        let own = whole.chunks(24).flat_map(|row| &row[first..first + n]).copied();
        // The same sums in the same order or, by another kernel, in another.
        assert!(rel_l2(&y, &own.collect::<Vec<_>>()) <= 1e-6);
        first += n;
    }
    assert_eq!(first, 24);
}

#[test]
fn a_lora_for_another_base_is_one_error() {
    let adapters = adapters(&[("style.kohya", 1.0)]);
    let (lora, _) = adapters.loras().next().unwrap();
    let count = lora.count(LoraNet::Unet);
    let vae = WeightStore::open(folder("vae_kl")).unwrap();
    let error = adapters.check(LoraNet::Unet, &vae).unwrap_err().to_string();
    let all = format!("{count} of {count} modules for the unet do not fit");
    assert!(error.contains(&all) && error.contains("another base model"), "{error}");
    assert!(error.contains("style.kohya.safetensors") && error.contains("nearest"), "{error}");

    let mut wider = read_tensors(folder("unet_sd15")).unwrap();
    for (name, tensor) in &mut wider {
        if name.contains("attn2.to_k") {
            *tensor = Tensor::zeros(&[tensor.shape[0], 32]);
        }
    }
    let wider = WeightStore::from_tensors(&wider).unwrap();
    let error = adapters.check(LoraNet::Unet, &wider).unwrap_err().to_string();
    assert!(
        error.contains("have another shape: `") && error.contains(", 32], its change ["),
        "{error}"
    );
    assert!(!error.contains("not in the model"), "{error}");
    let unet = WeightStore::open(folder("unet_sd15")).unwrap();
    adapters.check(LoraNet::Unet, &unet).unwrap();
    adapters.check(LoraNet::TextEncoder2, &unet).unwrap();
    assert_eq!(adapters.unused().len(), count + lora.count(LoraNet::TextEncoder));
    let error = adapters.branch(LoraNet::Unet, "conv_in", [16, 9, 9]).unwrap_err().to_string();
    assert!(error.contains("lora_unet_conv_in` is [16, 3] by [3, 4, 9 taps]"), "{error}");
}

#[test]
fn alpha_is_found_wherever_it_stands() {
    let store = tensors(&[
        ("base_model.model.a.to_q.lora_A.weight", &[4, 8]),
        ("base_model.model.a.to_q.lora_B.weight", &[8, 4]),
    ]);
    let up = |config: &str| {
        let config = serde_json::from_str(config).unwrap();
        let mut adapters = Adapters::default();
        adapters.push(Lora::from_store(&store, Some(&config)).unwrap(), 1.0);
        let low = adapters.branch(LoraNet::Unet, "a.to_q", [8, 1, 8]).unwrap().unwrap();
        // Of the second rank; how a factor is divided between the two matrices does not show in the product.
        low.up[1] * low.down[8]
    };
    let plain = up("{}");
    assert!(plain != 0.0);
    for (config, factor) in [
        (r#"{"lora_alpha": 8}"#, 2.0),
        (r#"{"lora_alpha": 8, "use_rslora": true}"#, 4.0),
        (r#"{"lora_alpha": 8, "alpha_pattern": {"to_q": 1}}"#, 0.25),
        (r#"{"lora_alpha": 8, "alpha_pattern": {"o_q": 1}}"#, 2.0),
    ] {
        assert!((up(config) / plain - factor).abs() < 1e-6, "{config}");
    }
    let dora = serde_json::from_str(r#"{"use_dora": true}"#).unwrap();
    let error = Lora::from_store(&store, Some(&dora)).unwrap_err().to_string();
    assert!(error.contains("DoRA"), "{error}");
}

#[test]
fn what_is_no_plain_lora_is_said() {
    let read = |shapes: &[(&str, &[usize])]| {
        Lora::from_store(&tensors(shapes), None).unwrap_err().to_string()
    };
    let down: (&str, &[usize]) = ("lora_unet_conv_in.lora_down.weight", &[2, 4, 3, 3]);
    for (shapes, expected) in [
        (vec![down], "only one of its two matrices"),
        (
            vec![down, ("lora_unet_conv_in.lora_up.weight", &[16, 3, 1, 1])],
            "do not belong together",
        ),
        (vec![down, ("lora_unet_conv_in.lora_mid.weight", &[2, 2, 3, 3])], "LoCon with a middle"),
        (vec![("lora_unet_conv_in.hada_w1_a", &[2, 2])], "LoHa"),
        (vec![("lora_unet_conv_in.dora_scale", &[2, 2])], "DoRA"),
        (vec![("conv_in.weight", &[2, 2])], "no part of a LoRA"),
        (vec![down, ("unet.conv_in.lora_A.weight", &[2, 4, 3, 3])], "names a module that another"),
    ] {
        let error = read(&shapes);
        assert!(error.contains(expected) && error.contains("conv_in"), "{error}");
    }
}
