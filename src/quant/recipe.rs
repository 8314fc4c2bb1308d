//! Recipes: which number format each tensor of a model gets.

use std::collections::BTreeMap;
use std::path::Path;

use globset::{Glob, GlobMatcher};
use serde::Deserialize;
use toml::Spanned;

use super::QuantSpec;
use crate::{Error, Result};

/// The recipes that come with the program, by name.
const BUILTIN: [(&str, &str); 5] = [
    ("int4", include_str!("../../models/recipes/int4.toml")),
    ("int4-quality", include_str!("../../models/recipes/int4-quality.toml")),
    ("int8", include_str!("../../models/recipes/int8.toml")),
    ("fp16", include_str!("../../models/recipes/fp16.toml")),
    ("fp32", include_str!("../../models/recipes/fp32.toml")),
];

/// One line of a recipe.
#[derive(Clone, Debug)]
pub struct Rule {
    /// A glob over tensor names; `*` matches dots too, `{a,b}` either.
    pub path: String,
    pub spec: QuantSpec,
    /// Why these tensors are treated so.
    pub why: String,
    glob: GlobMatcher,
}

/// An ordered list of rules and a default: the first rule whose glob matches a tensor's name gives
/// its format.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub name: String,
    /// What kind of net it is for: `unet`, `llm`, `text_encoder` or `vae`.
    pub family: String,
    pub default: QuantSpec,
    pub rules: Vec<Rule>,
    /// Weights that a foreign file (GGUF) has quantized already stay as near to that as possible,
    /// instead of being quantized again as the rules say: what `auto` means.
    pub keep_packed: bool,
    /// Formats of single tensors, before any rule: what a budget of bits was spent on.
    pub exact: BTreeMap<String, QuantSpec>,
}

/// What `--weights` says when nobody says anything: int4 for files of floats, else what the file has.
pub const AUTO: &str = "auto";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRecipe {
    name: String,
    family: BTreeMap<String, RawFamily>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFamily {
    default: Spanned<String>,
    #[serde(default)]
    rule: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    path: Spanned<String>,
    spec: Spanned<String>,
    #[serde(default)]
    why: String,
}

impl Recipe {
    /// One of the recipes that come with the program (`int4`, `int4-quality`, `int8`, `fp16`, `fp32`) for a family
    /// (`unet`, `llm`, `text_encoder`, `vae`).
    pub fn builtin(name: &str, family: &str) -> Result<Recipe> {
        match BUILTIN.iter().find(|(n, _)| *n == name) {
            Some((name, text)) => Recipe::parse(&format!("recipe {name}"), text, family),
            None => Err(Error::Usage(format!(
                "there is no recipe `{name}`; those that come with the program are int4, \
                 int4-quality, int8, fp16 and fp32"
            ))),
        }
    }

    /// A recipe file for a family; its `any` table serves families it does not name.
    pub fn load(path: impl AsRef<Path>, family: &str) -> Result<Recipe> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        Recipe::parse(&path.display().to_string(), &text, family)
    }

    /// What a user may write for weights: [`AUTO`], the name of a recipe, a number format (`int4-g32-cubic`:
    /// the recipe of those bits with this format in the place of its int4 or int8), or a `.toml`
    /// file.
    pub fn from_argument(argument: &str, family: &str) -> Result<Recipe> {
        if argument == AUTO {
            return Ok(Recipe { keep_packed: true, ..Recipe::builtin("int4", family)? });
        }
        if BUILTIN.iter().any(|(name, _)| *name == argument) {
            return Recipe::builtin(argument, family);
        }
        if argument.ends_with(".toml") {
            return Recipe::load(argument, family);
        }
        let spec: QuantSpec = argument.parse().map_err(|e| {
            Error::Usage(format!(
                "`{argument}` is neither auto, nor a recipe (int4, int4-quality, int8, fp16, fp32), nor a .toml file, nor a \
                 number format: {e}"
            ))
        })?;
        let (name, replaced) = match spec {
            QuantSpec::F32 => ("fp32", QuantSpec::F32),
            QuantSpec::F16 => ("fp16", QuantSpec::F16),
            QuantSpec::Q8 { .. } => ("int8", QuantSpec::INT8),
            QuantSpec::Q4 { .. } => ("int4", QuantSpec::INT4),
        };
        let mut recipe = Recipe::builtin(name, family)?;
        let specs = recipe.rules.iter_mut().map(|r| &mut r.spec).chain([&mut recipe.default]);
        specs.filter(|s| **s == replaced).for_each(|s| *s = spec);
        recipe.name = argument.to_string();
        Ok(recipe)
    }

    /// Every tensor in one format.
    pub fn uniform(spec: QuantSpec) -> Recipe {
        Recipe {
            name: spec.to_string(),
            family: "any".into(),
            default: spec,
            rules: vec![],
            keep_packed: false,
            exact: BTreeMap::new(),
        }
    }

    /// Reads a recipe's TOML; `file` stands for its source in messages.
    pub fn parse(file: &str, text: &str, family: &str) -> Result<Recipe> {
        let at = |offset: usize, why: &str| {
            let line = 1 + text.get(..offset).map_or(0, |t| t.matches('\n').count());
            Error::Usage(format!("{file}:{line}: {why}"))
        };
        let raw: RawRecipe = toml::from_str(text)
            .map_err(|e| at(e.span().map_or(0, |span| span.start), e.message()))?;
        let Some(found) = raw.family.get(family).or_else(|| raw.family.get("any")) else {
            let known: Vec<&str> = raw.family.keys().map(String::as_str).collect();
            return Err(Error::Usage(format!(
                "{file}: nothing for the family `{family}`; there is {}",
                known.join(", ")
            )));
        };
        let spec = |s: &Spanned<String>| -> Result<QuantSpec> {
            s.get_ref().parse().map_err(|e: Error| at(s.span().start, &e.to_string()))
        };
        let rule = |raw: &RawRule| -> Result<Rule> {
            let glob = Glob::new(raw.path.get_ref())
                .map_err(|e| at(raw.path.span().start, &e.to_string()))?;
            Ok(Rule {
                path: raw.path.get_ref().clone(),
                spec: spec(&raw.spec)?,
                why: raw.why.clone(),
                glob: glob.compile_matcher(),
            })
        };
        Ok(Recipe {
            name: raw.name.clone(),
            family: family.to_string(),
            default: spec(&found.default)?,
            rules: found.rule.iter().map(rule).collect::<Result<_>>()?,
            keep_packed: false,
            exact: BTreeMap::new(),
        })
    }

    /// The format of the tensor of this name.
    pub fn spec_for(&self, path: &str) -> QuantSpec {
        let exact = self.exact.get(path).copied();
        exact.unwrap_or_else(|| self.by_rule(path))
    }

    /// What the rules alone say.
    fn by_rule(&self, path: &str) -> QuantSpec {
        self.rules.iter().find(|rule| rule.glob.is_match(path)).map_or(self.default, |r| r.spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_builtin_serves_every_family() {
        for (name, _) in BUILTIN {
            for family in ["unet", "llm", "text_encoder", "vae"] {
                let recipe = Recipe::builtin(name, family).unwrap();
                assert_eq!((recipe.name.as_str(), recipe.family.as_str()), (name, family));
                if name != "fp32" {
                    assert_eq!(
                        recipe.spec_for("a.norm1.weight"),
                        QuantSpec::F32,
                        "{name} {family}"
                    );
                    assert_eq!(recipe.spec_for("a.b.bias"), QuantSpec::F32, "{name} {family}");
                }
            }
        }
        assert!(Recipe::builtin("int3", "unet").is_err());
    }

    #[test]
    fn int4_keeps_what_the_design_says() {
        let unet = Recipe::builtin("int4", "unet").unwrap();
        for (name, spec) in [
            ("conv_in.weight", QuantSpec::F16),
            ("conv_out.weight", QuantSpec::F16),
            ("conv_norm_out.weight", QuantSpec::F32),
            ("time_embedding.linear_1.weight", QuantSpec::F16),
            ("mid_block.resnets.0.time_emb_proj.weight", QuantSpec::F16),
            ("mid_block.resnets.0.conv1.weight", QuantSpec::INT4),
            ("up_blocks.1.resnets.2.conv_shortcut.weight", QuantSpec::INT4),
            (
                "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.weight",
                QuantSpec::INT4,
            ),
            ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight", QuantSpec::INT4),
        ] {
            assert_eq!(unet.spec_for(name), spec, "{name}");
        }
        let llm = Recipe::builtin("int4", "llm").unwrap();
        assert_eq!(llm.spec_for("model.layers.0.self_attn.q_proj.weight"), QuantSpec::INT4);
        assert_eq!(llm.spec_for("model.layers.0.self_attn.q_norm.weight"), QuantSpec::F32);
        assert_eq!(llm.spec_for("model.embed_tokens.weight"), QuantSpec::INT8);
        assert_eq!(llm.spec_for("lm_head.weight"), QuantSpec::INT8);
        let clip = Recipe::builtin("int4", "text_encoder").unwrap();
        assert_eq!(clip.spec_for("text_model.encoder.layers.0.mlp.fc1.weight"), QuantSpec::INT8);
        assert_eq!(clip.spec_for("text_model.embeddings.token_embedding.weight"), QuantSpec::F16);
        let vae = Recipe::builtin("int4", "vae").unwrap();
        assert_eq!(vae.spec_for("decoder.conv_in.weight"), QuantSpec::F16);
    }

    #[test]
    fn arguments_may_be_formats() {
        let recipe = Recipe::from_argument("int4-g32-uniform", "unet").unwrap();
        let spec = "int4-g32-uniform".parse().unwrap();
        assert_eq!(recipe.spec_for("mid_block.resnets.0.conv1.weight"), spec);
        assert_eq!(recipe.spec_for("conv_in.weight"), QuantSpec::F16);
        let auto = Recipe::from_argument(AUTO, "llm").unwrap();
        assert!(auto.keep_packed);
        assert_eq!(auto.spec_for("model.layers.0.mlp.up_proj.weight"), QuantSpec::INT4);
        let llm = Recipe::from_argument("int4-g32", "llm").unwrap();
        assert!(!llm.keep_packed);
        assert_eq!(llm.spec_for("lm_head.weight"), QuantSpec::INT8);
        assert_eq!(llm.spec_for("model.layers.0.mlp.up_proj.weight").group(), Some(32));
        assert!(Recipe::from_argument("q5", "unet").unwrap_err().to_string().contains("recipe"));
        assert!(Recipe::from_argument("gone.toml", "unet").is_err());
    }

    #[test]
    fn errors_name_file_and_line() {
        let parse = |text: &str| Recipe::parse("my.toml", text, "unet").unwrap_err().to_string();
        let head = "name = \"x\"\n[family.unet]\ndefault = \"fp16\"\n";
        let rule = |path: &str, spec: &str| {
            format!("{head}[[family.unet.rule]]\npath = \"{path}\"\nspec = \"{spec}\"\n")
        };
        assert!(Recipe::parse("my.toml", &rule("*", "int4"), "unet").is_ok());
        let e = parse(&rule("*", "int5"));
        assert!(e.starts_with("my.toml:6:") && e.contains("int5"), "{e}");
        let e = parse(&rule("{a", "int4"));
        assert!(e.starts_with("my.toml:5:"), "{e}");
        let e = parse(&format!("{head}colour = 3\n"));
        assert!(e.starts_with("my.toml:4:") && e.contains("colour"), "{e}");
        assert!(parse("name = \"x\"\nname =").starts_with("my.toml:2:"));
        let e = Recipe::parse("my.toml", head, "llm").unwrap_err().to_string();
        assert!(e.contains("`llm`") && e.contains("unet"), "{e}");
    }
}
