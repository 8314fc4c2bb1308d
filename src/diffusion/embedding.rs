//! Textual inversion (Gal et al. 2022, arXiv 2208.01618): vectors with a name, which take the places of
//! tokens where a prompt has the name.
//!
//! Files: AUTOMATIC1111's `emb_params` `[n, channels]`; `clip_l` and `clip_g` of SDXL's two text encoders;
//! diffusers' one tensor under the name of its token, `[channels]` or `[n, channels]`. The vectors become
//! rows behind the text encoder's table, and [`Placeholders`] puts their ids into prompts.

use std::path::{Path, PathBuf};

use crate::tensor::Tensor;
use crate::text::tokenizer::ClipTokenizer;
use crate::weights::WeightStore;
use crate::{Error, Result};

/// A file of textual inversion.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// What a prompt has in its place: the file's name without its ending, or diffusers' `<name>`.
    pub name: String,
    pub path: PathBuf,
    /// Number of tokens that it takes.
    pub count: usize,
    parts: Vec<Part>,
}

/// The vectors for one text encoder, `[count, channels]`.
#[derive(Debug, Clone, PartialEq)]
struct Part {
    /// None: for the only text encoder of the model.
    encoder: Option<usize>,
    channels: usize,
    values: Vec<f32>,
}

/// SDXL's text encoders in their order.
const ENCODERS: [&str; 2] = ["clip_l", "clip_g"];
const AUTOMATIC1111: &str = "emb_params";

impl Embedding {
    /// Reads a `.safetensors` file. `name` takes the place of the file's own.
    ///
    /// # Errors
    /// `Model` for a pickle (with the command that converts it) and for tensors that are no embedding.
    pub fn read(path: impl AsRef<Path>, name: Option<&str>) -> Result<Embedding> {
        let path = path.as_ref();
        let is_pickle = path.extension().is_some_and(|ending| {
            ["pt", "bin", "pth", "ckpt"].iter().any(|pickle| ending.eq_ignore_ascii_case(pickle))
        });
        if is_pickle && path.is_file() {
            return Err(pickle(path));
        }
        let store = WeightStore::open(path)?;
        let keys: Vec<&str> = store.names().collect();
        let by_encoder = keys.iter().all(|key| ENCODERS.contains(key));
        let (own, keys) = match keys.as_slice() {
            [AUTOMATIC1111] => (stem(path), keys),
            [_, ..] if by_encoder => (stem(path), keys),
            [key] => (key.to_string(), keys),
            _ => {
                return Err(Error::Model(format!(
                    "{}: {} tensors ({}); an embedding of textual inversion has one, or clip_l and \
                     clip_g",
                    path.display(),
                    keys.len(),
                    shortened(&keys)
                )));
            }
        };
        let parts: Vec<Part> =
            keys.iter().map(|key| part(&store, key, path)).collect::<Result<_>>()?;
        let counts: Vec<usize> =
            parts.iter().map(|part| part.values.len() / part.channels).collect();
        let count = counts.first().copied().unwrap_or(0);
        if counts.iter().any(|other| *other != count) {
            return Err(Error::Model(format!(
                "{}: {counts:?} vectors for the two text encoders; their numbers must agree",
                path.display()
            )));
        }
        let name = name.map_or(own, str::to_string).trim().to_string();
        if name.is_empty() {
            return Err(Error::Usage(format!("{}: its name is empty; give one", path.display())));
        }
        Ok(Embedding { name, path: path.to_path_buf(), count, parts })
    }

    /// The vectors `[count, channels]` for a model's text encoder, counted from 0.
    ///
    /// # Errors
    /// `Model` if the file was made for another model.
    pub fn vectors(&self, encoder: usize, channels: usize) -> Result<&[f32]> {
        let fits = |part: &&Part| {
            part.encoder.is_none_or(|own| own == encoder) && part.channels == channels
        };
        self.parts.iter().find(fits).map(|part| part.values.as_slice()).ok_or_else(|| {
            let own: Vec<String> =
                self.parts.iter().map(|part| part.channels.to_string()).collect();
            Error::Model(format!(
                "{}: vectors of {} channels, text encoder {} of this model has {channels}; the \
                 embedding belongs to another base model (768: SD 1.x, 1024: SD 2.x, 768 and 1280: \
                 SDXL)",
                self.path.display(),
                own.join(" and "),
                encoder + 1
            ))
        })
    }
}

fn part(store: &WeightStore, key: &str, path: &Path) -> Result<Part> {
    let shape = store.shape(key)?;
    let (count, channels) = match *shape {
        [channels] => (1, channels),
        [count, channels] => (count, channels),
        _ => (0, 0),
    };
    if count * channels == 0 {
        return Err(Error::Model(format!(
            "{}: tensor `{key}` has shape {shape:?}; an embedding's is [vectors, channels]",
            path.display()
        )));
    }
    let values = store.values(key)?;
    if values.iter().any(|value| !value.is_finite()) {
        return Err(Error::Model(format!(
            "{}: tensor `{key}` holds values that are not finite; fetch the file again",
            path.display()
        )));
    }
    Ok(Part { encoder: ENCODERS.iter().position(|name| *name == key), channels, values })
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn shortened(keys: &[&str]) -> String {
    let more = if keys.len() > 3 { ", …" } else { "" };
    format!("{}{more}", keys[..keys.len().min(3)].join(", "))
}

/// AUTOMATIC1111's pickles keep the tensor under `string_to_param`, so the general command would find
/// nothing in them.
fn pickle(path: &Path) -> Error {
    Error::Model(format!(
        "{}: a PyTorch pickle, which can run code when it is read, so it is not opened. Take the \
         .safetensors file of the same embedding, or convert it where PyTorch is installed: python -c \
         \"import torch, safetensors.torch as s; d = torch.load('IN', weights_only=True, \
         map_location='cpu'); d = d.get('string_to_param', d); s.save_file({{'emb_params': \
         next(iter(d.values())).detach().contiguous()}}, '{}.safetensors')\"",
        path.display(),
        stem(path)
    ))
}

/// The rows behind the table of a text encoder, `[rows, channels]` in the order of the embeddings; None
/// without embeddings. `encoder` counts the model's text encoders from 0.
pub fn table_rows(
    embeddings: &[Embedding],
    encoder: usize,
    channels: usize,
) -> Result<Option<Tensor>> {
    let mut values = Vec::new();
    for embedding in embeddings {
        values.extend_from_slice(embedding.vectors(encoder, channels)?);
    }
    let rows = values.len() / channels.max(1);
    Ok((rows > 0).then(|| Tensor::f32(&[rows, channels], values)))
}

/// The names of embeddings and the ids that stand for their vectors.
///
/// A name in angle brackets is found anywhere in the text, as diffusers' added tokens are; any other name
/// where its own tokens follow one another, as in AUTOMATIC1111. Upper and lower case are the same. The
/// longest name wins.
#[derive(Debug, Clone, Default)]
pub struct Placeholders {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    name: String,
    /// In lower case, if the name is one in angle brackets.
    marked: Option<String>,
    /// The tokens of any other name.
    run: Vec<u32>,
    first: u32,
    count: usize,
}

/// What takes one or several places in a window.
#[derive(Debug, Clone, PartialEq)]
pub enum Item<'e> {
    Token(u32),
    /// All vectors of an embedding: `count` ids from `first` on.
    Vectors {
        name: &'e str,
        first: u32,
        count: usize,
    },
}

impl Placeholders {
    /// Ids from `first` on, the number of rows of the text encoder's own table (`vocab_size`).
    ///
    /// # Errors
    /// `Usage` for a name that two embeddings have, or that has no tokens.
    pub fn new(
        embeddings: &[Embedding],
        tokenizer: &ClipTokenizer,
        first: usize,
    ) -> Result<Placeholders> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut first = first as u32;
        for embedding in embeddings {
            let name = embedding.name.clone();
            let marked =
                (name.starts_with('<') && name.ends_with('>')).then(|| name.to_ascii_lowercase());
            let run = tokenizer.inner().encode(&name, false)?;
            let twice = entries.iter().find(|other| match &marked {
                Some(_) => other.marked == marked,
                None => other.marked.is_none() && other.run == run,
            });
            if let Some(other) = twice {
                return Err(Error::Usage(format!(
                    "{}: the name {name:?} means the same as {:?} of another embedding; give it \
                     another one",
                    embedding.path.display(),
                    other.name
                )));
            }
            if run.is_empty() {
                return Err(Error::Usage(format!(
                    "{}: the name {name:?} has no tokens; give it another one",
                    embedding.path.display()
                )));
            }
            entries.push(Entry { name, marked, run, first, count: embedding.count });
            first += embedding.count as u32;
        }
        Ok(Placeholders { entries })
    }

    /// The items of a text, each with the byte of the text at which it begins.
    pub fn encode<'e>(
        &'e self,
        text: &str,
        tokenizer: &ClipTokenizer,
    ) -> Result<Vec<(Item<'e>, usize)>> {
        // Lowering ASCII alone leaves every byte in its place.
        let lower = text.to_ascii_lowercase();
        let (mut items, mut start) = (Vec::new(), 0);
        let marked = |entry: &'e Entry| entry.marked.as_ref().map(|marked| (entry, marked));
        loop {
            let found = self.entries.iter().filter_map(marked).filter_map(|(entry, marked)| {
                lower[start..].find(marked.as_str()).map(|at| (start + at, marked.len(), entry))
            });
            let next = found.min_by_key(|(at, length, _)| (*at, usize::MAX - length));
            let end = next.map_or(text.len(), |(at, _, _)| at);
            self.encode_words(&text[start..end], start, tokenizer, &mut items)?;
            let Some((at, length, entry)) = next else { return Ok(items) };
            items.push((entry.item(), at));
            start = at + length;
        }
    }

    /// As [`Placeholders::encode`] for text without names in angle brackets.
    fn encode_words<'e>(
        &'e self,
        text: &str,
        start: usize,
        tokenizer: &ClipTokenizer,
        items: &mut Vec<(Item<'e>, usize)>,
    ) -> Result<()> {
        let tokens = tokenizer.encode_with_starts(text)?;
        let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
        let mut at = 0;
        while at < ids.len() {
            let begins =
                |entry: &&Entry| entry.marked.is_none() && ids[at..].starts_with(&entry.run);
            let found = self.entries.iter().filter(begins).max_by_key(|entry| entry.run.len());
            let (item, taken) = match found {
                Some(entry) => (entry.item(), entry.run.len()),
                None => (Item::Token(ids[at]), 1),
            };
            items.push((item, start + tokens[at].1));
            at += taken;
        }
        Ok(())
    }
}

impl Entry {
    fn item(&self) -> Item<'_> {
        Item::Vectors { name: &self.name, first: self.first, count: self.count }
    }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    use super::*;

    fn write(folder: &Path, file: &str, tensors: &[(&str, &[usize])]) -> PathBuf {
        let path = folder.join(file);
        let data: Vec<Vec<f32>> = tensors
            .iter()
            .map(|(_, shape)| (0..shape.iter().product()).map(|i| i as f32).collect())
            .collect();
        let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
            let bytes = bytemuck::cast_slice(data);
            (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
        });
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        path
    }

    fn tokenizer() -> ClipTokenizer {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        ClipTokenizer::load(root.join("models/demo-scenes/tokenizer")).unwrap()
    }

    #[test]
    fn every_layout_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let read = |file, tensors| Embedding::read(write(folder.path(), file, tensors), None);
        let one = read("my style.safetensors", &[("emb_params", &[2, 4])]).unwrap();
        assert_eq!((one.name.as_str(), one.count), ("my style", 2));
        assert_eq!(one.vectors(0, 4).unwrap()[7], 7.0);
        let one = read("learned_embeds.safetensors", &[("<cat-toy>", &[4])]).unwrap();
        assert_eq!((one.name.as_str(), one.count), ("<cat-toy>", 1));
        // Both encoders of one width: the key decides.
        let two = read("xl.safetensors", &[("clip_l", &[3, 4]), ("clip_g", &[3, 4])]).unwrap();
        assert_eq!((two.name.as_str(), two.count), ("xl", 3));
        assert!(
            two.vectors(0, 4).is_ok() && two.vectors(1, 4).is_ok() && two.vectors(2, 4).is_err()
        );
        let renamed = Embedding::read(folder.path().join("xl.safetensors"), Some("other")).unwrap();
        assert_eq!(renamed.name, "other");
        let rows = table_rows(&[one, renamed], 0, 4);
        assert_eq!(rows.unwrap().unwrap().shape, [4, 4]);
        assert_eq!(table_rows(&[], 0, 4).unwrap(), None);
    }

    #[test]
    fn other_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let read = |file, tensors| {
            let read = Embedding::read(write(folder.path(), file, tensors), None);
            read.unwrap_err().to_string()
        };
        let error = read("a.safetensors", &[("x", &[4]), ("y", &[4])]);
        assert!(error.contains("x, y"), "{error}");
        let error = read("a.safetensors", &[("clip_l", &[2, 4]), ("clip_g", &[3, 4])]);
        assert!(error.contains("must agree"), "{error}");
        let error = read("a.safetensors", &[("emb_params", &[1, 1, 4])]);
        assert!(error.contains("[1, 1, 4]"), "{error}");
        let error = read("old.pt", &[("emb_params", &[4])]);
        assert!(
            error.contains("string_to_param") && error.contains("'old.safetensors'"),
            "{error}"
        );
        let path = write(folder.path(), "sd1.safetensors", &[("emb_params", &[768])]);
        let error = Embedding::read(path, None).unwrap().vectors(0, 1024).unwrap_err().to_string();
        assert!(error.contains("768 channels") && error.contains("1024"), "{error}");
    }

    fn embedding(name: &str, count: usize) -> Embedding {
        let part = Part { encoder: None, channels: 1, values: vec![0.0; count] };
        let path = PathBuf::from("a.safetensors");
        Embedding { name: name.to_string(), path, count, parts: vec![part] }
    }

    #[test]
    fn names_become_vectors() {
        let clip = tokenizer();
        let all = [embedding("<boat>", 2), embedding("red", 1), embedding("red tree", 3)];
        let names = Placeholders::new(&all, &clip, 1000).unwrap();
        let vectors = |name: &'static str, first, count| Item::Vectors { name, first, count };
        let text = "a <BOAT>, Red boat red tree<boat>redder";
        let items = names.encode(text, &clip).unwrap();
        let found: Vec<_> =
            items.iter().filter(|(item, _)| matches!(item, Item::Vectors { .. })).collect();
        let expected = [
            (vectors("<boat>", 1000, 2), 2),
            (vectors("red", 1002, 1), 10),
            (vectors("red tree", 1003, 3), 19),
            (vectors("<boat>", 1000, 2), 27),
        ];
        assert_eq!(found, expected.iter().collect::<Vec<_>>());
        // What is no name is tokenized as without names.
        let plain = Placeholders::default();
        let tokens = plain.encode("a boat", &clip).unwrap();
        let ids = clip.inner().encode("a boat", false).unwrap();
        let ids: Vec<_> = ids.into_iter().map(Item::Token).collect();
        assert_eq!(tokens.into_iter().map(|(item, _)| item).collect::<Vec<_>>(), ids);
    }

    #[test]
    fn names_must_differ() {
        let clip = tokenizer();
        let error = Placeholders::new(&[embedding("Red", 1), embedding("red", 1)], &clip, 9);
        assert!(error.unwrap_err().to_string().contains("another embedding"));
        assert!(Placeholders::new(&[embedding("<a>", 1), embedding("a", 1)], &clip, 9).is_ok());
    }
}
