//! A loaded model whose UNet gets other weights, again and again: what a sweep over its layers does. The
//! text encoders and the VAE stay.

use std::rc::Rc;

use super::load_options::with_adapters;
use super::text_to_image::TextToImage;
use crate::Result;
use crate::nets::unet::{Unet, UnetContext, UnetTime};
use crate::nn::{LoadReport, Loader, WeightCache};
use crate::quant::Recipe;
use crate::weights::{Part, WeightStore};

/// The UNet's weights in place of those of the options.
pub(super) struct Variant {
    pub recipe: Recipe,
    pub cache: Rc<WeightCache>,
    /// Where they are read; the model's own where there is none.
    pub store: Option<Rc<WeightStore>>,
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
        self.conditions.clear();
        self.variant = Some(Variant { recipe, cache: cache.clone(), store: None });
        Ok(cache)
    }

    /// Gives the UNet other weights for all later runs. What the cache has in the recipe's format is used
    /// as it is there; what differs is read and packed. The report counts what depends on the prompt or the
    /// timestep alone as well.
    pub fn set_unet(&mut self, recipe: Recipe, cache: &Rc<WeightCache>) -> Result<LoadReport> {
        let store = self.model.store(Part::Unet)?;
        self.set(&store, Variant { recipe, cache: cache.clone(), store: None })
    }

    /// As [`TextToImage::set_unet`], with all weights out of another store.
    pub fn set_unet_from(&mut self, store: Rc<WeightStore>, recipe: Recipe) -> Result<LoadReport> {
        let (from, cache) = (store.clone(), Rc::default());
        self.set(&from, Variant { recipe, cache, store: Some(store) })
    }

    fn set(&mut self, store: &WeightStore, variant: Variant) -> Result<LoadReport> {
        let loader = Loader::new(&self.gpu, store, &variant.recipe).sharing(&variant.cache);
        let loader = with_adapters(loader, Part::Unet, &self.options)?;
        UnetTime::load(&loader, &self.config)?;
        UnetContext::load(&loader, &self.config)?;
        self.unet = Unet::load(&loader, &self.config)?;
        let report = loader.report();
        drop(loader);
        self.conditions.clear();
        self.variant = Some(variant);
        Ok(report)
    }
}
