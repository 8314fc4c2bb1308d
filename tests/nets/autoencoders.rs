//! Autoencoders: names that other programs write, and what stands between a picture and its latents.

use inknib::gpu::{Elem, Gpu};
use inknib::graph::{Graph, Plan, PlanOptions, Var};
use inknib::nets::taesd::{TaesdConfig, TaesdDecoder, TaesdEncoder};
use inknib::nets::vae::{VaeConfig, VaeDecoder};
use inknib::nn::Loader;
use inknib::quant::{QuantSpec, Recipe};
use inknib::weights::{WeightStore, read_tensors};

use crate::device::gpu;
use crate::folder;

/// A net on a fixed picture of `shape`.
fn run(gpu: &Gpu, shape: [usize; 4], net: impl for<'g> Fn(Var<'g>) -> Var<'g>) -> Vec<f32> {
    let graph = Graph::new(Elem::F32);
    let x = (0..shape.iter().product()).map(|i| (i as f32).sin()).collect();
    graph.output("y", net(graph.literal(shape, x)));
    let plan = Plan::new(gpu, &graph, &PlanOptions::default()).unwrap();
    plan.run().unwrap();
    plan.read("y").unwrap()
}

/// Names and shapes that diffusers wrote before version 0.12.
#[test]
fn vae_attention_under_its_old_names() {
    let Some(gpu) = gpu() else { return };
    let dir = folder("vae_kl");
    let renames =
        [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
    let mut tensors = read_tensors(&dir).unwrap();
    for (name, tensor) in &mut tensors {
        for (new, old) in renames {
            if name.contains("mid_block.attentions") && name.contains(new) {
                *name = name.replace(new, old);
                if tensor.shape.len() == 2 {
                    tensor.shape.extend([1, 1]);
                }
            }
        }
    }
    let (config, recipe) = (VaeConfig::read(&dir).unwrap(), Recipe::uniform(QuantSpec::F32));
    let old = WeightStore::from_tensors(&tensors).unwrap();
    assert!(old.contains("decoder.mid_block.attentions.0.proj_attn.weight"));
    let pictures = [old, WeightStore::open(&dir).unwrap()].map(|store| {
        let decoder = VaeDecoder::load(&Loader::new(gpu, &store, &recipe), &config).unwrap();
        run(gpu, [1, 2, 2, 4], |z| decoder.forward(z))
    });
    assert_eq!(pictures[0], pictures[1]);
}

/// The files of the original program number the layers of each half from its first one on; the decoder's
/// first is the clamp, which has no weights.
#[test]
fn taesd_under_its_original_names() {
    let Some(gpu) = gpu() else { return };
    let dir = folder("taesd");
    let tensors = read_tensors(&dir).unwrap();
    let original = |half: &str, clamp: usize, prefix: &str| {
        let renamed = tensors.iter().filter_map(|(name, tensor)| {
            let (layer, rest) = name.strip_prefix(&format!("{half}.layers."))?.split_once('.')?;
            let layer = layer.parse::<usize>().unwrap() + clamp;
            Some((format!("{prefix}{layer}.{rest}"), tensor.clone()))
        });
        WeightStore::from_tensors(&renamed.collect::<Vec<_>>()).unwrap()
    };
    let (config, recipe) = (TaesdConfig::read(&dir).unwrap(), Recipe::uniform(QuantSpec::F32));
    let decode = |store: &WeightStore| {
        let net = TaesdDecoder::load(&Loader::new(gpu, store, &recipe), &config).unwrap();
        run(gpu, [1, 2, 3, 4], |z| net.forward(z))
    };
    let encode = |store: &WeightStore| {
        let net = TaesdEncoder::load(&Loader::new(gpu, store, &recipe), &config).unwrap();
        run(gpu, [1, 8, 12, 3], |image| net.forward(image))
    };
    let store = WeightStore::open(&dir).unwrap();
    let (picture, latent) = (decode(&store), encode(&store));
    assert!((picture.len(), latent.len()) == (8 * 12 * 3, 2 * 3 * 4) && picture != latent);
    for prefix in ["", "taesd_decoder.", "decoder."] {
        assert_eq!(decode(&original("decoder", 1, prefix)), picture, "{prefix}");
    }
    for prefix in ["", "taesd_encoder.", "encoder."] {
        assert_eq!(encode(&original("encoder", 0, prefix)), latent, "{prefix}");
    }
    let encoder = original("encoder", 0, "");
    let error = TaesdDecoder::load(&Loader::new(gpu, &encoder, &recipe), &config).err().unwrap();
    assert!(error.to_string().contains("`decoder.layers.0.weight`"), "{error}");
}

#[test]
fn what_taesd_cannot_be_is_said() {
    let read = |json: &str| {
        let value = serde_json::from_str(json).unwrap();
        TaesdConfig::from_value(&value, std::path::Path::new("x/config.json"))
    };
    assert_eq!(read("{}").unwrap().scale(), 8);
    for (json, expected) in [
        ("{\"upsample_fn\": \"bilinear\"}", "`upsample_fn`"),
        ("{\"act_fn\": \"mish\"}", "`act_fn` is \"mish\""),
        ("{\"encoder_block_out_channels\": [64, 64, 64, 32]}", "supported is one width"),
        ("{\"num_decoder_blocks\": [3]}", "x/config.json"),
        ("{\"num_decoder_blocks\": [1, 2.5, 1, 1]}", "whole numbers"),
        ("{\"decoder_block_out_channels\": [64, 64]}", "not as long"),
    ] {
        match read(json) {
            Ok(config) => assert_eq!(config.scale(), 1, "{json}"),
            Err(e) => assert!(e.to_string().contains(expected), "{json}: {e}"),
        }
    }
}

/// The scaling factor is the sampler's affair on the way in as on the way out.
#[test]
fn latents_are_scaled_and_back() {
    let json = r#"{"block_out_channels": [32], "up_block_types": ["UpDecoderBlock2D"],
                   "scaling_factor": 0.5, "shift_factor": 0.25}"#;
    let value = serde_json::from_str(json).unwrap();
    let config = VaeConfig::from_value(&value, std::path::Path::new("config.json")).unwrap();
    assert_eq!(config.scaled(&[1.25, 0.25]), [0.5, 0.0]);
    assert_eq!(config.unscaled(&[0.5, 0.0]), [1.25, 0.25]);
}
