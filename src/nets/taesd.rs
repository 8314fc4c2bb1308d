//! AutoencoderTiny (TAESD, Bohan 2023): a small stand-in for both halves of AutoencoderKL, fast enough to
//! show the picture between steps. Names as in diffusers' `autoencoder_tiny.py`; the original files
//! (`taesd_decoder.safetensors` and the like) number the same layers without a prefix.

use std::path::Path;

use serde_json::Value;

use super::config::{self, Fields};
use crate::Result;
use crate::graph::Var;
use crate::nn::{Bias, Conv2d, Loader};
use crate::ops::conv2d::Conv;
use crate::ops::pointwise::{Act, activate, soft_cap};

/// `config.json` of an AutoencoderTiny. Absent fields have diffusers' defaults, which are those of the
/// original files.
#[derive(Clone, Debug)]
pub struct TaesdConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub latent_channels: usize,
    /// A latent is divided by this before it is decoded; the caller does it. 1 for every published file:
    /// they take what the sampler has.
    pub scaling_factor: f64,
    /// Width of all layers of the encoder and of the decoder.
    widths: [usize; 2],
    /// Blocks between two changes of size.
    encoder_blocks: Vec<usize>,
    decoder_blocks: Vec<usize>,
    act: Act,
}

impl Default for TaesdConfig {
    fn default() -> TaesdConfig {
        TaesdConfig {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            scaling_factor: 1.0,
            widths: [64, 64],
            encoder_blocks: vec![1, 3, 3, 3],
            decoder_blocks: vec![3, 3, 3, 1],
            act: Act::Relu,
        }
    }
}

impl TaesdConfig {
    /// Reads `config.json` of an autoencoder's folder (or a file of that form).
    ///
    /// # Errors
    /// `Model` for widths that differ, activations and ways of scaling that are not supported.
    pub fn read(path: impl AsRef<Path>) -> Result<TaesdConfig> {
        let (source, fields) = config::fields(path.as_ref())?;
        TaesdConfig::from_value(&fields, &source)
    }
    /// As [`TaesdConfig::read`], from what the file holds; `source` is its name in messages.
    pub fn from_value(json: &Value, source: &Path) -> Result<TaesdConfig> {
        let fields = Fields { json, source };
        let rules = [
            ("_class_name", "\"AutoencoderTiny\""),
            ("upsample_fn", "\"nearest\""),
            ("upsampling_scaling_factor", "2"),
            ("shift_factor", "0.0|0|null"),
        ];
        fields.check("the tiny autoencoder", &rules)?;
        let d = TaesdConfig::default();
        let (encoder, encoder_blocks) = stages(fields, "encoder", d.widths[0], &d.encoder_blocks)?;
        let (decoder, decoder_blocks) = stages(fields, "decoder", d.widths[1], &d.decoder_blocks)?;
        Ok(TaesdConfig {
            in_channels: fields.size_or("in_channels", d.in_channels)?,
            out_channels: fields.size_or("out_channels", d.out_channels)?,
            latent_channels: fields.size_or("latent_channels", d.latent_channels)?,
            scaling_factor: fields.number_or("scaling_factor", d.scaling_factor)?,
            widths: [encoder, decoder],
            encoder_blocks,
            decoder_blocks,
            act: match fields.text("act_fn")? {
                None | Some("relu") => Act::Relu,
                Some(_) => fields.activation("act_fn", Act::Relu)?,
            },
        })
    }
    /// Pixels of the picture for one of the latent, along each side.
    pub fn scale(&self) -> usize {
        1 << (self.decoder_blocks.len() - 1)
    }
}

/// Width and numbers of blocks of a half.
fn stages(
    fields: Fields<'_>,
    half: &str,
    width: usize,
    blocks: &[usize],
) -> Result<(usize, Vec<usize>)> {
    let sizes = |name: &str| -> Result<Option<Vec<usize>>> {
        let Some(numbers) = fields.numbers(name)? else { return Ok(None) };
        let whole = numbers.iter().all(|n| n.fract() == 0.0 && (0.0..=4096.0).contains(n));
        match whole && (1..=16).contains(&numbers.len()) {
            true => Ok(Some(numbers.iter().map(|n| *n as usize).collect())),
            false => {
                Err(fields.wrong(format!("`{name}` is {numbers:?}, needed are whole numbers")))
            }
        }
    };
    let (widths, counts) = (format!("{half}_block_out_channels"), format!("num_{half}_blocks"));
    let blocks = sizes(&counts)?.unwrap_or_else(|| blocks.to_vec());
    let widths_given = sizes(&widths)?.unwrap_or_else(|| vec![width; blocks.len()]);
    if widths_given.len() != blocks.len() {
        return Err(fields.wrong(format!("`{widths}` is not as long as `{counts}`")));
    }
    // A block keeps its width and the convolution behind it does as well.
    match widths_given.iter().all(|w| *w == widths_given[0] && *w > 0) {
        true => Ok((widths_given[0], blocks)),
        false => {
            Err(fields.wrong(format!("`{widths}` is {widths_given:?}; supported is one width")))
        }
    }
}

/// AutoencoderTinyBlock: three convolutions beside the stream, and ReLU on the sum.
struct Block {
    convs: [Conv2d; 3],
    act: Act,
    path: String,
}

impl Block {
    fn load(ld: &Loader<'_>, width: usize, act: Act) -> Result<Block> {
        let conv = |name| ld.conv(name, width, width, 3, Conv::default());
        Ok(Block {
            convs: [conv("conv.0")?, conv("conv.2")?, conv("conv.4")?],
            act,
            path: ld.path().to_string(),
        })
    }

    fn forward<'g>(&self, x: Var<'g>) -> Var<'g> {
        let [first, second, third] = &self.convs;
        let h = activate(first.forward(x), self.act);
        let h = activate(second.forward(h), self.act);
        activate(x + third.forward(h), Act::Relu).tap(self.path.as_str())
    }
}

enum Layer {
    Conv(Conv2d),
    Activation(Act),
    Block(Block),
}

fn run<'g>(layers: &[Layer], x: Var<'g>) -> Var<'g> {
    layers.iter().fold(x, |x, layer| match layer {
        Layer::Conv(conv) => conv.forward(x),
        Layer::Activation(act) => activate(x, *act),
        Layer::Block(block) => block.forward(x),
    })
}

/// Where the layers of a half lie in a file and the number of the first: `half` is `encoder` or `decoder`,
/// `skipped` the layers without weights with which the original files begin.
fn find<'a>(ld: &Loader<'a>, half: &str, skipped: usize) -> (Loader<'a>, usize) {
    let diffusers = (ld.pp(half).pp("layers"), 0);
    let original = [ld.pp(format!("taesd_{half}")), ld.pp(half), ld.clone()];
    let original = original.map(|place| (place, skipped));
    let mut places = [diffusers.clone()].into_iter().chain(original);
    // What no file has is reported under diffusers' names.
    let found = places.find(|(place, first)| place.contains(&format!("{first}.weight")));
    found.unwrap_or(diffusers)
}

/// The decoder on the GPU.
pub struct TaesdDecoder {
    layers: Vec<Layer>,
}

impl TaesdDecoder {
    /// Loads the decoder's tensors; `ld` is the root of the checkpoint.
    pub fn load(ld: &Loader<'_>, c: &TaesdConfig) -> Result<TaesdDecoder> {
        let (width, same) = (c.widths[1], Conv::default());
        // The original file counts its clamp as a layer.
        let (ld, first) = find(ld, "decoder", 1);
        let conv_in = ld.conv(&first.to_string(), c.latent_channels, width, 3, same)?;
        let mut layers = vec![Layer::Conv(conv_in), Layer::Activation(c.act)];
        // A doubling of the size counts as a layer in both files; here it is the convolution's.
        let mut doublings = 0;
        for (stage, blocks) in c.decoder_blocks.iter().enumerate() {
            for _ in 0..*blocks {
                let at = ld.pp(first + layers.len() + doublings);
                layers.push(Layer::Block(Block::load(&at, width, c.act)?));
            }
            let last = stage + 1 == c.decoder_blocks.len();
            doublings += usize::from(!last);
            let (cout, conv) = match last {
                true => (c.out_channels, same),
                false => (width, Conv { upsample: true, ..same }),
            };
            let name = (first + layers.len() + doublings).to_string();
            layers.push(Layer::Conv(ld.conv_with(&name, width, cout, 3, conv, last.into())?));
        }
        Ok(TaesdDecoder { layers })
    }

    /// Latents `[B, h, w, 4]` as the sampler has them → picture `[B, H, W, 3]` in about −1..1.
    #[track_caller]
    pub fn forward<'g>(&self, z: Var<'g>) -> Var<'g> {
        // 3·tanh(z/3) keeps what an unfinished latent may hold within the range of training.
        let x = run(&self.layers, soft_cap(z, 3.0));
        let minus = x.graph().literal([1], vec![-1.0]);
        2.0 * x + minus
    }
}

/// The encoder on the GPU.
pub struct TaesdEncoder {
    layers: Vec<Layer>,
}

impl TaesdEncoder {
    /// Loads the encoder's tensors; `ld` is the root of the checkpoint.
    pub fn load(ld: &Loader<'_>, c: &TaesdConfig) -> Result<TaesdEncoder> {
        let (width, same) = (c.widths[0], Conv::default());
        let (ld, first) = find(ld, "encoder", 0);
        let mut layers = Vec::new();
        for (stage, blocks) in c.encoder_blocks.iter().enumerate() {
            let name = (first + layers.len()).to_string();
            let (cin, conv) = match stage {
                0 => (c.in_channels, same),
                _ => (width, Conv { stride: 2, ..same }),
            };
            let bias = Bias::from(stage == 0);
            layers.push(Layer::Conv(ld.conv_with(&name, cin, width, 3, conv, bias)?));
            for _ in 0..*blocks {
                let at = ld.pp(first + layers.len());
                layers.push(Layer::Block(Block::load(&at, width, c.act)?));
            }
        }
        let name = (first + layers.len()).to_string();
        layers.push(Layer::Conv(ld.conv(&name, width, c.latent_channels, 3, same)?));
        Ok(TaesdEncoder { layers })
    }

    /// Picture `[B, H, W, 3]` in −1..1 → latents `[B, h, w, 4]` as the sampler has them.
    #[track_caller]
    pub fn forward<'g>(&self, image: Var<'g>) -> Var<'g> {
        let half = image.graph().literal([1], vec![0.5]);
        run(&self.layers, 0.5 * image + half)
    }
}
