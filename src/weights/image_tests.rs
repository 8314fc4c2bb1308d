//! Single files of true sizes, by names and shapes alone (tests/golden/layouts, made by diffusers' own
//! converters).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::image_expect::{complaint, expected};
use super::image_file::ImageFile;
use super::image_kind::{ImageFamily, Kind};
use super::image_model::Part;
use super::image_shapes::{Shapes, config, family_of};

/// A tensor of a file: name, shape, diffusers' names.
type Line = (String, Vec<usize>, Vec<String>);

fn golden(name: &str) -> Vec<Line> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join(format!("tests/golden/layouts/{name}.json")));
    let lines: Vec<Vec<Value>> = serde_json::from_str(&text.unwrap()).unwrap();
    let line = |line: Vec<Value>| {
        let text = |v: &Value| v.as_str().unwrap().to_string();
        let shape = serde_json::from_value(line[1].clone()).unwrap();
        (text(&line[0]), shape, line[2..].iter().map(text).collect())
    };
    lines.into_iter().map(line).collect()
}

fn shapes(lines: &[Line]) -> Shapes {
    lines.iter().map(|(name, shape, _)| (name.clone(), shape.clone())).collect()
}

fn file(name: &str, shapes: &Shapes) -> ImageFile {
    ImageFile::of_shapes(Path::new(name), shapes).unwrap()
}

/// Every name, the family, and the published configuration of each part, told from shapes alone.
fn check(name: &str, family: ImageFamily, parts: &[Part]) -> BTreeMap<Part, Value> {
    let lines = golden(name);
    let file = file("model.safetensors", &shapes(&lines));
    assert_eq!(file.parts().collect::<Vec<_>>(), parts, "{name}");
    assert!(file.spare().is_empty(), "{name}: {:?}", file.spare());
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pick in parts.iter().flat_map(|part| file.picks_of(*part)) {
        found.entry(pick.from.clone()).or_default().push(pick.to.clone());
    }
    for (from, _, to) in &lines {
        let mut got = found.remove(from).unwrap_or_default();
        // In the order of their rows, which is q, k, v.
        got.sort_by_key(|name| "qkv".find(&name[name.len().saturating_sub(13)..][..1]));
        let mut to = to.clone();
        if got.len() == 1 && to[0] == "text_projection" {
            to = got.clone();
        }
        assert_eq!(sorted(got), sorted(to), "{name}: {from}");
    }
    assert!(found.is_empty(), "{name}: {found:?}");
    let encoders = [Part::TextEncoder, Part::TextEncoder2].map(|p| file.has(p));
    assert_eq!(family_of(&file.shapes(Part::Unet), encoders), family, "{name}");
    let configs = parts.iter().map(|&part| {
        let value = config(family, part, &file.shapes(part), None).unwrap();
        let names: Vec<String> = file.shapes(part).into_keys().collect();
        let wanted = expected(part, &value).unwrap();
        assert_eq!(complaint(&wanted, &names), None, "{name} {part}");
        (part, value)
    });
    configs.collect()
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

/// The published configuration, where the shared data is there.
fn published(model: &str, part: Part) -> Option<Value> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let root = std::env::var_os("INKNIB_SHARED").map_or_else(beside, PathBuf::from);
    let file = root.join("data/configs").join(model).join(part.folder()).join("config.json");
    let Ok(text) = std::fs::read_to_string(&file) else {
        println!("skipped: no {}", file.display());
        return None;
    };
    serde_json::from_str(&text).ok()
}

/// Every field of the published file that says something about the net.
fn same(model: &str, part: Part, found: &Value) {
    let Some(truth) = published(model, part) else { return };
    // Where it came from, and how it was trained.
    let about = ["_name_or_path", "_diffusers_version", "architectures", "torch_dtype"];
    let training = ["attention_dropout", "dropout", "initializer_factor", "initializer_range"];
    for (field, value) in truth.as_object().unwrap() {
        let skipped = about.contains(&field.as_str()) || training.contains(&field.as_str());
        if !skipped && field != "transformers_version" {
            assert_eq!(&found[field], value, "{model} {part}: {field}");
        }
    }
}

#[test]
fn stable_diffusion_1() {
    let parts = [Part::Unet, Part::Vae, Part::TextEncoder];
    let configs = check("sd1", ImageFamily::Sd1, &parts);
    for part in parts {
        same("stable-diffusion-v1-5", part, &configs[&part]);
    }
}

#[test]
fn stable_diffusion_2() {
    let configs = check("sd2", ImageFamily::Sd2, &[Part::Unet, Part::TextEncoder]);
    for part in [Part::Unet, Part::TextEncoder] {
        same("stable-diffusion-2-1", part, &configs[&part]);
    }
}

#[test]
fn sdxl_and_its_refiner() {
    let parts = [Part::Unet, Part::TextEncoder, Part::TextEncoder2];
    let configs = check("sdxl", ImageFamily::Sdxl, &parts);
    for part in parts {
        same("stable-diffusion-xl-base-1.0", part, &configs[&part]);
    }
    let refiner = check("refiner", ImageFamily::SdxlRefiner, &[Part::Unet]);
    let refiner = &refiner[&Part::Unet];
    assert_eq!(refiner["attention_head_dim"], json!([6, 12, 24, 24]));
    assert_eq!(refiner["transformer_layers_per_block"], json!([1, 4, 4, 4]));
    assert_eq!(refiner["addition_time_embed_dim"], 256);
    assert_eq!(refiner["projection_class_embeddings_input_dim"], 2560);
}

/// Names that a file may have beside those, and forms of the same model.
#[test]
fn variants_of_stable_diffusion_1() {
    let whole = golden("sd1");
    let renamed = |rename: &dyn Fn(&str) -> Option<String>| -> Shapes {
        let line = |(name, shape, _): &Line| Some((rename(name)?, shape.clone()));
        whole.iter().filter_map(line).collect()
    };
    // ComfyUI's UNets have no prefix; a VAE alone has none either.
    let bare = file("unet", &renamed(&|n| Some(n.strip_prefix("model.diffusion_model.")?.into())));
    assert_eq!(bare.parts().collect::<Vec<_>>(), [Part::Unet]);
    let vae = file("vae", &renamed(&|n| Some(n.strip_prefix("first_stage_model.")?.into())));
    assert_eq!(vae.parts().collect::<Vec<_>>(), [Part::Vae]);
    assert!(bare.spare().is_empty() && vae.spare().is_empty());
    // Inpainting UNets read nine channels, latent consistency models the guidance scale.
    let mut shapes = renamed(&|n| Some(n.to_string()));
    shapes.insert("model.diffusion_model.input_blocks.0.0.weight".into(), vec![320, 9, 3, 3]);
    shapes.insert("model.diffusion_model.time_embed.cond_proj.weight".into(), vec![320, 256]);
    for junk in ["model_ema.decay", "alphas_cumprod", "cond_stage_model.logit_scale"] {
        shapes.insert(junk.into(), vec![1]);
    }
    shapes.insert("first_stage_model.loss.logvar".into(), vec![1]);
    shapes.insert(
        "cond_stage_model.transformer.text_model.embeddings.position_ids".into(),
        vec![1, 77],
    );
    shapes.insert("somebody.else".into(), vec![1]);
    let odd = file("odd", &shapes);
    assert_eq!(odd.spare(), ["somebody.else"]);
    let unet = odd.shapes(Part::Unet);
    let kind = Kind::of_file(&odd, ImageFamily::Sd1, &unet).unwrap();
    assert!(kind.inpaint && kind.lcm, "{kind:?}");
    let found = config(ImageFamily::Sd1, Part::Unet, &unet, None).unwrap();
    assert_eq!((&found["in_channels"], &found["time_cond_proj_dim"]), (&json!(9), &json!(256)));
}

#[test]
fn what_a_file_does_not_say() {
    let lines = shapes(&golden("sd2"));
    let kind = |name: &str, markers: &[&str]| {
        let mut shapes = lines.clone();
        shapes.extend(markers.iter().map(|m| (m.to_string(), vec![])));
        let file = file(name, &shapes);
        let family = family_of(&file.shapes(Part::Unet), [true, false]);
        Kind::of_file(&file, family, &file.shapes(Part::Unet)).unwrap()
    };
    let guessed = kind("models/mine.safetensors", &[]);
    assert_eq!(guessed.prediction, "v_prediction");
    assert!(guessed.assumed.unwrap().contains("epsilon"));
    let named = kind("v2-1_512-ema-pruned.safetensors", &[]);
    assert!(named.prediction == "epsilon" && named.assumed.unwrap().contains("v2-1_512"));
    assert_eq!(kind("v2-1_768-v-ema.safetensors", &[]).prediction, "v_prediction");
    let turbo = kind("sd_turbo.safetensors", &[]);
    assert!(turbo.turbo && turbo.prediction == "epsilon");
    assert_eq!(turbo.schedule()["timestep_spacing"], "trailing");
    assert_eq!(guessed.family, ImageFamily::Sd2);
}

/// Stable Diffusion 2.x's file has all 24 layers of OpenCLIP-H; the last one is not used.
#[test]
fn the_last_layer_of_open_clip_h_is_left_out() {
    let mut shapes = shapes(&golden("sd2"));
    let layer = |name: &str| name.contains("resblocks.22.");
    let last: Vec<_> = shapes.iter().filter(|(n, _)| layer(n)).collect();
    let last: Vec<_> = last
        .iter()
        .map(|(n, s)| (n.replace("resblocks.22.", "resblocks.23."), s.to_vec()))
        .collect();
    assert_eq!(last.len(), 12);
    shapes.extend(last);
    let file = file("sd2", &shapes);
    assert!(file.spare().is_empty());
    let text = config(ImageFamily::Sd2, Part::TextEncoder, &file.shapes(Part::TextEncoder), None);
    assert_eq!(text.unwrap()["num_hidden_layers"], 23);
}

#[test]
fn others_are_refused_by_name() {
    let refuse = |name: &str| {
        let shapes = Shapes::from([(name.to_string(), vec![1, 1])]);
        ImageFile::of_shapes(Path::new("x.safetensors"), &shapes).unwrap_err().to_string()
    };
    assert!(refuse("double_blocks.0.img_attn.proj.weight").contains("Flux"));
    assert!(refuse("model.diffusion_model.joint_blocks.0.x").contains("Stable Diffusion 3"));
    assert!(refuse("lora_unet_mid.lora_up.weight").contains("a LoRA"));
    let e = refuse("weird.weight");
    assert!(e.contains("weird.weight") && e.contains("UNet"), "{e}");
}
