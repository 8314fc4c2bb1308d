//! Weights that stay on the host and pass through a pool give what resident weights give, bit for bit.

#[path = "common/device.rs"]
mod device;

use std::path::Path;

use device::gpu;
use inknib::gpu::{Elem, Gpu, GpuOptions};
use inknib::graph::{Graph, Plan, PlanOptions};
use inknib::nets::unet::{TimeConditions, Unet, UnetConfig, UnetContext, UnetTime};
use inknib::nn::Loader;
use inknib::quant::{QuantSpec, Recipe};
use inknib::weights::WeightStore;

struct Painted {
    eps: [Vec<f32>; 2],
    pool: u64,
    resident: u64,
    streamed: u64,
}

/// One prediction of a small UNet, twice, with at most `room` bytes of matrices on the GPU.
fn predict(gpu: &Gpu, spec: QuantSpec, room: u64, pool: u64) -> Painted {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/unet_sd15");
    let (config, store) = (UnetConfig::read(&dir).unwrap(), WeightStore::open(&dir).unwrap());
    let recipe = Recipe::uniform(spec);
    let loader = Loader::new(gpu, &store, &recipe);
    loader.limit_resident(room);
    let unet = Unet::load(&loader, &config).unwrap();
    let time = UnetTime::load(&loader, &config).unwrap();
    let context = UnetContext::load(&loader, &config).unwrap();
    let wave = |n: usize| (0..n).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<f32>>();
    let graph = Graph::new(Elem::F32);
    let x = graph.input("x", [1, 8, 8, 4], Elem::F32);
    let prompt = graph.input("prompt", [1, 7, 24], Elem::F32);
    let (t, row) = (graph.input("t", [1], Elem::F32), graph.input("row", [1], Elem::U32));
    let kv = context.keys_values(prompt);
    graph.output("eps", unet.forward(x, &time.table(t, &TimeConditions::default()), row, &kv));
    let options = PlanOptions { stream_pool: pool, ..Default::default() };
    let plan = Plan::new(gpu, &graph, &options).unwrap();
    plan.set("x", &wave(8 * 8 * 4)).unwrap();
    plan.set("prompt", &wave(7 * 24)).unwrap();
    plan.set("t", &[500.0]).unwrap();
    plan.set_u32("row", &[0]).unwrap();
    let run = || {
        plan.run().unwrap();
        plan.read("eps").unwrap()
    };
    let (eps, report) = ([run(), run()], loader.report());
    let (resident, streamed) = (report.resident_bytes(), report.streamed_bytes());
    Painted { eps, pool: plan.stream_bytes(), resident, streamed }
}

#[test]
fn streamed_weights_compute_what_resident_ones_do() {
    let Some(gpu) = gpu() else { return };
    for spec in [QuantSpec::INT4, QuantSpec::F16] {
        let resident = predict(gpu, spec, u64::MAX, 0);
        assert_eq!((resident.pool, resident.streamed), (0, 0));
        let all = resident.resident;
        // Everything through the smallest pool, a part through a larger one, all at once.
        for (room, pool) in [(0, 0), (all / 2, 64 << 10), (0, u64::MAX)] {
            let streamed = predict(gpu, spec, room, pool);
            assert_eq!(streamed.eps[0], resident.eps[0], "{spec:?} {room} {pool}");
            assert_eq!(streamed.eps[1], resident.eps[0], "{spec:?} {room} {pool}: second run");
            assert!(streamed.streamed > 0 && streamed.resident < all);
            assert!(pool == u64::MAX || streamed.pool < streamed.streamed, "{}", streamed.pool);
        }
    }
}

/// The budget counts what is on the GPU: a model that does not fit runs when it is streamed.
#[test]
fn a_budget_below_the_weights_is_kept() {
    if gpu().is_none() {
        return;
    }
    let device = std::env::var("INKNIB_TEST_DEVICE").ok();
    let open = |vram_budget| {
        let options = GpuOptions { device: device.clone(), vram_budget, ..Default::default() };
        Gpu::open(&options).unwrap()
    };
    let free = open(None);
    let resident = predict(&free, QuantSpec::F32, u64::MAX, 0);
    let whole = free.ledger().peak();
    let budget = whole - resident.resident / 2;
    let tight = open(Some(budget));
    let streamed = predict(&tight, QuantSpec::F32, 0, 0);
    assert_eq!(streamed.eps[0], resident.eps[0]);
    assert!(tight.ledger().peak() <= budget);
}

/// An outline of a net has the sizes of the net.
#[test]
fn what_is_measured_is_what_is_taken() {
    let Some(gpu) = gpu() else { return };
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/unet_sd15");
    let (config, store) = (UnetConfig::read(&dir).unwrap(), WeightStore::open(&dir).unwrap());
    for spec in [QuantSpec::INT4, QuantSpec::INT8, QuantSpec::F16, QuantSpec::F32] {
        let recipe = Recipe::uniform(spec);
        let build = |loader: &Loader<'_>| {
            let unet = Unet::load(loader, &config).unwrap();
            let time = UnetTime::load(loader, &config).unwrap();
            let context = UnetContext::load(loader, &config).unwrap();
            let graph = Graph::new(Elem::F32);
            let x = graph.input("x", [2, 8, 8, 4], Elem::F32);
            let prompt = graph.input("prompt", [2, 7, 24], Elem::F32);
            let (t, row) = (graph.input("t", [1], Elem::F32), graph.input("row", [2], Elem::U32));
            graph.output(
                "eps",
                unet.forward(
                    x,
                    &time.table(t, &TimeConditions::default()),
                    row,
                    &context.keys_values(prompt),
                ),
            );
            graph
        };
        let (real, outline) =
            (Loader::new(gpu, &store, &recipe), Loader::outline(gpu, &store, &recipe));
        let plan = Plan::new(gpu, &build(&real), &PlanOptions::default()).unwrap();
        let measured = Plan::footprint(gpu, &build(&outline), &PlanOptions::default()).unwrap();
        assert_eq!(measured.activations, plan.activation_bytes(), "{spec:?}");
        // A buffer is rounded up to 16 bytes; a tensor has two at most.
        let (real, outline) = (real.report(), outline.report());
        assert_eq!(real.tensors.len(), outline.tensors.len());
        let spare = 32 * real.tensors.len() as u64;
        assert!(outline.resident_bytes() <= real.resident_bytes(), "{spec:?}");
        assert!(outline.resident_bytes() + spare >= real.resident_bytes(), "{spec:?}");
    }
}
