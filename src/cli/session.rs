//! A language model on a device, both made anew when the device is lost in the middle of an answer.

use std::path::Path;
use std::time::Instant;

use super::chat::How;
use super::common::{GpuArgs, ModelArgs, Ui};
use super::language::{LoadedNet, load_net};
use super::recover::{Shown, once_more};
use crate::Result;
use crate::gpu::Gpu;
use crate::graph::PlanOptions;
use crate::text::chat::{Answer, Chat, Turns};
use crate::text::decoder::Decoder;
use crate::text::generation_config::Overrides;

/// Context taken without `-c`, at most: the cache of a long one costs memory that few conversations use.
const DEFAULT_CONTEXT: usize = 4096;

/// What a session is opened with, and opened with again.
pub struct Setup<'a> {
    pub gpu: &'a GpuArgs,
    pub folder: &'a Path,
    pub model: &'a ModelArgs,
    pub how: &'a How,
    pub overrides: Overrides,
}

/// A loaded model with what it took.
pub struct Loaded {
    pub chat: Chat,
    pub seconds: f64,
    pub weights: String,
    pub bits_per_weight: f64,
    pub resident_bytes: u64,
}

/// A conversation that survives the loss of its device.
pub struct Session<'a> {
    pub gpu: Gpu,
    pub loaded: Loaded,
    setup: Setup<'a>,
    ui: &'a Ui,
}

impl<'a> Session<'a> {
    /// Loads the model, on `gpu` if it is given, else on the adapter that the setup names.
    pub fn open(setup: Setup<'a>, gpu: Option<Gpu>, ui: &'a Ui) -> Result<Session<'a>> {
        let mut given = gpu;
        let (gpu, loaded) = once_more(ui, |_| {
            let gpu = given.take().map_or_else(|| setup.gpu.open(ui), Ok)?;
            let loaded = load(&gpu, &setup, ui)?;
            Ok((gpu, loaded))
        })?;
        Ok(Session { gpu, loaded, setup, ui })
    }
    pub fn chat(&self) -> &Chat {
        &self.loaded.chat
    }
    pub fn chat_mut(&mut self) -> &mut Chat {
        &mut self.loaded.chat
    }

    /// As [`Chat::say`]. If the device is lost, the model is loaded on a new one and the answer begun again;
    /// what `on_text` has had already it does not get twice.
    pub fn say(&mut self, user: &str, on_text: &mut dyn FnMut(&str)) -> Result<Answer> {
        let before = self.chat().messages.clone();
        let mut shown = Shown::default();
        once_more(self.ui, |again| {
            if again {
                self.reload()?;
                self.chat_mut().messages = before.clone();
                shown.again();
            }
            self.loaded.chat.say(user, &mut |piece| {
                let new = shown.new_part(piece);
                if !new.is_empty() {
                    on_text(&new);
                }
            })
        })
    }

    fn reload(&mut self) -> Result<()> {
        // The memory of a lost device is given back before the new one needs as much.
        self.gpu.lose("it is given up");
        let overrides = self.chat().overrides.clone();
        self.gpu = self.setup.gpu.open(self.ui)?;
        self.loaded = load(&self.gpu, &self.setup, self.ui)?;
        self.chat_mut().overrides = overrides;
        Ok(())
    }
}

/// Loads a language model, with progress.
fn load(gpu: &Gpu, setup: &Setup<'_>, ui: &Ui) -> Result<Loaded> {
    let start = Instant::now();
    let Setup { folder, model, how, overrides, .. } = setup;
    let act = model.act(gpu)?;
    let kv = how.kv.resolve(act)?;
    // Before the weights: a missing template is known at once.
    let turns = Turns::choose(&how.chat_template, folder)?;
    let LoadedNet { net, report, weights, .. } =
        load_net(gpu, folder, model.weights_for(folder), ui)?;
    let longest = net.config().max_position_embeddings();
    let context = how.context.unwrap_or(longest.min(DEFAULT_CONTEXT));
    let options = PlanOptions { kernels: model.kernels(gpu), ..Default::default() };
    let decoder = Decoder::with_kv(gpu, net, (context, kv), act, options)?;
    let chat = Chat::new(decoder, folder, turns, overrides.clone())?;
    Ok(Loaded {
        chat,
        seconds: start.elapsed().as_secs_f64(),
        weights,
        bits_per_weight: report.bits_per_weight(),
        resident_bytes: report.resident_bytes(),
    })
}
