//! UNets and text encoders against golden tensors of diffusers and transformers, and the errors of their
//! inputs.

use super::*;
use inknib::nets::clip::{ClipText, ClipTextConfig};
use inknib::nets::unet::{TimeConditions, Unet, UnetConfig, UnetTime, guidance_embedding};

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
