//! The map of tensor names that models/layouts/names.toml holds: where nets lie in single files, and
//! what diffusers calls their tensors.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use globset::{Glob, GlobMatcher};
use serde::Deserialize;

use crate::{Error, Result};

const TEXT: &str = include_str!("../../models/layouts/names.toml");

/// Where a net may lie in a file.
#[derive(Debug, Deserialize)]
pub(super) struct Place {
    pub(super) part: String,
    pub(super) prefix: String,
    pub(super) table: String,
    pub(super) proof: String,
}

/// Parts of file names that tell what a UNet predicts.
#[derive(Debug, Deserialize)]
pub(super) struct Hints {
    pub(super) v_prediction: Vec<String>,
    pub(super) epsilon: Vec<String>,
}

#[derive(Deserialize)]
struct Raw {
    place: Vec<Place>,
    junk: Vec<String>,
    other: Vec<[String; 2]>,
    table: BTreeMap<String, Vec<Vec<String>>>,
    hint: Hints,
}

/// What is done with a tensor beside renaming it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Take {
    #[default]
    Whole,
    /// One of three equal parts of the rows.
    Third(usize),
    /// `[K, N]` in the file, `[N, K]` in diffusers.
    Transposed,
    /// `[N, K, 1, 1]` in the file, `[N, K]` in diffusers.
    Linear,
}

/// Sizes of a file that its numbering depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    /// input_blocks (and output_blocks) per level of the UNet: its resnets and one more.
    pub(super) per_level: usize,
    /// Levels of the VAE's decoder.
    pub(super) levels: usize,
}

#[derive(Debug)]
struct Rule {
    from: Vec<String>,
    to: Vec<String>,
    take: Take,
}

/// The whole map.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) places: Vec<Place>,
    pub(super) hint: Hints,
    tables: BTreeMap<String, Vec<Rule>>,
    junk: Vec<GlobMatcher>,
    other: Vec<(String, GlobMatcher)>,
}

/// The map, read once.
pub(super) fn names() -> Result<&'static Names> {
    static NAMES: OnceLock<Result<Names, String>> = OnceLock::new();
    let read = || read(TEXT).map_err(|why| format!("models/layouts/names.toml: {why}"));
    NAMES.get_or_init(read).as_ref().map_err(|why| Error::Runtime(why.clone()))
}

fn read(text: &str) -> Result<Names, String> {
    let raw: Raw = toml::from_str(text).map_err(|e| e.to_string())?;
    let glob = |text: &str| Glob::new(text).map(|g| g.compile_matcher()).map_err(|e| e.to_string());
    let segments = |text: &str| text.split('.').map(String::from).collect();
    let rule = |rule: Vec<String>| {
        let take = match rule.get(2).map(String::as_str) {
            None => Take::Whole,
            Some("transposed") => Take::Transposed,
            Some("linear") => Take::Linear,
            Some(other) => return Err(format!("`{other}` is nothing to do with a tensor")),
        };
        match &rule[..] {
            [from, to, ..] => Ok(Rule { from: segments(from), to: segments(to), take }),
            other => Err(format!("{other:?} is no rule")),
        }
    };
    let table = |(name, rules): (String, Vec<Vec<String>>)| {
        Ok((name, rules.into_iter().map(rule).collect::<Result<_, String>>()?))
    };
    Ok(Names {
        places: raw.place,
        hint: raw.hint,
        tables: raw.table.into_iter().map(table).collect::<Result<_, String>>()?,
        junk: raw.junk.iter().map(|text| glob(text)).collect::<Result<_, String>>()?,
        other: raw
            .other
            .iter()
            .map(|[name, text]| Ok((name.clone(), glob(text)?)))
            .collect::<Result<_, String>>()?,
    })
}

impl Names {
    /// diffusers' names of a tensor, several where it is taken apart, none where nobody needs it;
    /// `None` where the table does not know it.
    pub(super) fn rename(
        &self,
        table: &str,
        name: &str,
        counts: Counts,
    ) -> Option<Vec<(String, Take)>> {
        let (to, take) = self.apply(table, name, counts)?;
        if to.is_empty() {
            return Some(vec![]);
        }
        if !to.contains("{qkv}") {
            return Some(vec![(to, take)]);
        }
        let third = |(i, letter): (usize, &str)| (to.replace("{qkv}", letter), Take::Third(i));
        Some(["q", "k", "v"].into_iter().enumerate().map(third).collect())
    }

    fn apply(&self, table: &str, name: &str, counts: Counts) -> Option<(String, Take)> {
        let rules = self.tables.get(table)?;
        rules.iter().find_map(|rule| {
            let found = rule.find(name, counts)?;
            let mut take = rule.take;
            let mut numbers = found.numbers.iter();
            let mut to = Vec::with_capacity(rule.to.len());
            for segment in &rule.to {
                to.push(match segment.as_str() {
                    "{n}" => numbers.next()?.to_string(),
                    "{level}" => found.level.to_string(),
                    "{layer}" => found.layer.to_string(),
                    "{back}" => found.back.to_string(),
                    "*" => found.rest.to_string(),
                    other => match other.strip_prefix('<').and_then(|t| t.strip_suffix('>')) {
                        None => other.to_string(),
                        Some(table) => {
                            let (rest, inner) = self.apply(table, found.rest, counts)?;
                            take = inner;
                            rest
                        }
                    },
                });
            }
            Some((to.join("."), take))
        })
    }

    /// Whether a tensor is one that nobody misses.
    pub(super) fn is_junk(&self, name: &str) -> bool {
        self.junk.iter().any(|glob| glob.is_match(name))
    }

    /// The family of models, other than those that run here, which has a tensor of this name.
    pub(super) fn other(&self, name: &str) -> Option<&str> {
        self.other.iter().find(|(_, glob)| glob.is_match(name)).map(|(family, _)| family.as_str())
    }
}

/// What stood for the placeholders of a rule.
#[derive(Default)]
struct Found<'a> {
    numbers: Vec<usize>,
    level: usize,
    layer: usize,
    back: usize,
    rest: &'a str,
}

impl Rule {
    fn find<'a>(&self, name: &'a str, counts: Counts) -> Option<Found<'a>> {
        let (mut found, mut left) = (Found::default(), Some(name));
        for segment in &self.from {
            if segment == "*" {
                found.rest = left.take()?;
                continue;
            }
            let text = left?;
            let (head, tail) = text.split_once('.').map_or((text, None), |(h, t)| (h, Some(t)));
            left = tail;
            match segment.as_str() {
                "{n}" => found.numbers.push(number(head)?),
                "{down}" => {
                    let block = number(head)?.checked_sub(1)?;
                    found.level = block / counts.per_level;
                    found.layer = block % counts.per_level;
                }
                "{up}" => {
                    found.level = number(head)? / counts.per_level;
                    found.layer = number(head)? % counts.per_level;
                }
                "{back}" => {
                    found.back = counts.levels.checked_sub(1)?.checked_sub(number(head)?)?
                }
                literal if literal == head => {}
                _ => return None,
            }
        }
        left.is_none().then_some(found)
    }
}

/// A number of a name: few digits and nothing else.
fn number(text: &str) -> Option<usize> {
    let digits = (1..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rename(table: &str, name: &str) -> Option<Vec<(String, Take)>> {
        names().unwrap().rename(table, name, Counts { per_level: 3, levels: 4 })
    }

    fn one(table: &str, name: &str) -> String {
        let found = rename(table, name).unwrap_or_default();
        found.first().map(|(to, _)| to.clone()).unwrap_or_default()
    }

    #[test]
    fn every_table_that_is_named_exists() {
        let names = names().unwrap();
        for place in &names.places {
            assert!(names.tables.contains_key(&place.table), "{place:?}");
            let counts = Counts { per_level: 3, levels: 4 };
            let proof = names.rename(&place.table, &place.proof, counts);
            assert!(proof.is_some_and(|to| !to.is_empty()), "{place:?}: its own proof is unknown");
        }
        let inner = names.tables.values().flatten().flat_map(|rule| &rule.to);
        for table in inner.filter_map(|s| s.strip_prefix('<')?.strip_suffix('>')) {
            assert!(names.tables.contains_key(table), "<{table}>");
        }
    }

    #[test]
    fn blocks_are_counted_as_ldm_does() {
        let unet = |name: &str| one("unet", name);
        assert_eq!(unet("input_blocks.0.0.weight"), "conv_in.weight");
        assert_eq!(unet("input_blocks.3.0.op.bias"), "down_blocks.0.downsamplers.0.conv.bias");
        assert_eq!(
            unet("input_blocks.4.0.in_layers.2.weight"),
            "down_blocks.1.resnets.0.conv1.weight"
        );
        assert_eq!(
            unet("output_blocks.5.1.transformer_blocks.0.attn2.to_k.weight"),
            "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k.weight"
        );
        assert_eq!(unet("output_blocks.2.1.conv.weight"), "up_blocks.0.upsamplers.0.conv.weight");
        let vae = |name: &str| one("vae", name);
        assert_eq!(
            vae("decoder.up.0.block.2.norm1.weight"),
            "decoder.up_blocks.3.resnets.2.norm1.weight"
        );
        assert_eq!(
            rename("vae", "encoder.mid.attn_1.proj_out.weight").unwrap(),
            [("encoder.mid_block.attentions.0.to_out.0.weight".into(), Take::Linear)]
        );
        let qkv = rename("open_clip", "transformer.resblocks.7.attn.in_proj_bias").unwrap();
        assert_eq!(
            qkv[2],
            ("text_model.encoder.layers.7.self_attn.v_proj.bias".into(), Take::Third(2))
        );
        for bad in [
            "input_blocks.x.0.weight",
            "output_blocks.00001.0.in_layers.0.weight",
            "",
            "out",
            "out.",
        ] {
            assert!(rename("unet", bad).is_none_or(|to| to[0].0.ends_with('.')), "{bad}");
        }
        assert!(rename("vae", "decoder.up.4.block.0.conv1.weight").is_none());
    }
}
