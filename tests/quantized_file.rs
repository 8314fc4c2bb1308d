//! The quantized file, from the original weights through `quantize` and back through
//! `WeightStore`, and what damage does to it.

use std::path::Path;

use half::f16;
use inknib::quant::{
    Format, Layout, Offset, Packed, QuantSpec, Recipe, Stored, metrics, write_quantized,
};
use inknib::tensor::Tensor;
use inknib::weights::{WeightStore, quantize, read_tensors};

/// Weights without a pattern that a format could profit from.
fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / f64::from(1u32 << 24) - 0.5
    };
    // The sum of four uniform numbers is close to a normal one.
    (0..n).map(|_| (uniform() + uniform() + uniform() + uniform()) as f32 * 0.1).collect()
}

fn half_tensor(shape: &[usize], seed: u32) -> Tensor {
    let values = noise(shape.iter().product(), seed);
    Tensor::f16(shape, values.into_iter().map(f16::from_f32).collect())
}

/// A few tensors named as in a UNet.
fn unet() -> WeightStore {
    let tensors = [
        ("conv_in.weight", half_tensor(&[64, 4, 3, 3], 1)),
        ("down.resnets.0.conv1.weight", half_tensor(&[48, 72, 3, 3], 2)),
        ("down.attn.to_q.weight", half_tensor(&[40, 100], 3)),
        ("down.attn.proj_in.weight", half_tensor(&[64, 64, 1, 1], 4)),
        ("down.norm1.weight", half_tensor(&[64], 5)),
        ("down.attn.to_q.bias", Tensor::f32(&[40], noise(40, 6))),
        ("position_ids", Tensor::i64(&[1, 3], vec![0, 1, 2])),
    ];
    WeightStore::from_tensors(&tensors.map(|(n, t)| (n.to_string(), t))).unwrap()
}

fn quantized(folder: &Path, recipe: &str) -> WeightStore {
    let path = folder.join("model.safetensors");
    let recipe = Recipe::builtin(recipe, "unet").unwrap();
    let mut heard = vec![];
    let report = quantize(&unet(), &recipe, &path, |t, i, n| {
        heard.push((t.name.clone(), i, n));
        Ok(())
    });
    let report = report.unwrap();
    assert_eq!(heard.last().unwrap(), &("position_ids".to_string(), 7, 7));
    assert_eq!(report.tensors.len(), 7);
    let size = std::fs::metadata(&path).unwrap().len();
    // The header and its padding are all that is not tensors.
    assert!(report.bytes < size && size < report.bytes + 4096, "{} {size}", report.bytes);
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1, "a temporary file was left");
    WeightStore::open(folder).unwrap()
}

#[test]
fn file_gives_back_the_packed_weights_bit_for_bit() {
    for (recipe, spec, least_db) in
        [("int4", QuantSpec::INT4, 20.5), ("int8", QuantSpec::INT8, 43.0)]
    {
        let folder = tempfile::tempdir().unwrap();
        let store = quantized(folder.path(), recipe);
        let source = unet();
        assert_eq!(store.names().collect::<Vec<_>>(), source.names().collect::<Vec<_>>());
        let header = store.quantized().unwrap();
        assert_eq!((header.recipe.as_str(), header.tensors.len()), (recipe, 3));
        assert_eq!(header.source_sha256, source.sha256());
        for (name, shape) in [
            ("down.resnets.0.conv1.weight", vec![48, 72, 3, 3]),
            ("down.attn.to_q.weight", vec![40, 100]),
            ("down.attn.proj_in.weight", vec![64, 64, 1, 1]),
        ] {
            let direct = source.pack(name, &shape, &spec).unwrap();
            assert_eq!(store.packed(name).unwrap().unwrap(), direct, "{name}");
            // What the file holds counts, not what is asked for now.
            assert_eq!(store.pack(name, &shape, &QuantSpec::F16).unwrap(), direct, "{name}");
            assert_eq!(store.shape(name).unwrap(), shape);
            let db = metrics::sqnr_db(
                &store.values(name).unwrap(),
                &source.get(name).unwrap().to_f32().unwrap(),
            );
            assert!(db > least_db, "{name}: {db} dB");
            // 1e-6: the same sum in another order.
            assert!((direct.sqnr_db.unwrap() - db).abs() < 1e-6);
            assert!(store.get(name).unwrap_err().to_string().contains("packed"));
        }
        let plain = store.pack("conv_in.weight", &[64, 4, 3, 3], &QuantSpec::INT4).unwrap();
        assert_eq!(plain.format, Format::F16, "a quantized file's plain weights stay plain");
        assert!(store.packed("conv_in.weight").is_none() && store.packed("gone").is_none());
        assert_eq!(store.get("position_ids").unwrap().to_i64().unwrap(), [0, 1, 2]);
        assert_eq!(
            store.vector("down.norm1.weight", 64).unwrap(),
            source.vector("down.norm1.weight", 64).unwrap()
        );
        let recipe = Recipe::builtin("int4", "unet").unwrap();
        let e = quantize(&store, &recipe, folder.path().join("x"), |_, _, _| Ok(())).unwrap_err();
        assert!(e.to_string().contains("quantized already"), "{e}");
    }
}

#[test]
fn the_same_source_makes_the_same_file() {
    let read = || {
        let folder = tempfile::tempdir().unwrap();
        quantized(folder.path(), "int4");
        std::fs::read(folder.path().join("model.safetensors")).unwrap()
    };
    assert_eq!(read(), read());
}

#[test]
fn linear_and_pointwise_convolution_are_the_same() {
    let store = unet();
    let spec = QuantSpec::INT4;
    let conv = store.pack("down.attn.proj_in.weight", &[64, 64, 1, 1], &spec).unwrap();
    assert_eq!(store.pack("down.attn.proj_in.weight", &[64, 64], &spec).unwrap(), conv);
    assert!(store.pack("down.attn.to_q.weight", &[40, 100, 1, 1], &spec).is_ok());
    for wrong in [vec![100, 40], vec![40, 100, 3, 3], vec![4000, 1]] {
        let e = store.pack("down.attn.to_q.weight", &wrong, &spec).unwrap_err().to_string();
        assert!(e.contains("[40, 100]") && e.contains(&format!("{wrong:?}")), "{e}");
    }
    assert!(store.pack("down.attn.to_q.weight", &[4000], &spec).is_err());
    let e = store.vector("down.norm1.weight", 63).unwrap_err().to_string();
    assert!(e.contains("[64]") && e.contains("[63]"), "{e}");
    assert!(store.vector("down.attn.to_q.weight", 4000).is_err());
}

#[test]
fn bad_weights_are_named() {
    let tensors = [("a.weight".to_string(), Tensor::f32(&[1, 2], vec![f32::NAN, 1.0]))];
    let store = WeightStore::from_tensors(&tensors).unwrap();
    let e = store.pack("a.weight", &[1, 2], &QuantSpec::INT4).unwrap_err().to_string();
    assert!(e.contains("`a.weight`") && e.contains("1 of 2 weights are not finite"), "{e}");
    let folder = tempfile::tempdir().unwrap();
    let packed = Packed::pack(&[1.0, 2.0], Layout::linear(1, 2), &QuantSpec::F16, None);
    let plain = Stored::Packed { shape: vec![1, 2], packed: packed.unwrap() };
    let path = folder.path().join("x.safetensors");
    assert!(write_quantized(&path, "r", "", &[("w".into(), plain)]).is_err());
    assert!(!path.exists());
}

#[test]
fn damage_is_an_error_and_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.safetensors");
    let packed = Packed::pack(&noise(40, 9), Layout::linear(2, 20), &QuantSpec::INT4, None);
    let stored = Stored::Packed { shape: vec![2, 20], packed: packed.unwrap() };
    write_quantized(&path, "int4", "00", &[("w".into(), stored)]).unwrap();
    let good = std::fs::read(&path).unwrap();
    let exercise = |bytes: &[u8]| {
        let store = WeightStore::from_bytes("damaged", bytes.to_vec()).ok()?;
        let names: Vec<String> = store.names().map(String::from).collect();
        for name in names {
            let _ = store.values(&name);
            let _ = store.pack(&name, &[2, 20], &QuantSpec::INT4);
        }
        Some(())
    };
    assert!(exercise(&good).is_some());
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    for at in 0..header {
        for value in [0x00, b'0', b'9', b'"', b'[', 0xff, good[at] ^ 1, good[at] ^ 2] {
            let mut bad = good.clone();
            bad[at] = value;
            exercise(&bad);
        }
    }
    (0..good.len()).for_each(|n| assert!(exercise(&good[..n]).is_none(), "cut to {n} bytes"));

    // A header that promises what is not there.
    let replace = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = good.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut bad = good.clone();
        bad[at..at + to.len()].copy_from_slice(to.as_bytes());
        WeightStore::from_bytes("tiny", bad).map(|_| ()).unwrap_err().to_string()
    };
    assert!(replace("\\\"group\\\":64", "\\\"group\\\":63").contains("`w`"));
    assert!(replace("\\\"group\\\":64", "\\\"group\\\":16").contains("do not fit"));
    assert!(replace("\\\"channels\\\":20", "\\\"channels\\\":90").contains("do not fit"));
    assert!(replace("\\\"version\\\":1", "\\\"version\\\":4").contains("version 4"));
    let mut bad = good.clone();
    let last = bad.len() - 1;
    bad[last] = 0x7c;
    bad[last - 1] = 0;
    let store = WeightStore::from_bytes("tiny", bad).unwrap();
    let e = store.packed("w").unwrap().unwrap_err().to_string();
    assert!(e.contains("scales are not finite") && e.contains("`w`"), "{e}");
}

#[test]
fn offsets_lie_beside_the_scales() {
    // Three groups a row, the last one short: an odd number of halves.
    let layout = Layout::linear(3, 40);
    let codes: Vec<u8> = (0..layout.len()).map(|i| (i * 7 % 16) as u8).collect();
    let halves = |first: f32| -> Vec<f16> {
        (0..9).map(|i| f16::from_f32(first + i as f32 * 0.25)).collect()
    };
    for offset in [Offset::Zero, Offset::Min] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let (s, z) = (halves(0.5), halves(7.0));
        let packed =
            Packed::from_q4_codes_with_offsets(layout, 16, offset, &codes, &s, &z).unwrap();
        let stored = Stored::Packed { shape: vec![3, 40], packed: packed.clone() };
        let other = Packed::from_q4_codes(layout, 16, 0.0, &codes, &s).unwrap();
        let other = Stored::Packed { shape: vec![3, 40], packed: other };
        let both = [("w".to_string(), stored), ("v".to_string(), other)];
        write_quantized(&path, "gguf", "00", &both).unwrap();
        let store = WeightStore::open(&path).unwrap();
        assert_eq!(store.names().collect::<Vec<_>>(), ["v", "w"]);
        assert_eq!(store.packed("w").unwrap().unwrap(), packed);
        assert_eq!(store.values("w").unwrap(), packed.decode());
        assert_eq!(store.get("w.z").unwrap().shape, [3, 3]);
        assert_eq!(store.quantized().unwrap().version, 2, "older readers must refuse the file");

        // Without its offsets, or with curved levels besides, the header does not hold.
        let good = std::fs::read(&path).unwrap();
        let replace = |from: &str, to: &str| {
            let at = good.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
            let mut bad = good.clone();
            bad[at..at + to.len()].copy_from_slice(to.as_bytes());
            WeightStore::from_bytes("tiny", bad).map(|_| ()).unwrap_err().to_string()
        };
        assert!(replace("\"w.z\"", "\"w.y\"").contains("do not fit"));
        let scheme = replace("\\\"int4\\\",\\\"group\\\":16,\\\"c\\\":0.0,\\\"o", "\\\"int8");
        assert!(scheme.contains("do not fit"), "{scheme}");
    }
    // Channels in another order have no place in the file.
    let plain = Packed::from_q4_codes(Layout::linear(1, 8), 8, 0.0, &[1; 8], &[f16::ONE]).unwrap();
    let packed = plain.with_columns(&[7, 6, 5, 4, 3, 2, 1, 0]).unwrap();
    let stored = [("w".to_string(), Stored::Packed { shape: vec![1, 8], packed })];
    let path = tempfile::tempdir().unwrap().path().join("x.safetensors");
    assert!(write_quantized(&path, "r", "", &stored).is_err());
}

#[test]
fn golden_files_read_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("io.safetensors");
    let tensors = vec![
        ("x".to_string(), Stored::Plain(half_tensor(&[2, 3], 1))),
        ("ids".to_string(), Stored::Plain(Tensor::i64(&[2], vec![-1, 5]))),
    ];
    write_quantized(&path, "none", "", &tensors).unwrap();
    let read = read_tensors(&path).unwrap();
    assert_eq!(read[0], ("ids".to_string(), Tensor::i64(&[2], vec![-1, 5])));
    assert_eq!(read[1], ("x".to_string(), half_tensor(&[2, 3], 1)));
}

/// Trained weights, not drawn ones: heavy tails and rows of differing size. `../shared` is a folder
/// beside the checkout with checkpoints that are too large to ship.
#[test]
fn trained_weights_keep_their_sqnr() {
    let shared = std::env::var_os("INKNIB_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), Into::into);
    let cases = [
        ("data/llm/stories260K", "llm"),
        ("demo/talk/model", "llm"),
        ("demo/scenes/model/unet", "unet"),
    ];
    for (folder, family) in cases {
        let path = shared.join(folder);
        if !path.is_dir() {
            println!("skipped: {} is absent", path.display());
            continue;
        }
        let store = WeightStore::open(&path).unwrap();
        let output = tempfile::tempdir().unwrap();
        let file = output.path().join("model.safetensors");
        let db = ["int4-g64-uniform-absmax", "int4-g64-uniform", "int4"].map(|weights| {
            let recipe = Recipe::from_argument(weights, family).unwrap();
            let report = quantize(&store, &recipe, &file, |_, _, _| Ok(())).unwrap();
            let worst = report.tensors.iter().filter(|t| t.group.is_some());
            let worst = worst.min_by(|a, b| a.sqnr_db.partial_cmp(&b.sqnr_db).unwrap()).unwrap();
            let (bits, db) = (report.bits_per_weight, report.sqnr_db.unwrap());
            println!("{folder} {weights}: {bits:.2} bits, {db:.2} dB; worst {worst:?}");
            let packed = report.tensors.iter().filter(|t| t.c.is_some());
            let packed = packed.filter_map(|t| t.sqnr_db.map(|db| (t.weights as f64, db)));
            let (n, sum) = packed.fold((0.0, 0.0), |(n, s), (w, db)| (n + w, s + w * db));
            sum / n
        });
        println!("{folder}: mean int4 dB {db:.2?}");
        // Each step of the method must pay on trained weights too: the search at least 0.2 dB, the
        // cubic levels 0.3 dB, about half of what they gain on normal weights.
        assert!(db[1] > db[0] + 0.2 && db[2] > db[1] + 0.3, "{folder}: {db:?}");
    }
}
