//! Published architectures: the tensors that a net loads are those that diffusers and transformers build from the
//! same configuration (tests/golden/architectures), and what of them stays on the GPU.

use std::collections::BTreeMap;
use std::io::Write;

use super::*;
use inknib::graph::Graph;
use inknib::nets::clip::{ClipText, ClipTextConfig};
use inknib::nets::controlnet::{ControlNet, ControlNetConfig, ControlPicture};
use inknib::nets::unet::{TimeConditions, Unet, UnetConfig, UnetContext, UnetTime};
use inknib::nets::unet2d::{Unet2d, Unet2dConfig};
use inknib::nn::LoadReport;
use serde_json::{Map, Value, json};

/// A class, its configuration, and its tensors with their shapes.
struct Architecture {
    class: String,
    config: Value,
    parameters: u64,
    tensors: BTreeMap<String, Vec<u64>>,
}

fn architecture(name: &str) -> Architecture {
    let path = folder("architectures").join(format!("{name}.json"));
    let case: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut tensors = BTreeMap::new();
    let mut open = vec![(String::new(), &case["tensors"])];
    while let Some((name, node)) = open.pop() {
        match node {
            Value::Object(parts) => open.extend(parts.iter().map(|(part, node)| {
                let dot = if name.is_empty() { "" } else { "." };
                (format!("{name}{dot}{part}"), node)
            })),
            shape => {
                let shape = shape.as_array().unwrap().iter().map(|n| n.as_u64().unwrap());
                tensors.insert(name, shape.collect());
            }
        }
    }
    Architecture {
        class: case["class"].as_str().unwrap().into(),
        config: case["config"].clone(),
        parameters: case["parameters"].as_u64().unwrap(),
        tensors,
    }
}

/// A checkpoint with these tensors, all zeros, in a file of holes.
fn checkpoint(tensors: &BTreeMap<String, Vec<u64>>, folder: &Path) -> WeightStore {
    let (mut header, mut at) = (Map::new(), 0u64);
    for (name, shape) in tensors {
        let end = at + 2 * shape.iter().product::<u64>();
        let entry = json!({"dtype": "F16", "shape": shape, "data_offsets": [at, end]});
        header.insert(name.clone(), entry);
        at = end;
    }
    let header = serde_json::to_vec(&header).unwrap();
    let path = folder.join("model.safetensors");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(8 + header.len() as u64 + at).unwrap();
    WeightStore::open(&path).unwrap()
}

/// Everything that the class loads, and what of it stays for all steps.
fn load(case: &Architecture, ld: &Loader<'_>) -> (LoadReport, LoadReport) {
    let source = Path::new("config.json");
    let hoisted = |unet: &UnetConfig| {
        let resident = ld.report();
        UnetTime::load(ld, unet).unwrap();
        UnetContext::load(ld, unet).unwrap();
        resident
    };
    let resident = match case.class.as_str() {
        "UNet2DConditionModel" => {
            let config = UnetConfig::from_value(&case.config, source).unwrap();
            Unet::load(ld, &config).unwrap();
            hoisted(&config)
        }
        "UNet2DModel" => {
            let config = Unet2dConfig::from_value(&case.config, source).unwrap();
            Unet2d::load(ld, &config).unwrap();
            hoisted(&config.unet)
        }
        "ControlNetModel" => {
            let config = ControlNetConfig::from_value(&case.config, source).unwrap();
            ControlNet::load(ld, &config).unwrap();
            let resident = hoisted(&config.unet);
            ControlPicture::load(ld, &config).unwrap();
            resident
        }
        _ => {
            let config = ClipTextConfig::from_value(&case.config, source).unwrap();
            ClipText::load(ld, &config).unwrap();
            ld.report()
        }
    };
    (ld.report(), resident)
}

/// The net loads each tensor once, in its shape, and no other; and so much of it is resident in INT4 as the
/// recipe leaves, in bytes.
fn loads(name: &str, parameters: u64, most_resident: Option<u64>) {
    let Some(gpu) = gpu() else { return };
    let case = architecture(name);
    assert_eq!(case.parameters, parameters, "{name}");
    let family = match case.class.contains("CLIP") {
        true => Family::ClipText,
        false => Family::Unet,
    };
    let (folder, recipe) = (tempfile::tempdir().unwrap(), recipe("int4", family).unwrap());
    let store = checkpoint(&case.tensors, folder.path());
    // The shape of each tensor is checked by the loader.
    let (all, resident) = load(&case, &Loader::outline(gpu, &store, &recipe));
    let mut loaded: Vec<&str> = all.tensors.iter().map(|t| t.path.as_str()).collect();
    loaded.sort_unstable();
    let wanted: Vec<&str> = case.tensors.keys().map(String::as_str).collect();
    let missing: Vec<_> = wanted.iter().filter(|name| !loaded.contains(name)).collect();
    assert!(missing.is_empty(), "{name}: not loaded {missing:?}");
    assert_eq!(loaded, wanted, "{name}: loaded twice");
    assert_eq!(all.elements(), parameters, "{name}");
    let bytes = resident.resident_bytes();
    println!(
        "{name}: {} tensors, {parameters} parameters; resident in INT4 {bytes} bytes, {:.2} bits per weight",
        wanted.len(),
        resident.bits_per_weight()
    );
    assert!(bytes <= most_resident.unwrap_or(u64::MAX), "{name}: {bytes} bytes");
}

/// 0.48 GB is what the whole of SD 1.5's UNet may keep on the GPU.
#[test]
fn stable_diffusion_1_5() {
    loads("sd15_unet", 859_520_964, Some(480_000_000));
    loads("sd15_text", 123_060_480, None);
}

#[test]
fn stable_diffusion_2_1() {
    loads("sd21_unet", 865_910_724, Some(480_000_000));
    loads("sd21_text", 340_387_840, None);
}

/// 1.30 GB likewise. The first text encoder is that of SD 1.5.
#[test]
fn stable_diffusion_xl() {
    loads("sdxl_unet", 2_567_463_684, Some(1_300_000_000));
    loads("sdxl_text_2", 694_659_840, None);
}

#[test]
fn a_controlnet_of_stable_diffusion_1_5() {
    loads("sd15_control", 361_279_120, None);
}

#[test]
fn ddpm_at_256_pixels() {
    loads("ddpm_256", 113_673_219, None);
}

/// The tables of a whole schedule are small: 50 steps of SDXL for a prompt and its negative.
#[test]
fn tables_of_sdxl_are_small() {
    let Some(gpu) = gpu() else { return };
    let case = architecture("sdxl_unet");
    let config = UnetConfig::from_value(&case.config, Path::new("config.json")).unwrap();
    let (folder, recipe) = (tempfile::tempdir().unwrap(), recipe("int4", Family::Unet).unwrap());
    let store = checkpoint(&case.tensors, folder.path());
    let net = UnetTime::load(&Loader::outline(gpu, &store, &recipe), &config).unwrap();
    let graph = Graph::new(Elem::F32);
    let conditions = TimeConditions {
        text_embeds: Some(graph.input("text_embeds", [2, 1280], Elem::F32)),
        time_ids: Some(graph.input("time_ids", [2, 6], Elem::F32)),
        ..Default::default()
    };
    let tables = net.table(graph.input("t", [50], Elem::F32), &conditions);
    let bytes: usize = tables.iter().map(|t| 4 * t.shape().len()).sum();
    println!("SDXL, 50 steps: {} tables, {bytes} bytes", tables.len());
    // 13,760 channels of all resnets, f32, 100 rows.
    assert_eq!((tables.len(), bytes), (17, 13_760 * 4 * 100));
}
