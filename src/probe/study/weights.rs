//! Weights to be judged, of UNets and of language models alike.

use std::path::Path;
use std::rc::Rc;

use super::imitate::Change;
use crate::gpu::interrupted;
use crate::quant::{QuantSpec, Recipe, Statistics};
use crate::weights::{
    Form, Method, Quantize, QuantizedReport, Sensitivities, WeightStore, budget_recipe,
    quantize_with,
};
use crate::{Error, Result};

/// llama.cpp's Q4_0 on every matrix, and HQQ in groups of 64 with the islands of `int4`.
pub(super) const Q4_0: &str = include_str!("../../../examples/recipes/q4_0.toml");
pub(super) const HQQ: &str = include_str!("../../../examples/recipes/hqq-g64.toml");

/// Where weights come from.
pub(super) enum Weights<'a> {
    /// The model's own, as a recipe says.
    Recipe(Recipe),
    /// A file of this program's form.
    Packed(Rc<WeightStore>),
    /// The weights that `recipe` packs, imitated.
    Change(Recipe, Change<'a>),
}

impl Weights<'_> {
    /// What a user may write for weights of this family (`unet`, `llm`).
    pub fn named(argument: &str, family: &str) -> Result<Weights<'static>> {
        Ok(Weights::Recipe(Recipe::from_argument(argument, family)?))
    }

    /// Packed by a method by way of `file`, as `quantize` makes it and as it would be loaded; and what it lost.
    pub fn packed(
        store: &WeightStore,
        (recipe, method): (&Recipe, Method),
        statistics: &Statistics,
        file: &Path,
    ) -> Result<(Weights<'static>, QuantizedReport)> {
        let statistics = Some((statistics, "study"));
        let how = Quantize { recipe, method, statistics, form: Form::Own };
        let report = quantize_with(store, &how, file, |_, _, _| interrupted())?;
        let read = std::fs::read(file).and_then(|bytes| std::fs::remove_file(file).map(|()| bytes));
        let bytes = read.map_err(|e| Error::io(file, e))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        Ok((Weights::Packed(Rc::new(WeightStore::from_bytes(&name, bytes)?)), report))
    }
}

/// The recipe within a budget of bits; `None` for a net that keeps too much in 16 bits for it.
pub(super) fn within(
    store: &WeightStore,
    (recipe, bits): (&Recipe, f64),
    statistics: Option<&Statistics>,
) -> Result<Option<Recipe>> {
    match budget_recipe(store, recipe, bits, &Sensitivities::default(), statistics) {
        Err(Error::Usage(_)) => Ok(None),
        other => other.map(Some),
    }
}

/// fp16 but for the matrices that `is` names, which are int4; and how many weights those have.
pub(super) fn only(
    store: &WeightStore,
    family: &str,
    is: impl Fn(&str) -> bool,
) -> Result<(Recipe, u64)> {
    let mut recipe = Recipe::builtin("fp16", family)?;
    let mut weights = 0;
    for name in store.names() {
        let shape = store.shape(name)?;
        if shape.len() >= 2 && name.ends_with(".weight") && is(name) {
            recipe.exact.insert(name.to_string(), QuantSpec::INT4);
            weights += shape.iter().product::<usize>() as u64;
        }
    }
    Ok((recipe, weights))
}
