//! Vectors of textual inversion behind CLIP's token table, held to transformers' resized embeddings.

use inknib::diffusion::embedding::{Embedding, table_rows};
use inknib::gpu::{Elem, Gpu};
use inknib::graph::{Graph, Kernels, Plan, PlanOptions};
use inknib::nets::clip::{ClipText, ClipTextConfig};
use inknib::nn::Loader;
use inknib::quant::{QuantSpec, Recipe};
use inknib::tensor::{Data, Tensor};
use inknib::weights::{WeightStore, read_tensors};

use crate::device::gpu;
use crate::{BOTH, folder};

fn encode(gpu: &Gpu, text: &ClipText, ids: &[u32], kernels: Kernels) -> Vec<f32> {
    let graph = Graph::new(Elem::F32);
    let input = graph.input("ids", [2, ids.len() / 2], Elem::U32);
    graph.output("state", text.forward(input));
    let options = PlanOptions { kernels, poison: true, ..Default::default() };
    let plan = Plan::new(gpu, &graph, &options).unwrap();
    plan.set_u32("ids", ids).unwrap();
    plan.run().unwrap();
    plan.read("state").unwrap()
}

fn rel_l2(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let sum = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let error = sum(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (error / sum(&mut b.iter().map(|b| f64::from(*b)))).sqrt()
}

/// The limit is that of `inknib verify` for fp32 nets, 2e-5: sums in another order over three layers.
#[test]
fn added_tokens_are_transformers_resized_embeddings() {
    let Some(gpu) = gpu() else { return };
    let golden = read_tensors(folder("textual_inversion").join("states.safetensors")).unwrap();
    let find = |name: &str| &golden.iter().find(|(n, _)| n == name).unwrap().1;
    let Data::I64(ids) = &find("input_ids").data else { panic!("ids are integers") };
    let ids: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
    let state = find("last_hidden_state").to_f32();

    let config = ClipTextConfig::read(folder("clip_l").join("config.json")).unwrap();
    let store = WeightStore::open(folder("clip_l").join("weights.safetensors")).unwrap();
    let recipe = Recipe::uniform(QuantSpec::F32);
    let mut text = ClipText::load(&Loader::new(gpu, &store, &recipe), &config).unwrap();
    let embedding =
        Embedding::read(folder("textual_inversion").join("embedding.safetensors"), None).unwrap();
    assert_eq!((embedding.name.as_str(), embedding.count), ("embedding", 3));
    let rows = table_rows(&[embedding], 0, config.hidden_size).unwrap();
    for kernels in BOTH {
        text.set_added_tokens(gpu, rows.as_ref()).unwrap();
        let e = rel_l2(&encode(gpu, &text, &ids, kernels), &state);
        println!("textual inversion {kernels:?}: rel L2 {e:.2e}");
        assert!(e <= 2e-5, "{kernels:?}: {e:.2e}");
        // Without the rows their ids are zeros, which must show.
        text.set_added_tokens(gpu, None).unwrap();
        assert!(rel_l2(&encode(gpu, &text, &ids, kernels), &state) > 1e-2);
    }
    let other = Tensor::zeros(&[1, config.hidden_size + 8]);
    let error = text.set_added_tokens(gpu, Some(&other)).unwrap_err().to_string();
    assert!(error.contains("another model"), "{error}");
}
