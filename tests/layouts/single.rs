//! Single files, made of the golden nets by the names that diffusers' own converters read.

use inknib::gpu::Elem;
use inknib::graph::{Graph, Plan, PlanOptions};
use inknib::nets::clip::{ClipText, ClipTextConfig};
use inknib::nets::unet::{Unet, UnetConfig, UnetContext, UnetTime};
use inknib::nets::vae::{VaeConfig, VaeDecoder};
use inknib::nn::Loader;
use inknib::quant::{QuantSpec, Recipe};
use inknib::weights::{ImageFamily, ImageModel, Part, WeightStore};

use crate::device::gpu;
use crate::{golden, renamed, safetensors, same_tensors};

/// A whole Stable Diffusion 1.x: UNet, VAE and a text encoder (here OpenCLIP's).
fn whole() -> Vec<u8> {
    let parts = [("unet_sd15", "small_unet"), ("vae_kl", "small_vae"), ("clip_h", "small_clip")];
    let tensors: Vec<_> = parts.iter().flat_map(|(case, lines)| renamed(case, lines)).collect();
    safetensors(&tensors)
}

#[test]
fn a_single_file_is_its_folders() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, whole()).unwrap();
    let model = ImageModel::open(&path).unwrap();
    assert_eq!(model.kind().family, ImageFamily::Sd1);
    assert!(model.spare().is_empty(), "{:?}", model.spare());
    assert!(model.describe().contains("single file: UNet, VAE, text encoder"));
    for (part, case) in
        [(Part::Unet, "unet_sd15"), (Part::Vae, "vae_kl"), (Part::TextEncoder, "clip_h")]
    {
        let store = model.store(part).unwrap();
        same_tensors(&store, case);
        assert_eq!(store.files().collect::<Vec<_>>(), [path.as_path()]);
    }
    assert!(model.scheduler().unwrap().0.contains("\"prediction_type\":\"epsilon\""));
}

#[test]
fn sdxl_has_two_text_encoders() {
    let parts = [("unet_sdxl", "small_sdxl"), ("clip_g", "small_clip_2")];
    let mut tensors: Vec<_> = parts.iter().flat_map(|(case, lines)| renamed(case, lines)).collect();
    // The first encoder under transformers' names, published and bare.
    let first = inknib::weights::read_tensors(golden("clip_l_prefix")).unwrap();
    let prefix = "conditioner.embedders.0.transformer.";
    tensors.extend(first.into_iter().map(|(name, t)| (format!("{prefix}{name}"), t)));
    let model = ImageModel::from_bytes("xl", safetensors(&tensors)).unwrap();
    assert_eq!(model.kind().family, ImageFamily::Sdxl);
    same_tensors(&model.store(Part::Unet).unwrap(), "unet_sdxl");
    same_tensors(&model.store(Part::TextEncoder).unwrap(), "clip_l_prefix");
    same_tensors(&model.store(Part::TextEncoder2).unwrap(), "clip_g");
    let (unet, _) = model.config(Part::Unet).unwrap();
    let truth = inknib::weights::read_json::<serde_json::Value>(golden("unet_sdxl"), "config.json");
    let truth = truth.unwrap();
    for field in [
        "block_out_channels",
        "down_block_types",
        "up_block_types",
        "transformer_layers_per_block",
        "projection_class_embeddings_input_dim",
        "cross_attention_dim",
        "addition_embed_type",
        "use_linear_projection",
    ] {
        assert_eq!(unet[field], truth[field], "{field}");
    }
    assert_eq!(model.config(Part::TextEncoder2).unwrap().0["projection_dim"], 32);
    assert_eq!(model.config(Part::TextEncoder).unwrap().0["hidden_act"], "quick_gelu");
    assert_eq!(model.config(Part::TextEncoder2).unwrap().0["hidden_act"], "gelu");
}

#[test]
fn depths_that_differ_within_a_level() {
    let file = safetensors(&renamed("unet_ssd", "small_ssd"));
    let model = ImageModel::from_bytes("ssd", file).unwrap();
    same_tensors(&model.store(Part::Unet).unwrap(), "unet_ssd");
    let (unet, _) = model.config(Part::Unet).unwrap();
    let truth = inknib::weights::read_json::<serde_json::Value>(golden("unet_ssd"), "config.json");
    let truth = truth.unwrap();
    let fields = ["transformer_layers_per_block", "reverse_transformer_layers_per_block"];
    for field in [fields[0], fields[1], "mid_block_type"] {
        assert_eq!(unet[field], truth[field], "{field}");
    }
}

/// A UNet alone, whose other parts are named: as ComfyUI keeps them, and under diffusers' names.
#[test]
fn parts_from_several_files() {
    let temp = tempfile::tempdir().unwrap();
    let write = |name: &str, case: &str, lines: &str, prefix: &str| {
        let mut tensors = renamed(case, lines);
        for (name, _) in &mut tensors {
            *name = name.strip_prefix(prefix).unwrap().to_string();
        }
        let path = temp.path().join(name);
        std::fs::write(&path, safetensors(&tensors)).unwrap();
        path
    };
    let unet = write("unet.safetensors", "unet_sd15", "small_unet", "model.diffusion_model.");
    let vae = write("vae.safetensors", "vae_kl", "small_vae", "first_stage_model.");
    let clip = golden("clip_l_prefix/weights.safetensors");
    for unet in [unet, golden("unet_sd15/weights.safetensors")] {
        let model = ImageModel::open(&unet).unwrap();
        assert_eq!(model.parts().collect::<Vec<_>>(), [Part::Unet]);
        let e = model.store(Part::Vae).unwrap_err().to_string();
        assert!(e.contains("no VAE in it, only UNet"), "{e}");
        let model = model.with_part(Part::Vae, &vae).unwrap();
        let model = model.with_part(Part::TextEncoder, &clip).unwrap();
        same_tensors(&model.store(Part::Unet).unwrap(), "unet_sd15");
        same_tensors(&model.store(Part::Vae).unwrap(), "vae_kl");
        same_tensors(&model.store(Part::TextEncoder).unwrap(), "clip_l_prefix");
    }
    let e = ImageModel::open(&vae).unwrap_err();
    assert!(e.exit_code() == 4 && e.to_string().contains("no UNet in it, only VAE"), "{e}");
    let e = ImageModel::open(golden("unet_sd15/weights.safetensors"));
    let e = e.unwrap().with_part(Part::Vae, &clip).unwrap_err().to_string();
    assert!(e.contains("no VAE in it, only text encoder"), "{e}");
}

#[test]
fn missing_and_spare_tensors_are_named() {
    let mut tensors = renamed("unet_sd15", "small_unet");
    let gone = "model.diffusion_model.middle_block.1.proj_in.weight";
    tensors.retain(|(name, _)| name != gone);
    tensors.push(("what.is.this".into(), inknib::tensor::Tensor::f32(&[1], vec![0.0])));
    let model = ImageModel::from_bytes("odd", safetensors(&tensors)).unwrap();
    assert_eq!(model.spare(), ["what.is.this"]);
    let e = model.store(Part::Unet).unwrap_err();
    assert_eq!(e.exit_code(), 4);
    let e = e.to_string();
    for part in
        ["odd", "lacks 1 of the", "`mid_block.attentions.0.proj_in.weight`", "`what.is.this`"]
    {
        assert!(e.contains(part), "{part}: {e}");
    }
    // A configuration of fewer blocks than the file has: the nearest names are said.
    let temp = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(golden("unet_sd15/config.json")).unwrap();
    let shallow = text.replace("\"layers_per_block\": 2", "\"layers_per_block\": 1");
    assert_ne!(text, shallow);
    std::fs::write(temp.path().join("config.json"), shallow).unwrap();
    std::fs::copy(
        golden("unet_sd15/weights.safetensors"),
        temp.path().join("diffusion_pytorch_model.safetensors"),
    )
    .unwrap();
    let model = ImageModel::from_bytes("whole", whole()).unwrap();
    let e = model.with_part(Part::Unet, temp.path()).unwrap().store(Part::Unet).unwrap_err();
    let e = e.to_string();
    assert!(
        e.contains("tensors that its configuration does not know") && e.contains("nearest"),
        "{e}"
    );
}

/// The nets themselves, loaded from both layouts, give the same bits.
#[test]
fn nets_from_both_layouts_give_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let model = ImageModel::from_bytes("whole", whole()).unwrap();
    let recipe = Recipe::uniform(QuantSpec::INT4);
    let run = |graph: &Graph| {
        let plan = Plan::new(gpu, graph, &PlanOptions::default()).unwrap();
        plan.run().unwrap();
        plan.read("out").unwrap()
    };
    let vae = VaeConfig::read(golden("vae_kl")).unwrap();
    let stores = [model.store(Part::Vae).unwrap(), WeightStore::open(golden("vae_kl")).unwrap()];
    let pictures = stores.map(|store| {
        let decoder = VaeDecoder::load(&Loader::new(gpu, &store, &recipe), &vae).unwrap();
        let graph = Graph::new(Elem::F32);
        let z = graph.literal([1, 2, 2, 4], (0..16).map(|i| (i as f32).sin()).collect());
        graph.output("out", decoder.forward(z));
        run(&graph)
    });
    assert_eq!(pictures[0], pictures[1]);
    let clip = ClipTextConfig::read(golden("clip_h").join("config.json")).unwrap();
    let stores =
        [model.store(Part::TextEncoder).unwrap(), WeightStore::open(golden("clip_h")).unwrap()];
    let states = stores.map(|store| {
        let net = ClipText::load(&Loader::new(gpu, &store, &recipe), &clip).unwrap();
        let graph = Graph::new(Elem::F32);
        graph.output("out", net.forward(graph.input("ids", [1, 7], Elem::U32)));
        let plan = Plan::new(gpu, &graph, &PlanOptions::default()).unwrap();
        plan.set_u32("ids", &[1, 2, 3, 50, 60, 70, 299]).unwrap();
        plan.run().unwrap();
        plan.read("out").unwrap()
    });
    assert_eq!(states[0], states[1]);
    // The UNet's own configuration from shapes, but for heads, which shapes do not tell.
    let config = UnetConfig::read(golden("unet_sd15")).unwrap();
    let store = model.store(Part::Unet).unwrap();
    let loader = Loader::new(gpu, &store, &recipe);
    Unet::load(&loader, &config).unwrap();
    UnetTime::load(&loader, &config).unwrap();
    UnetContext::load(&loader, &config).unwrap();
    let (found, source) = model.config(Part::Unet).unwrap();
    let found = UnetConfig::from_value(&found, &source).unwrap();
    assert_eq!(found.block_out_channels, config.block_out_channels);
    assert_eq!(found.cross_attention_dim, config.cross_attention_dim);
}

/// Cut anywhere, or with any byte of its header changed, a file is an error or a model, never a panic.
#[test]
fn no_damage_panics() {
    let lines = renamed("vae_kl", "small_vae").into_iter().take(24);
    let unet = renamed("unet_sd15", "small_unet").into_iter().take(24);
    let clip = renamed("clip_g", "small_clip_2").into_iter().take(24);
    let tensors = lines.chain(unet).chain(clip).map(|(name, mut t)| {
        // Names matter here, not numbers.
        t.data = inknib::tensor::Data::F32(vec![0.5; 6]);
        t.shape = if t.shape.len() == 1 { vec![6] } else { vec![3, 2] };
        (name, t)
    });
    let good = safetensors(&tensors.collect::<Vec<_>>());
    let exercise = |bytes: Vec<u8>| {
        let Ok(model) = ImageModel::from_bytes("damaged", bytes) else { return };
        for part in Part::ALL {
            let _ = (model.config(part).is_ok(), model.describe(), model.scheduler().is_ok());
            if let Ok(store) = model.store(part) {
                let names: Vec<String> = store.names().map(String::from).collect();
                names.iter().for_each(|name| drop(store.values(name)));
            }
        }
    };
    exercise(good.clone());
    for length in (0..good.len()).step_by(7) {
        exercise(good[..length].to_vec());
    }
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    for at in (0..header).step_by(5) {
        for value in [b'9', b'.', good[at] ^ 1] {
            let mut bad = good.clone();
            bad[at] = value;
            exercise(bad);
        }
    }
}

/// A single file quantizes to a folder, with the configurations that the file implies.
#[test]
fn a_single_file_quantizes_to_a_folder() {
    let temp = tempfile::tempdir().unwrap();
    let (path, out) = (temp.path().join("whole.safetensors"), temp.path().join("out"));
    std::fs::write(&path, whole()).unwrap();
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_inknib"))
        .args(["quantize", "--weights", "int8", "-m"])
        .args([path.as_os_str(), "-o".as_ref(), out.as_os_str()])
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let (made, from) = (ImageModel::open(&out).unwrap(), ImageModel::open(&path).unwrap());
    assert_eq!(made.kind(), from.kind());
    assert_eq!(made.vocabulary(Part::TextEncoder), from.vocabulary(Part::TextEncoder));
    for part in from.parts() {
        let store = made.store(part).unwrap();
        assert!(store.quantized().is_some());
        assert_eq!(store.names().count(), from.store(part).unwrap().names().count(), "{part}");
        assert_eq!(made.config(part).unwrap().0, from.config(part).unwrap().0, "{part}");
    }
    assert_eq!(
        made.scheduler().unwrap().0.parse::<serde_json::Value>().unwrap()["beta_end"],
        0.012
    );
}
