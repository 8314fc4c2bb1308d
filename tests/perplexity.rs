//! `inknib perplexity` on a really trained model against figures that torch computed from the same files
//! (f32; the default definition: ../shared/data/MANIFEST.md, windows: transformers' logits scored as
//! llama.cpp's perplexity.cpp scores them).

#[path = "common/device.rs"]
mod device;
#[path = "common/shared.rs"]
mod shared_data;

use std::path::PathBuf;

use device::gpu;
use inknib::Error;
use inknib::gpu::{Elem, Gpu};
use inknib::graph::Kernels;
use inknib::nets::language::{Language, LanguageConfig};
use inknib::nn::{KvFormat, Loader};
use inknib::probe::perplexity::{Perplexity, Windows, read_text, score, windows};
use inknib::probe::scorer::Scorer;
use inknib::quant::Recipe;
use inknib::text::tokenizer::Tokenizer;
use inknib::weights::WeightStore;
use shared_data::shared;

fn net(gpu: &Gpu, folder: &PathBuf, weights: &str) -> (Language, f64) {
    let store = WeightStore::open(folder).unwrap();
    let recipe = Recipe::from_argument(weights, "llm").unwrap();
    let loader = Loader::new(gpu, &store, &recipe);
    let net = Language::load(&loader, &LanguageConfig::read(folder).unwrap()).unwrap();
    (net, loader.report().bits_per_weight())
}

/// Figures of stories260K, with the same model's fp16 weights as the base if asked for.
fn measure(gpu: &Gpu, weights: &str, how: Windows, based: bool) -> Option<(Perplexity, f64)> {
    let folder = shared("data/llm/stories260K")?;
    let text = read_text(&shared("data/text/tinystories_sample.txt")?).unwrap();
    let windows = windows(&Tokenizer::load(&folder).unwrap(), &text, how, None).unwrap();
    let (net, bits) = self::net(gpu, &folder, weights);
    let place = (512, Elem::F32, Kernels::Fast);
    let mut scorer = Scorer::new(gpu, &net, place).unwrap();
    let base = based.then(|| self::net(gpu, &folder, "fp16").0);
    let mut base = base.as_ref().map(|b| Scorer::new(gpu, b, place).unwrap());
    let totals = score(&mut scorer, base.as_mut(), &windows, &mut |_, _, _| {}).unwrap();
    Some((totals.finish(windows.len(), "fp16").unwrap(), bits))
}

const DOCUMENTS: Windows = Windows::Documents { context: 512 };

#[test]
fn whole_documents_are_what_torch_finds() {
    let Some(gpu) = gpu() else { return };
    // 0.003: the issue's own tolerance; other summation orders move the mean by less than 1e-6.
    for (weights, expected) in [("fp32", 3.5482), ("fp16", 3.5483)] {
        let Some((p, _)) = measure(gpu, weights, DOCUMENTS, false) else { return };
        assert_eq!((p.tokens, p.windows), (1804, 5));
        assert!((p.perplexity - expected).abs() < 0.003, "{weights}: {}", p.perplexity);
        assert!(p.against.is_none());
    }
}

#[test]
fn windows_are_scored_as_llama_cpp_does() {
    let Some(gpu) = gpu() else { return };
    let expected = [
        (64, 899, 4.7598876, 0.3593774),
        (128, 882, 6.8452863, 0.7421380),
        (256, 889, 6.8978608, 0.7702747),
    ];
    for (size, tokens, perplexity, stderr) in expected {
        let Some((p, _)) = measure(gpu, "fp32", Windows::Chunks { size }, false) else { return };
        assert_eq!(p.tokens, tokens);
        // 1e-5 of the value: f32 sums of a thousand terms in another order.
        assert!((p.perplexity / perplexity - 1.0).abs() < 1e-5, "{size}: {}", p.perplexity);
        assert!((p.stderr / stderr - 1.0).abs() < 1e-4, "{size}: {}", p.stderr);
    }
}

#[test]
fn four_bits_cost_little() {
    let Some(gpu) = gpu() else { return };
    let Some((p, bits)) = measure(gpu, "int4-g32-cubic", DOCUMENTS, true) else { return };
    println!("int4-g32-cubic: {:.4} ± {:.4} at {bits:.2} bits", p.perplexity, p.stderr);
    // 4.05 is asked; round-to-nearest with groups of 32 gives 4.088 (the MANIFEST's table).
    assert!(p.perplexity < 4.05 && p.perplexity > 3.5483, "{}", p.perplexity);
    assert!(bits < 5.5, "{bits}");
    let a = p.against.unwrap();
    assert!((a.perplexity_base - 3.5483).abs() < 0.003, "{}", a.perplexity_base);
    assert!((a.perplexity_ratio - p.perplexity / a.perplexity_base).abs() < 1e-9);
    assert!(a.kl.mean > 0.01 && a.kl.mean < 0.15 && a.kl.max >= a.kl.p99, "{:?}", a.kl);
    assert!(a.same_top > 0.8 && a.same_top < 1.0, "{}", a.same_top);
    let Some((same, _)) = measure(gpu, "fp16", DOCUMENTS, true) else { return };
    let a = same.against.unwrap();
    // The same weights under the same kernels in the same order.
    assert!(a.kl.max == 0.0 && a.same_top == 1.0 && a.perplexity_ratio == 1.0);
}

/// A cache of eight bits against one of floats, both with fp16 weights.
#[test]
fn eight_bits_of_cache_cost_less_than_four_of_weights() {
    let Some(gpu) = gpu() else { return };
    let Some(folder) = shared("data/llm/stories260K") else { return };
    let Some(text) = shared("data/text/tinystories_sample.txt") else { return };
    let text = read_text(&text).unwrap();
    let windows = windows(&Tokenizer::load(&folder).unwrap(), &text, DOCUMENTS, None).unwrap();
    let (net, _) = net(gpu, &folder, "fp16");
    let place = (512, Elem::F32, Kernels::Fast);
    let mut eight = Scorer::with_kv(gpu, &net, place, KvFormat::Int8).unwrap();
    let mut float = Scorer::new(gpu, &net, place).unwrap();
    let totals = score(&mut eight, Some(&mut float), &windows, &mut |_, _, _| {}).unwrap();
    let p = totals.finish(windows.len(), "float cache").unwrap();
    let a = p.against.unwrap();
    println!("int8 cache: {:.4}, KL {:.2e}, same top {:.4}", p.perplexity, a.kl.mean, a.same_top);
    // Heads of eight channels are the hardest case; INT4 weights have a KL of 6.5e-2 here.
    assert!(a.kl.mean > 1e-6 && a.kl.mean < 5e-3, "{:.2e}", a.kl.mean);
    assert!(
        (p.perplexity - 3.5483).abs() < 0.01 && a.same_top > 0.96,
        "{} {}",
        p.perplexity,
        a.same_top
    );
}

#[test]
fn texts_are_cut_as_said() {
    let Some(folder) = shared("data/llm/stories260K") else { return };
    let tokenizer = Tokenizer::load(&folder).unwrap();
    let long = "Once upon a time there was a little boy who liked to play in the park. ".repeat(3);
    let text = format!("{long}<|endoftext|> short <|endoftext|>\n{long}\n<|endoftext|>");
    let all = windows(&tokenizer, &text, Windows::Documents { context: 512 }, None).unwrap();
    assert_eq!((all.len(), all[0].first, all[0].ids[0]), (2, 1, 1));
    assert_eq!(all[0], all[1], "documents are trimmed");
    let cut = windows(&tokenizer, &text, Windows::Documents { context: 16 }, Some(1)).unwrap();
    assert_eq!((cut.len(), cut[0].ids.len()), (1, 16));
    assert_eq!(cut[0].ids, all[0].ids[..16]);
    let chunks = windows(&tokenizer, &text, Windows::Chunks { size: 16 }, None).unwrap();
    assert!(chunks.iter().all(|w| w.ids.len() == 16 && w.ids[0] == 1 && w.first == 9));
    for (text, how) in
        [("", DOCUMENTS), ("too short", DOCUMENTS), ("hi", Windows::Chunks { size: 64 })]
    {
        let e = windows(&tokenizer, text, how, None).unwrap_err();
        assert!(matches!(e, Error::Usage(_)), "{e}");
    }
}
