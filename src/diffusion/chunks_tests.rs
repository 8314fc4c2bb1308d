//! Windows of the demo model's tokenizer, which are 48 tokens long: room for 46.

use std::path::Path;

use super::*;
use crate::text::tokenizer::Tokenizer;

const ROOM: usize = 46;

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo-scenes/tokenizer")
}

fn clip() -> ClipTokenizer {
    ClipTokenizer::load(folder()).unwrap()
}

/// As SD 2.x and the second encoder of SDXL pad: with `!`.
fn clip_with_pad() -> ClipTokenizer {
    let tokenizer = Tokenizer::load(folder()).unwrap();
    let mut special = tokenizer.special().clone();
    special.set("pad_token", "!");
    ClipTokenizer::new(tokenizer.with_special(special)).unwrap()
}

fn chunks_of(clip: &ClipTokenizer, text: &str, syntax: PromptSyntax) -> Chunks {
    let prompt = Prompt::parse(text, syntax).unwrap();
    Chunks::new(&prompt, clip, &Placeholders::default()).unwrap()
}

fn a1111(text: &str) -> Chunks {
    chunks_of(&clip(), text, PromptSyntax::A1111)
}

/// The id of a word that is one token.
fn id(word: &str) -> u32 {
    let ids = clip().inner().encode(word, false).unwrap();
    assert_eq!(ids.len(), 1, "{word}");
    ids[0]
}

/// Ids of a window between bos and the first eos.
fn inside(window: &[u32]) -> &[u32] {
    let end = window.iter().position(|id| *id == clip().marks().eos).unwrap();
    &window[1..end]
}

fn words(word: &str, count: usize) -> String {
    vec![word; count].join(" ")
}

#[test]
fn short_prompts_are_padded_as_in_diffusers() {
    let prompts = ["", "a red boat on a calm sea", "a boat, a tree", "café 猫 x", "Two  spaces\n!"];
    for clip in [clip(), clip_with_pad()] {
        for text in prompts {
            let padded = clip.encode_padded(text, 48).unwrap();
            for syntax in [PromptSyntax::A1111, PromptSyntax::Plain] {
                let chunks = chunks_of(&clip, text, syntax);
                assert_eq!(chunks.ids, std::slice::from_ref(&padded.ids), "{text:?} {syntax}");
                assert_eq!((chunks.kept, chunks.dropped), (padded.kept, 0), "{text:?} {syntax}");
                assert!(!chunks.is_weighted());
            }
        }
    }
    let ids = &chunks_of(&clip_with_pad(), "a boat", PromptSyntax::A1111).ids[0];
    assert_eq!(ids[4..], [clip().inner().token_id("!").unwrap(); 44]);
}

#[test]
fn long_plain_prompts_are_cut_and_say_so() {
    let text = format!("{} red tree", words("boat", ROOM - 1));
    let plain = chunks_of(&clip(), &text, PromptSyntax::Plain);
    let padded = clip().encode_padded(&text, 48).unwrap();
    assert_eq!(plain.ids, [padded.ids]);
    assert_eq!((plain.kept, plain.dropped, plain.dropped_text.as_str()), (ROOM, 1, "tree"));
    assert_eq!(padded.dropped_text, plain.dropped_text);
}

#[test]
fn long_prompts_go_on_in_the_next_window() {
    let chunks = a1111(&words("boat", ROOM));
    assert_eq!((chunks.windows(), chunks.kept), (1, ROOM));
    let chunks = a1111(&words("boat", ROOM + 1));
    assert_eq!((chunks.windows(), chunks.kept, chunks.dropped), (2, ROOM + 1, 0));
    assert_eq!(inside(&chunks.ids[1]), [id("boat")]);
    assert!(chunks.ids.iter().zip(&chunks.weights).all(|(i, w)| (i.len(), w.len()) == (48, 48)));
}

#[test]
fn a_comma_near_the_end_moves_what_follows() {
    let (boat, tree, comma) = (id("boat"), id("tree"), id(","));
    // The comma is the 20th token from the end: still near enough.
    let text = format!("{}, {}", words("boat", ROOM - 20), words("tree", 30));
    let chunks = a1111(&text);
    let mut first = vec![boat; ROOM - 20];
    first.push(comma);
    assert_eq!(inside(&chunks.ids[0]), first);
    assert_eq!(inside(&chunks.ids[1]), [tree; 30]);
    // The 21st: too far.
    let text = format!("{}, {}", words("boat", ROOM - 21), words("tree", 30));
    let chunks = a1111(&text);
    assert_eq!(inside(&chunks.ids[0])[ROOM - 21..], [vec![comma], vec![tree; 20]].concat());
    assert_eq!(inside(&chunks.ids[1]), [tree; 10]);
    // A comma that is itself the first token too many begins the next window.
    let chunks = a1111(&format!("{}, {}", words("boat", ROOM), words("tree", 2)));
    assert_eq!(inside(&chunks.ids[0]), [boat; ROOM]);
    assert_eq!(inside(&chunks.ids[1]), [comma, tree, tree]);
}

#[test]
fn weights_move_with_their_tokens() {
    let text = format!("{}, (red:1.5) {}", words("boat", ROOM - 3), words("tree", 3));
    let chunks = a1111(&text);
    assert_eq!(chunks.weights[0], [1.0; 48]);
    let mut second = [1.0; 48];
    second[1] = 1.5;
    assert_eq!(chunks.weights[1], second);
    assert_eq!(inside(&chunks.ids[1]), [id("red"), id("tree"), id("tree"), id("tree")]);
    assert!(chunks.is_weighted());
}

#[test]
fn a_break_begins_a_window() {
    let chunks = a1111("a boat BREAK (red:0.5) tree");
    assert_eq!(chunks.windows(), 2);
    assert_eq!(inside(&chunks.ids[0]), [id("a"), id("boat")]);
    assert_eq!(inside(&chunks.ids[1]), [id("red"), id("tree")]);
    assert_eq!(chunks.weights[1][..4], [1.0, 0.5, 1.0, 1.0]);
    // A break at the end adds nothing, one at the start an empty window; as in AUTOMATIC1111.
    assert_eq!(a1111("a BREAK").windows(), 1);
    assert_eq!(a1111("BREAK a").windows(), 2);
}

#[test]
fn prompts_are_padded_to_one_length() {
    let (mut long, mut short) = (a1111("a BREAK b BREAK c"), a1111(""));
    let empty = short.clone();
    Chunks::pad_together(&mut [&mut long, &mut short]);
    assert_eq!((long.windows(), short.windows()), (3, 3));
    for window in 0..3 {
        assert_eq!(short.ids[window], empty.ids[0]);
        assert_eq!(short.weights[window], empty.weights[0]);
    }
}

/// An embedding file of n vectors of one channel.
fn embedding(folder: &Path, name: &str, count: usize) -> crate::diffusion::embedding::Embedding {
    let path = folder.join(format!("{name}.safetensors"));
    let data = vec![0u8; count * 4];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![count, 1], &data);
    let bytes = safetensors::serialize([("emb_params", view.unwrap())], None).unwrap();
    std::fs::write(&path, bytes).unwrap();
    crate::diffusion::embedding::Embedding::read(path, None).unwrap()
}

#[test]
fn embeddings_stay_whole() {
    let folder = tempfile::tempdir().unwrap();
    let clip = clip();
    let names = Placeholders::new(&[embedding(folder.path(), "tree", 3)], &clip, 688).unwrap();
    let cut =
        |text: &str, syntax| Chunks::new(&Prompt::parse(text, syntax).unwrap(), &clip, &names);
    let chunks = cut("a (tree:1.5)", PromptSyntax::A1111).unwrap();
    assert_eq!(inside(&chunks.ids[0]), [id("a"), 688, 689, 690]);
    assert_eq!(chunks.weights[0][..6], [1.0, 1.0, 1.5, 1.5, 1.5, 1.0]);
    assert_eq!(chunks.embeddings, ["tree"]);
    let long = format!("{} tree", words("boat", ROOM - 2));
    let chunks = cut(&long, PromptSyntax::A1111).unwrap();
    assert_eq!(inside(&chunks.ids[0]), [id("boat"); ROOM - 2]);
    assert_eq!(inside(&chunks.ids[1]), [688, 689, 690]);
    // diffusers expands to tokens and cuts those.
    let chunks = cut(&long, PromptSyntax::Plain).unwrap();
    assert_eq!(inside(&chunks.ids[0])[ROOM - 2..], [688, 689]);
    assert_eq!((chunks.windows(), chunks.dropped, chunks.dropped_text.as_str()), (1, 1, "tree"));
    let large = [embedding(folder.path(), "tree", ROOM + 1)];
    let names = Placeholders::new(&large, &clip, 688).unwrap();
    let prompt = Prompt::parse("tree", PromptSyntax::A1111).unwrap();
    assert!(matches!(Chunks::new(&prompt, &clip, &names), Err(Error::Usage(_))));
}

#[test]
fn emphasis_restores_the_mean_of_each_window() {
    // Window 1: mean 2.5; weighted 1, 2, 6, 8 with mean 4.25. Window 2 has no weights.
    let mut hidden = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
    emphasize(&mut hidden, &[vec![1.0, 2.0], vec![1.0, 1.0]]).unwrap();
    let factor = 2.5 / 4.25;
    for (value, weighted) in hidden.iter().zip([1.0, 2.0, 6.0, 8.0]) {
        // One rounding to f32 of a value below 8.
        assert!((f64::from(*value) - weighted * factor).abs() < 1e-6, "{hidden:?}");
    }
    assert_eq!(hidden[4..], [5.0, 6.0, 7.0, 8.0]);
    // A mean that has become 0 cannot be restored.
    let mut hidden = [1.0, 1.0];
    emphasize(&mut hidden, &[vec![1.0, -1.0]]).unwrap();
    assert_eq!(hidden, [1.0, -1.0]);
    assert!(emphasize(&mut [0.0; 5], &[vec![1.0; 2]]).is_err());
}
