//! A loaded model whose UNet gets other weights, again and again: what a sweep over its layers does. The
//! text encoders and the VAE stay.

use std::rc::Rc;

use super::text_to_image::{TextToImage, part, with_adapters};
use crate::Result;
use crate::nets::unet::{Unet, UnetContext, UnetTime};
use crate::nn::{LoadReport, Loader, WeightCache};
use crate::quant::Recipe;
use crate::weights::{Part, WeightStore};

/// The UNet's weights in place of those of the options.
pub(super) struct Variant {
    recipe: Recipe,
    cache: Rc<WeightCache>,
}

impl TextToImage {
    /// Reads the whole UNet, what depends on the prompt or the timestep alone with it, into a cache as
    /// `recipe` says, and paints with that from now on.
    pub fn cache_unet(&mut self, recipe: Recipe) -> Result<Rc<WeightCache>> {
        let cache = Rc::new(WeightCache::default());
        let store = self.model.store(Part::Unet)?;
        let loader = Loader::new(&self.gpu, &store, &recipe).filling(&cache);
        let loader = with_adapters(loader, Part::Unet, &self.options)?;
        UnetTime::load(&loader, &self.config)?;
        UnetContext::load(&loader, &self.config)?;
        self.unet = Unet::load(&loader, &self.config)?;
        self.variant = Some(Variant { recipe, cache: cache.clone() });
        Ok(cache)
    }

    /// Gives the UNet other weights for all later runs. What the cache has in the recipe's format is used
    /// as it is there; what differs is read and packed. The report counts what depends on the prompt or the
    /// timestep alone as well.
    pub fn set_unet(&mut self, recipe: Recipe, cache: &Rc<WeightCache>) -> Result<LoadReport> {
        let store = self.model.store(Part::Unet)?;
        let loader = Loader::new(&self.gpu, &store, &recipe).sharing(cache);
        let loader = with_adapters(loader, Part::Unet, &self.options)?;
        UnetTime::load(&loader, &self.config)?;
        UnetContext::load(&loader, &self.config)?;
        self.unet = Unet::load(&loader, &self.config)?;
        let report = loader.report();
        drop(loader);
        self.variant = Some(Variant { recipe, cache: cache.clone() });
        Ok(report)
    }

    /// The checkpoint of the UNet and its recipe.
    pub(super) fn unet_weights(&self) -> Result<(WeightStore, Recipe)> {
        match &self.variant {
            Some(variant) => Ok((self.model.store(Part::Unet)?, variant.recipe.clone())),
            None => part(&self.model, Part::Unet, &self.options.weights),
        }
    }

    /// The loader with the weights that are there already.
    pub(super) fn sharing<'a>(&'a self, loader: Loader<'a>) -> Loader<'a> {
        match &self.variant {
            Some(variant) => loader.sharing(&variant.cache),
            None => loader,
        }
    }
}
