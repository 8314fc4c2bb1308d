//! UNets and text encoders against golden tensors of diffusers and transformers, and the errors of their
//! inputs.

use super::*;
use inknib::nets::clip::{ClipText, ClipTextConfig};
use inknib::nets::controlnet::{ControlNet, ControlNetConfig, ControlPicture};
use inknib::nets::unet::{
    TimeConditions, Unet, UnetConfig, UnetContext, UnetTime, guidance_embedding,
};
use inknib::nets::unet2d::{Unet2d, Unet2dConfig};
use inknib::weights::read_tensors;

#[test]
fn clip_with_quick_gelu() {
    check("clip_l", 3, &[]);
}

#[test]
fn clip_with_published_names() {
    check("clip_l_prefix", 3, &[]);
}

#[test]
fn clip_with_gelu() {
    check("clip_h", 3, &[]);
}

/// With a projection, the state that `clip_skip` 1 gives, and an end token of 2, which means the highest.
#[test]
fn clip_with_projection() {
    check("clip_g", 4, &[]);
}

#[test]
fn unet_of_sd15() {
    check("unet_sd15", 15, &[]);
}

#[test]
fn unet_of_sd21() {
    check("unet_sd21", 15, &[]);
}

/// Pooled text and sizes in the time embedding, 1, 2 and 3 transformer blocks a level.
#[test]
fn unet_of_sdxl() {
    check("unet_sdxl", 12, &[]);
}

/// A guidance scale in the time embedding, and the nine channels of an inpainting model.
#[test]
fn unet_of_an_lcm() {
    check("unet_lcm", 6, &[]);
}

/// Other depths within a level and on the way up, and a middle of one resnet (SSD-1B).
#[test]
fn unet_of_ssd() {
    check("unet_ssd", 6, &[]);
}

/// Without a prompt, heads of eight channels.
#[test]
fn unet_without_a_prompt() {
    check("unet2d", 8, &[]);
}

/// Zeros behind the picture alone, sines first, one head of all channels.
#[test]
fn unet_of_ddpm() {
    check("unet2d_ddpm", 8, &[]);
}

/// The kernels as a real GPU gets them: tiles of sixty-four, gates and norms in one launch, sums in parts.
#[test]
fn kernels_for_hardware_give_the_same() {
    let Some(gpu) = gpu() else { return };
    for case in ["unet_sd15", "unet_sd21", "unet_sdxl", "unet2d", "clip_l", "clip_g", "vae_kl"] {
        let report = verify(folder(case), "fp32", Kernels::Hardware, gpu).unwrap();
        expect(&report, Kernels::Hardware, &[]);
    }
}

#[test]
fn controlnet_residuals() {
    check("controlnet", 14, &["unet_out"]);
}

/// diffusers' UNet with a ControlNet at 0.8. Two of the same at 0.5 and 0.3 add up to it, which shows
/// that sums are taken and that the scale is an input.
#[test]
fn unet_under_controlnets() {
    let Some(gpu) = gpu() else { return };
    let golden = golden(&folder("controlnet")).unwrap();
    let find = |name: &str| &golden.iter().find(|(n, _)| n == name).unwrap().1;
    let config = UnetConfig::read(folder("unet_sd15")).unwrap();
    let (store, recipe) = fp32("unet_sd15");
    let ld = Loader::new(gpu, &store, &recipe);
    let control = ControlNetConfig::read(folder("controlnet")).unwrap();
    let (own_store, _) = fp32("controlnet");
    let own = Loader::new(gpu, &own_store, &recipe);
    let net = ControlNet::load(&own, &control).unwrap();
    let graph = Graph::new(Elem::F32);
    let input = |name: &str| {
        let tensor = find(name);
        let values = tensor.to_f32();
        let (n, c, pixels) = (tensor.shape[0], tensor.shape[1], tensor.shape[2] * tensor.shape[3]);
        let at = |i: usize| values[((i / c / pixels) * c + i % c) * pixels + i / c % pixels];
        let values = (0..values.len()).map(at).collect();
        graph.literal([n, tensor.shape[2], tensor.shape[3], c], values)
    };
    let prompt = graph.literal([2, 77, 24], find("encoder_hidden_states").to_f32());
    let (steps, row) = (graph.input("t", [2], Elem::F32), graph.input("row", [2], Elem::U32));
    let tables = |ld: &Loader<'_>, config: &UnetConfig| {
        UnetTime::load(ld, config).unwrap().table(steps, &TimeConditions::default())
    };
    let pairs = |ld: &Loader<'_>, config: &UnetConfig| {
        UnetContext::load(ld, config).unwrap().keys_values(prompt)
    };
    let (x, picture) = (input("sample"), ControlPicture::load(&own, &control).unwrap());
    let picture = picture.forward(input("cond"));
    let (own_time, own_kv) = (tables(&own, &control.unet), pairs(&own, &control.unet));
    let controls = ["first", "second"].map(|name| {
        let scale = graph.input(name, [1], Elem::F32);
        net.forward(x, picture, &own_time, row, &own_kv, scale)
    });
    let unet = Unet::load(&ld, &config).unwrap();
    let (time, kv) = (tables(&ld, &config), pairs(&ld, &config));
    graph.output("out", unet.controlled(x, &time, row, &kv, &controls));
    let plan = Plan::new(gpu, &graph, &PlanOptions::default()).unwrap();
    plan.set("t", &[981.0, 1.0]).unwrap();
    plan.set_u32("row", &[0, 1]).unwrap();
    let expected = find("unet_out");
    let expected = Tensor::f32(&[2, 8, 12, 4], {
        let values = expected.to_f32();
        (0..values.len()).map(|i| values[((i / 384) * 4 + i % 4) * 96 + i / 4 % 96]).collect()
    });
    for (first, second, same) in [(0.8, 0.0, true), (0.5, 0.3, true), (0.0, 0.0, false)] {
        plan.set("first", &[first]).unwrap();
        plan.set("second", &[second]).unwrap();
        plan.run().unwrap();
        let out = Tensor::f32(&[2, 8, 12, 4], plan.read("out").unwrap());
        let error = nmse(&out, &expected).sqrt();
        println!("ControlNets at {first} and {second}: relative error {error:.1e}");
        // The limit of `verify` in fp32; without control the picture is another one.
        assert!(if same { error <= 2e-5 } else { error > 0.1 }, "{error}");
    }
}

#[test]
fn a_control_picture_of_another_size_is_an_error_with_the_size_that_fits() {
    let Some(gpu) = gpu() else { return };
    let config = ControlNetConfig::read(folder("controlnet")).unwrap();
    let (store, recipe) = fp32("controlnet");
    let net = ControlNet::load(&Loader::new(gpu, &store, &recipe), &config).unwrap();
    let graph = Graph::new(Elem::F32);
    let input = |name: &str, shape: &[usize]| graph.input(name, shape, Elem::F32);
    let row = graph.input("row", [1], Elem::U32);
    let time = vec![input("t", &[1, 16]); 8];
    let kv = vec![(input("k", &[1, 77, 16]), input("v", &[1, 77, 16])); 5];
    let (x, picture) = (input("x", &[1, 8, 12, 4]), input("picture", &[1, 8, 8, 16]));
    net.forward(x, picture, &time, row, &kv, input("scale", &[1]));
    let error = graph.finish().unwrap_err().to_string();
    assert!(error.contains("48x32 pixels") && error.contains("diffusion.rs"), "{error}");
}

/// Names that diffusers wrote before version 0.12, as the DDPM checkpoints of the Hub have them.
#[test]
fn pixel_attention_under_its_old_names() {
    let Some(gpu) = gpu() else { return };
    let renames =
        [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
    let mut tensors = read_tensors(folder("unet2d")).unwrap();
    for (name, _) in &mut tensors {
        for (new, old) in renames {
            *name = name.replace(new, old);
        }
    }
    let config = Unet2dConfig::read(folder("unet2d")).unwrap();
    let (new, recipe) = fp32("unet2d");
    let old = WeightStore::from_tensors(&tensors).unwrap();
    assert!(old.contains("mid_block.attentions.0.proj_attn.weight"));
    let outputs = [old, new].map(|store| {
        let ld = Loader::new(gpu, &store, &recipe);
        let graph = Graph::new(Elem::F32);
        let x = graph.literal([1, 4, 4, 3], (0..48).map(|i| (i as f32).sin()).collect());
        let time = UnetTime::load(&ld, &config.unet).unwrap();
        let t = graph.literal_f32([1], vec![500.0]);
        let time = time.table(t, &TimeConditions::default());
        let row = graph.input("row", [1], Elem::U32);
        graph.output("out", Unet2d::load(&ld, &config).unwrap().forward(x, &time, row));
        let plan = Plan::new(gpu, &graph, &PlanOptions::default()).unwrap();
        plan.set_u32("row", &[0]).unwrap();
        plan.run().unwrap();
        plan.read("out").unwrap()
    });
    assert_eq!(outputs[0], outputs[1]);
}

/// Angles reach 6500; sin and cos of libraries differ by a unit in the last place of 1, 6e-8.
#[test]
fn guidance_embedding_is_diffusers() {
    let golden = golden(&folder("unet_lcm")).unwrap();
    let find = |name: &str| golden.iter().find(|(n, _)| n == name).unwrap().1.to_f32();
    let (scales, expected) = (find("guidance_scale"), find("timestep_cond"));
    for (scale, expected) in scales.iter().zip(expected.chunks_exact(16)) {
        let ours = guidance_embedding(*scale, 16);
        let worst = ours.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("guidance {scale}: worst {worst:.1e}");
        assert!(worst <= 2e-7, "{ours:?} against {expected:?}");
    }
}

fn fp32(case: &str) -> (WeightStore, Recipe) {
    (WeightStore::open(folder(case)).unwrap(), Recipe::uniform(QuantSpec::F32))
}

#[test]
fn odd_sizes_and_wrong_tables_are_errors_with_the_models_line() {
    let Some(gpu) = gpu() else { return };
    let dir = folder("unet_sd15");
    let (config, (store, recipe)) = (UnetConfig::read(dir).unwrap(), fp32("unet_sd15"));
    let unet = Unet::load(&Loader::new(gpu, &store, &recipe), &config).unwrap();
    for (height, expected) in [(6, "multiples of 4, for instance 8x8"), (8, "0 time tables")] {
        let graph = Graph::new(Elem::F32);
        let x = graph.input("x", [1, height, 8, 4], Elem::F32);
        let row = graph.input("row", [1], Elem::U32);
        graph.output("eps", unet.forward(x, &[], row, &[]));
        let error = graph.finish().unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("tests/nets/diffusion.rs"), "{error}");
    }
}

/// Row `step · items + item` of a table made for all steps and items is what a table for that one step
/// and item holds: both are the same sums in the same order.
#[test]
fn a_table_has_a_row_for_each_step_and_item() {
    let Some(gpu) = gpu() else { return };
    let case = "unet_sdxl";
    let (config, (store, recipe)) = (UnetConfig::read(folder(case)).unwrap(), fp32(case));
    let net = UnetTime::load(&Loader::new(gpu, &store, &recipe), &config).unwrap();
    let text: Vec<f32> = (0..40).map(|i| (i as f32).sin()).collect();
    let sizes = [1024.0, 768.0, 0.0, 8.0, 1024.0, 768.0, 512.0, 512.0, 0.0, 0.0, 512.0, 512.0];
    let table = |steps: &[f32], items: std::ops::Range<usize>| -> Vec<f32> {
        let (graph, n) = (Graph::new(Elem::F32), items.len());
        let t = graph.literal_f32([steps.len()], steps.to_vec());
        let text = text[items.start * 20..items.end * 20].to_vec();
        let sizes = sizes[items.start * 6..items.end * 6].to_vec();
        let conditions = TimeConditions {
            text_embeds: Some(graph.literal([n, 20], text)),
            time_ids: Some(graph.literal_f32([n, 6], sizes)),
            ..Default::default()
        };
        graph.output("last", *net.table(t, &conditions).last().unwrap());
        let plan = Plan::new(gpu, &graph, &PlanOptions::default()).unwrap();
        plan.run().unwrap();
        plan.read("last").unwrap()
    };
    let steps = [981.0, 500.0, 1.0];
    let all = table(&steps, 0..2);
    for (step, item) in [(0, 1), (1, 0), (2, 1)] {
        let one = table(&steps[step..=step], item..item + 1);
        let row = &all[(step * 2 + item) * one.len()..][..one.len()];
        let worst = one.iter().zip(row).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // Another number of rows may take another kernel, which adds in another order.
        assert!(worst <= 1e-5, "step {step}, item {item}: {worst}");
    }
}

#[test]
fn conditions_that_a_unet_does_not_take_are_errors() {
    let Some(gpu) = gpu() else { return };
    let refused = |case: &str, dim: usize, expected: &str| {
        let (config, (store, recipe)) = (UnetConfig::read(folder(case)).unwrap(), fp32(case));
        let net = UnetTime::load(&Loader::new(gpu, &store, &recipe), &config).unwrap();
        let graph = Graph::new(Elem::F32);
        let input = |name: &str, n| Some(graph.input(name, [1, n], Elem::F32));
        let conditions = match dim {
            0 => TimeConditions::default(),
            n => TimeConditions {
                text_embeds: input("text", n),
                time_ids: input("ids", 6),
                ..Default::default()
            },
        };
        net.table(graph.input("t", [1], Elem::F32), &conditions);
        let error = graph.finish().unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("diffusion.rs"), "{error}");
    };
    refused("unet_sdxl", 0, "nothing of pooled text");
    refused("unet_sdxl", 32, "channels + 8 n = 68");
    refused("unet_sd15", 20, "this UNet takes neither");
    refused("unet_lcm", 0, "takes its embedding, [items, 16]");
}

#[test]
fn states_that_a_text_encoder_does_not_have_are_errors() {
    let Some(gpu) = gpu() else { return };
    let (config, (store, recipe)) =
        (ClipTextConfig::read(folder("clip_l")).unwrap(), fp32("clip_l"));
    let clip = ClipText::load(&Loader::new(gpu, &store, &recipe), &config).unwrap();
    for (projected, expected) in [(true, "CLIPTextModelWithProjection"), (false, "4 layers to be")]
    {
        let graph = Graph::new(Elem::F32);
        let states = clip.states(graph.input("ids", [1, 77], Elem::U32));
        match projected {
            true => states.text_embeds(graph.input("rows", [1], Elem::U32)),
            false => states.hidden(4),
        };
        let error = graph.finish().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
