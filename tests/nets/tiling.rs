//! Tiled decoding and encoding: diffusers' results, and memory known before it is taken.

use inknib::diffusion::tiling::{Coder, Pixels};
use inknib::gpu::Elem;
use inknib::graph::{Graph, Kernels, Plan, PlanOptions};
use inknib::nets::taesd::{TaesdConfig, TaesdDecoder};
use inknib::nets::unet::{TimeConditions, Unet, UnetConfig, UnetContext, UnetTime};
use inknib::nets::vae::{VaeConfig, VaeDecoder, VaeEncoder};
use inknib::nn::Loader;
use inknib::quant::{QuantSpec, Recipe};
use inknib::tensor::{Data, Tensor};
use inknib::weights::{WeightStore, read_tensors};

use crate::device::gpu;
use crate::folder;

/// `[B, C, H, W]` → `[B, H, W, C]`
fn pixels(tensor: &Tensor) -> Pixels {
    let [b, c, h, w] = tensor.shape[..] else { panic!("{:?}", tensor.shape) };
    let (from, mut values) = (tensor.to_f32(), Vec::new());
    for i in 0..b * h * w {
        let (item, pixel) = (i / (h * w), i % (h * w));
        values.extend((0..c).map(|k| from[(item * c + k) * h * w + pixel]));
    }
    Pixels { shape: [b, h, w, c], values }
}

fn rel_l2(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
        a.iter().zip(b).map(|(a, b)| f(f64::from(*a), f64::from(*b))).sum()
    };
    (sum(&|a, b| (a - b).powi(2)) / sum(&|_, b| b * b)).sqrt()
}

/// Each tile is as exact as a net is (2e-5, see `verify`), and blending adds two products.
#[test]
fn tiles_are_those_of_diffusers() {
    let Some(gpu) = gpu() else { return };
    let dir = folder("vae_kl");
    let (config, store) = (VaeConfig::read(&dir).unwrap(), WeightStore::open(&dir).unwrap());
    let recipe = Recipe::uniform(QuantSpec::F32);
    let loader = Loader::new(gpu, &store, &recipe);
    let decoder = VaeDecoder::load(&loader, &config).unwrap();
    let encoder = VaeEncoder::load(&loader, &config).unwrap();
    let golden = read_tensors(folder("vae_tiled.safetensors")).unwrap();
    let find = |name: String| pixels(&golden.iter().find(|(n, _)| *n == name).unwrap().1);
    let decode = Coder::decoder(gpu, config.scale(), &decoder);
    let encode = Coder::encoder(gpu, config.scale(), &encoder);
    for (name, side, tiles) in [("ragged8", 8, 12), ("row8", 8, 6), ("large16", 16, 4)] {
        for (coder, from, to) in [(&decode, "z", "decoded"), (&encode, "image", "moments")] {
            let (x, y) = (find(format!("{name}.{from}")), find(format!("{name}.{to}")));
            let mut told = Vec::new();
            let ours = coder.run(&x, Some(side), &mut |i, n| told.push((i, n))).unwrap();
            assert_eq!(ours.shape, y.shape, "{name} {to}");
            assert_eq!(told, (1..=tiles).map(|i| (i, tiles)).collect::<Vec<_>>(), "{name}");
            let e = rel_l2(&ours.values, &y.values);
            let whole = coder.run(&x, None, &mut |_, _| ()).unwrap();
            let seams = rel_l2(&whole.values, &y.values);
            println!("{name} {to}: {e:.1e}; in one piece {seams:.1e}");
            // Tiles change the picture (each has its own norms), by far more than the limit.
            assert!(e <= 2e-5 && seams > 1e-3, "{name} {to}: {e:.2e}, {seams:.2e}");
        }
    }
    let error = decode.run(&find("row8.z".into()), Some(6), &mut |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("multiple of four"), "{error}");
    let odd = Pixels { shape: [1, 10, 12, 3], values: vec![0.0; 360] };
    let error = encode.run(&odd, None, &mut |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("multiples of 4"), "{error}");
}

/// AutoencoderTiny has no norms, so that away from the seams a tile shows the whole picture's pixels. Its
/// outputs see no further than 16 latents here (13 convolutions at full size and after each doubling
/// half as many).
#[test]
fn a_tiny_autoencoder_is_tiled_as_well() {
    let Some(gpu) = gpu() else { return };
    let dir = folder("taesd");
    let (config, store) = (TaesdConfig::read(&dir).unwrap(), WeightStore::open(&dir).unwrap());
    let recipe = Recipe::uniform(QuantSpec::F32);
    let net = TaesdDecoder::load(&Loader::new(gpu, &store, &recipe), &config).unwrap();
    let mut coder = Coder::decoder(gpu, config.scale(), &net);
    let z = (0..8 * 44 * 4).map(|i| (i as f32 * 0.7).sin() * 2.0).collect();
    let z = Pixels { shape: [1, 8, 44, 4], values: z };
    let run = |coder: &Coder<'_>, side| coder.run(&z, side, &mut |_, _| ()).unwrap();
    let (whole, tiled) = (run(&coder, None), run(&coder, Some(32)));
    assert_eq!(tiled.shape, [1, 32, 176, 3]);
    assert_ne!(tiled, whole);
    for (row, (a, b)) in tiled.values.chunks(176 * 3).zip(whole.values.chunks(176 * 3)).enumerate()
    {
        // The first tile ends at latent 32 and the second, blended in from 24 on, begins there.
        let safe = 0..16 * 4 * 3;
        let worst = safe.map(|i| (a[i] - b[i]).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-5, "row {row}: {worst}");
    }
    if gpu.caps().f16 {
        coder.act = Elem::F16;
        // As for whole nets with activations in f16.
        assert!(rel_l2(&run(&coder, Some(32)).values, &tiled.values) < 1e-2);
    }
}

#[test]
fn a_footprint_is_what_a_plan_takes() {
    let Some(gpu) = gpu() else { return };
    let dir = folder("vae_kl");
    let (config, store) = (VaeConfig::read(&dir).unwrap(), WeightStore::open(&dir).unwrap());
    let recipe = Recipe::uniform(QuantSpec::F32);
    let net = VaeDecoder::load(&Loader::new(gpu, &store, &recipe), &config).unwrap();
    for taps in [false, true] {
        let graph = Graph::new(Elem::F32);
        let shift = graph.literal([4], vec![0.5; 4]);
        graph.output("y", net.forward(graph.input("z", [1, 5, 7, 4], Elem::F32) + shift));
        let options = PlanOptions { taps, ..Default::default() };
        let footprint = Plan::footprint(gpu, &graph, &options).unwrap();
        let plan = Plan::new(gpu, &graph, &options).unwrap();
        assert_eq!(footprint.activations, plan.activation_bytes());
        // 140 latents and the shift, four bytes each; 20 x 28 pixels of 24 channels are the widest.
        assert_eq!(footprint.inputs, 140 * 4 + 16);
        assert_eq!(footprint.largest, 20 * 28 * 24 * 4);
    }
}

/// Weights that lie side by side have other launches, and so have outlines of them.
#[test]
fn a_footprint_of_outlines_is_what_a_plan_of_weights_takes() {
    let Some(gpu) = gpu() else { return };
    let dir = folder("unet_sd15");
    let (config, store) = (UnetConfig::read(&dir).unwrap(), WeightStore::open(&dir).unwrap());
    let recipe = Recipe::builtin("int4", "unet").unwrap();
    let footprint = |loader: &Loader<'_>, kernels, apart| {
        let (net, graph) = (Unet::load(loader, &config).unwrap(), Graph::new(Elem::F32));
        let times = UnetTime::load(loader, &config).unwrap();
        let times = times.table(graph.input("t", [1], Elem::F32), &TimeConditions::default());
        let text = graph.input("text", [2, 77, config.cross_attention_dim], Elem::F32);
        let pairs = UnetContext::load(loader, &config).unwrap().keys_values(text);
        let x = graph.input("x", [2, 24, 16, config.in_channels], Elem::F32);
        graph.output("y", net.forward(x, &times, graph.input("row", [2], Elem::U32), &pairs));
        let options = PlanOptions { kernels, apart, ..Default::default() };
        Plan::footprint(gpu, &graph, &options).unwrap()
    };
    for kernels in [Kernels::Fast, Kernels::Hardware] {
        let loaded = footprint(&Loader::new(gpu, &store, &recipe), kernels, false);
        let outline = footprint(&Loader::outline(gpu, &store, &recipe), kernels, false);
        assert_eq!(loaded.activations, outline.activations, "{kernels:?}");
        assert_eq!(loaded.largest, outline.largest, "{kernels:?}");
        let streaming = Loader::new(gpu, &store, &recipe);
        streaming.limit_resident(0);
        let streamed = footprint(&streaming, kernels, false);
        let apart = footprint(&Loader::outline(gpu, &store, &recipe), kernels, true);
        assert_eq!(streamed.activations, apart.activations, "{kernels:?}, streamed");
    }
}

/// The decoder of Stable Diffusion 1.x at its true size, all zeros.
fn sd15() -> (VaeConfig, WeightStore) {
    let json = r#"{"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
                   "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D",
                                      "UpDecoderBlock2D"]}"#;
    let json = serde_json::from_str(json).unwrap();
    let config = VaeConfig::from_value(&json, std::path::Path::new("config.json")).unwrap();
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[usize]| {
        let zeros = |shape: &[usize]| Data::F16(vec![half::f16::ZERO; shape.iter().product()]);
        tensors.push((format!("{name}.weight"), Tensor::new(shape, zeros(shape))));
        tensors.push((format!("{name}.bias"), Tensor::new(&shape[..1], zeros(&shape[..1]))));
    };
    let resnet = |add: &mut dyn FnMut(String, &[usize]), at: String, cin, cout| {
        add(format!("{at}.norm1"), &[cin]);
        add(format!("{at}.conv1"), &[cout, cin, 3, 3]);
        add(format!("{at}.norm2"), &[cout]);
        add(format!("{at}.conv2"), &[cout, cout, 3, 3]);
        if cin != cout {
            add(format!("{at}.conv_shortcut"), &[cout, cin, 1, 1]);
        }
    };
    add("post_quant_conv".into(), &[4, 4, 1, 1]);
    add("decoder.conv_in".into(), &[512, 4, 3, 3]);
    add("decoder.conv_norm_out".into(), &[128]);
    add("decoder.conv_out".into(), &[3, 128, 3, 3]);
    for i in 0..2 {
        resnet(&mut add, format!("decoder.mid_block.resnets.{i}"), 512, 512);
    }
    for (name, shape) in [("group_norm", &[512][..]), ("to_q", &[512, 512]), ("to_k", &[512, 512])]
        .into_iter()
        .chain([("to_v", &[512, 512][..]), ("to_out.0", &[512, 512])])
    {
        add(format!("decoder.mid_block.attentions.0.{name}"), shape);
    }
    for (block, (cin, cout)) in [(512, 512), (512, 512), (512, 256), (256, 128)].iter().enumerate()
    {
        let at = format!("decoder.up_blocks.{block}");
        for i in 0..3 {
            let cin = if i == 0 { *cin } else { *cout };
            resnet(&mut add, format!("{at}.resnets.{i}"), cin, *cout);
        }
        if block < 3 {
            add(format!("{at}.upsamplers.0.conv"), &[*cout, *cout, 3, 3]);
        }
    }
    (config, WeightStore::from_tensors(&tensors).unwrap())
}

/// 1024 x 1024 in one piece takes a gigabyte for a single value of 256 channels; in tiles it fits 2 GiB, weights
/// and all, whatever the device can bind at once.
#[test]
fn the_true_decoder_paints_a_large_picture_in_two_gibibytes() {
    let Some(gpu) = gpu() else { return };
    let (config, store) = sd15();
    let recipe = Recipe::builtin("fp16", "vae").unwrap();
    let loader = Loader::new(gpu, &store, &recipe);
    let net = VaeDecoder::load(&loader, &config).unwrap();
    let coder = Coder::decoder(gpu, config.scale(), &net);
    let budget = (2u64 << 30) - loader.report().resident_bytes();
    let shape = [1, 128, 128, 4];
    // The kernel of a whole picture loops no more often than is safe: only memory is in the way.
    let whole = coder.footprint(shape).unwrap();
    assert!(whole.bytes() > budget && whole.largest == 1 << 30, "{whole:?}");
    let side = coder.tiles_for(shape, budget).unwrap().unwrap();
    let tile = coder.footprint([1, side, side, 4]).unwrap();
    println!("1024x1024 in one piece {whole:?}, in tiles of {side} {tile:?}");
    assert!(tile.bytes() <= budget && tile.largest <= gpu.caps().max_binding_bytes);
    assert_eq!(coder.tiles_for([1, 16, 16, 4], budget).unwrap(), None);
    // Whatever is wanted, a tile can be bound: one of 64 latents takes 256 MiB for a single value.
    for (side, want) in [(64, 256 << 20), (128, 256 << 20), (128, 0)] {
        let tile = coder.tile_side([1, side, side, 4], want).unwrap();
        let tile = coder.footprint([1, tile.min(side), tile.min(side), 4]).unwrap();
        assert!(tile.largest <= gpu.caps().max_binding_bytes, "{side}, {want}: {tile:?}");
        assert!(want == 0 || tile.bytes() <= want, "{side}, {want}: {tile:?}");
    }
    let error = coder.tiles_for(shape, 1 << 20).unwrap_err().to_string();
    assert!(error.contains("smallest tiles") && error.contains("1.0 MiB"), "{error}");
}
