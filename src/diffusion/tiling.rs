//! Pictures through an autoencoder in overlapping tiles, so that the memory of activations does not grow
//! with the picture. Tiles, their overlap and its blending are those of diffusers' AutoencoderKL
//! (`tiled_decode`, `tiled_encode`); AutoencoderTiny is treated alike.

use std::collections::{BTreeMap, HashMap};

use crate::gpu::{Elem, Gpu, mib};
use crate::graph::{Arena, Footprint, Graph, Plan, PlanOptions, Var};
use crate::nets::taesd::{TaesdDecoder, TaesdEncoder};
use crate::nets::vae::{VaeDecoder, VaeEncoder};
use crate::{Error, Result};

/// A half of an autoencoder.
pub trait Half {
    /// Pictures or latents `[B, H, W, C]` → `[B, H', W', C']`.
    fn record<'g>(&self, x: Var<'g>) -> Var<'g>;
}

macro_rules! halves {
    ($($net:ty),*) => { $(impl Half for $net {
        fn record<'g>(&self, x: Var<'g>) -> Var<'g> {
            self.forward(x)
        }
    })* };
}
halves!(VaeDecoder, VaeEncoder, TaesdDecoder, TaesdEncoder);

/// Told of each tile that is finished: how many are, and how many there will be.
pub type OnTile<'a> = dyn FnMut(usize, usize) + 'a;

/// Sides of tiles of latents to choose from. Large ones come first: the norms of a tile see its own
/// pixels alone, so that its colours differ from the whole picture's the more the smaller it is.
const SIDES: [usize; 9] = [256, 192, 128, 96, 64, 48, 32, 24, 16];

/// Values of a picture `[B, H, W, C]`, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Pixels {
    pub shape: [usize; 4],
    pub values: Vec<f32>,
}

/// A half of an autoencoder that runs on pictures of any size.
pub struct Coder<'a> {
    gpu: &'a Gpu,
    net: &'a dyn Half,
    /// Pixels along a side for one of the latent.
    scale: usize,
    decodes: bool,
    /// How activations are stored. f32 unless it is set otherwise: the range of AutoencoderKL exceeds f16 in
    /// real models.
    pub act: Elem,
    pub plan: PlanOptions,
}

impl<'a> Coder<'a> {
    /// Latents to pictures `scale` times as high and wide.
    pub fn decoder(gpu: &'a Gpu, scale: usize, net: &'a dyn Half) -> Coder<'a> {
        let (decodes, act, plan) = (true, Elem::F32, PlanOptions::default());
        Coder { gpu, net, scale, decodes, act, plan }
    }
    /// Pictures to latents (or their moments), `scale` times less high and wide.
    pub fn encoder(gpu: &'a Gpu, scale: usize, net: &'a dyn Half) -> Coder<'a> {
        Coder { decodes: false, ..Coder::decoder(gpu, scale, net) }
    }

    fn record<'g>(&self, graph: &'g Graph, shape: [usize; 4]) -> Var<'g> {
        let y = self.net.record(graph.input("x", shape, self.act));
        graph.output("y", y);
        y
    }

    /// Memory that a picture or latent of this shape takes in one piece, without taking it.
    ///
    /// # Errors
    /// A shape that the net cannot take.
    pub fn footprint(&self, shape: [usize; 4]) -> Result<Footprint> {
        let graph = Graph::new(self.act);
        let read_back = self.record(&graph, shape).shape().len() as u64 * self.act.bytes();
        Ok(Footprint { read_back, ..Plan::footprint(self.gpu, &graph, &self.plan)? })
    }

    /// As [`Coder::footprint`], in tiles of `side` latents: tiles at the edges have shapes and so plans of their
    /// own, which share the activations.
    pub fn tiled_footprint(&self, shape: [usize; 4], side: usize) -> Result<Footprint> {
        let [b, h, w, c] = shape;
        let input = self.input_side(side);
        if input >= h.max(w) {
            return self.footprint(shape);
        }
        // How many tiles begin anew along a side, by the length that is left for them.
        let lengths = |whole: usize| {
            let mut counts: BTreeMap<usize, u64> = BTreeMap::new();
            for at in (0..whole).step_by((input / 4 * 3).max(1)) {
                *counts.entry(input.min(whole - at)).or_default() += 1;
            }
            counts
        };
        let (rows, columns) = (lengths(h), lengths(w));
        let mut all = Footprint::default();
        for (height, n) in &rows {
            for (width, m) in &columns {
                let tile = self.footprint([b, *height, *width, c])?;
                all.inputs += tile.inputs;
                all.params += tile.params;
                all.flops += tile.flops * n * m;
                all.activations = all.activations.max(tile.activations);
                all.outputs = all.outputs.max(tile.outputs);
                all.largest = all.largest.max(tile.largest);
                all.read_back = all.read_back.max(tile.read_back);
            }
        }
        Ok(all)
    }

    /// The side, in pixels of the latent, of the largest tiles with which `shape` can be done in `budget`
    /// bytes; None if it can be done in one piece. No buffer exceeds what the device can bind.
    ///
    /// # Errors
    /// `OutOfMemory`, with both numbers, if not even the smallest tiles fit.
    pub fn tiles_for(&self, shape: [usize; 4], budget: u64) -> Result<Option<usize>> {
        let [_, h, w, _] = shape;
        let caps = self.gpu.caps();
        let binding = caps.max_binding_bytes.min(caps.max_buffer_bytes);
        let fits = |f: &Footprint| f.bytes() <= budget && f.largest <= binding;
        // A refusal of the whole size (too many iterations in a loop, say) is no reason not to tile.
        if self.footprint(shape).is_ok_and(|whole| fits(&whole)) {
            return Ok(None);
        }
        let mut least = None;
        for side in SIDES {
            if self.input_side(side) >= h.max(w) {
                continue;
            }
            let footprint = self.tiled_footprint(shape, side)?;
            if fits(&footprint) {
                return Ok(Some(side));
            }
            least = Some(footprint);
        }
        let least = least.map_or_else(|| self.footprint(shape), Ok)?;
        Err(Error::OutOfMemory(format!(
            "a picture {shape:?} takes {} for activations even in the smallest tiles (largest buffer {}); there \
             are {} and buffers of up to {}; raise --vram-budget or take a smaller batch",
            mib(least.bytes()),
            mib(least.largest),
            mib(budget),
            mib(binding)
        )))
    }

    /// The side of tiles for a picture that is to be tiled: of the largest that take at most `want` bytes, else
    /// of the largest that the device can bind.
    ///
    /// # Errors
    /// `OutOfMemory` where the device cannot bind even the smallest.
    pub fn tile_side(&self, shape: [usize; 4], want: u64) -> Result<usize> {
        let fits = self.tiles_for(shape, want).or_else(|_| self.tiles_for(shape, u64::MAX))?;
        // Where the whole fits, tiles were asked for; these are diffusers' for models of 512 pixels.
        Ok(fits.unwrap_or(64))
    }

    /// Side of a tile where it goes in, and where it comes out, for a side in pixels of the latent.
    fn input_side(&self, side: usize) -> usize {
        if self.decodes { side } else { side * self.scale }
    }
    fn output_side(&self, side: usize) -> usize {
        if self.decodes { side * self.scale } else { side }
    }

    /// Runs the net in tiles of `side` latents, or in one piece where that is None or the picture is no
    /// larger than a tile. Neighbours overlap by a quarter of a tile, over which they are blended linearly;
    /// the last ones of a row and column end where the picture does. Each shape of tile is planned once; the
    /// plans share their memory.
    ///
    /// # Errors
    /// `Usage` for a side that is no multiple of four, and for pictures that are no multiple of the scale.
    pub fn run(&self, x: &Pixels, side: Option<usize>, on_tile: &mut OnTile<'_>) -> Result<Pixels> {
        let [b, h, w, c] = x.shape;
        let unit = self.input_side(1);
        if x.values.len() != b * h * w * c || !h.is_multiple_of(unit) || !w.is_multiple_of(unit) {
            return Err(Error::Usage(format!(
                "a picture {:?} of {} values: height and width have to be multiples of {unit}",
                x.shape,
                x.values.len()
            )));
        }
        let mut plans = Plans { coder: self, arena: Arena::default(), plans: HashMap::new() };
        let Some(side) = side.filter(|side| self.input_side(*side) < h.max(w)) else {
            let y = plans.run(x.clone())?;
            on_tile(1, 1);
            return Ok(y);
        };
        if side == 0 || !side.is_multiple_of(4) {
            let why = format!("tiles of {side} latents: the side has to be a multiple of four");
            return Err(Error::Usage(why));
        }
        self.run_tiles(x, side, &mut plans, on_tile)
    }

    fn run_tiles(
        &self,
        x: &Pixels,
        side: usize,
        plans: &mut Plans<'_>,
        on_tile: &mut OnTile<'_>,
    ) -> Result<Pixels> {
        let [_, h, w, _] = x.shape;
        let (input, output) = (self.input_side(side), self.output_side(side));
        let (step, overlap) = (input / 4 * 3, output / 4);
        let (rows, columns) = (h.div_ceil(step), w.div_ceil(step));
        let mut whole: Option<Pixels> = None;
        let mut above: Vec<Pixels> = Vec::new();
        for row in 0..rows {
            let mut tiles: Vec<Pixels> = Vec::with_capacity(columns);
            for column in 0..columns {
                let part = x.part([row * step, column * step], [input, input]);
                let mut tile = plans.run(part)?;
                // The tile above and the one on the left are blended themselves by now.
                if let Some(above) = above.get(column) {
                    tile.blend(above, overlap, Axis::Rows);
                }
                if let Some(left) = tiles.last() {
                    tile.blend(left, overlap, Axis::Columns);
                }
                let whole = whole.get_or_insert_with(|| {
                    let [b, _, _, c] = tile.shape;
                    let size = |n: usize| n / self.input_side(1) * self.output_side(1);
                    Pixels::zeros([b, size(h), size(w), c])
                });
                let limit = output - overlap;
                whole.paste(&tile.part([0, 0], [limit, limit]), [row * limit, column * limit]);
                tiles.push(tile);
                on_tile(row * columns + column + 1, rows * columns);
            }
            above = tiles;
        }
        whole.ok_or_else(|| Error::Usage(format!("a picture {:?} has no pixels", x.shape)))
    }
}

/// A plan for each shape of tile.
struct Plans<'a> {
    coder: &'a Coder<'a>,
    arena: Arena,
    plans: HashMap<[usize; 4], (Plan, [usize; 4])>,
}

impl Plans<'_> {
    fn run(&mut self, x: Pixels) -> Result<Pixels> {
        if !self.plans.contains_key(&x.shape) {
            let graph = Graph::new(self.coder.act);
            self.coder.record(&graph, x.shape);
            let arena = Some(self.arena.clone());
            let options = PlanOptions { arena, ..self.coder.plan.clone() };
            let plan = Plan::new(self.coder.gpu, &graph, &options)?;
            let shape = plan.shape("y")?;
            let &[b, h, w, c] = shape.dims() else {
                return Err(Error::Runtime(format!("the net gives {shape:?}, no picture")));
            };
            self.plans.insert(x.shape, (plan, [b, h, w, c]));
        }
        let (plan, shape) = &self.plans[&x.shape];
        plan.set("x", &x.values)?;
        plan.run()?;
        Ok(Pixels { shape: *shape, values: plan.read("y")? })
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Axis {
    Rows,
    Columns,
}

impl Pixels {
    fn zeros(shape: [usize; 4]) -> Pixels {
        Pixels { shape, values: vec![0.0; shape.iter().product()] }
    }

    /// Where the channels of a pixel begin.
    fn at(&self, item: usize, y: usize, x: usize) -> usize {
        let [_, h, w, c] = self.shape;
        ((item * h + y) * w + x) * c
    }

    /// At most `size` rows and columns from `from` on.
    fn part(&self, from: [usize; 2], size: [usize; 2]) -> Pixels {
        let [b, h, w, c] = self.shape;
        let (rows, columns) = (size[0].min(h - from[0]), size[1].min(w - from[1]));
        let mut values = Vec::with_capacity(b * rows * columns * c);
        for item in 0..b {
            for y in from[0]..from[0] + rows {
                values.extend_from_slice(&self.values[self.at(item, y, from[1])..][..columns * c]);
            }
        }
        Pixels { shape: [b, rows, columns, c], values }
    }

    /// Puts `part` at `to`.
    fn paste(&mut self, part: &Pixels, to: [usize; 2]) {
        let [b, rows, columns, c] = part.shape;
        for item in 0..b {
            for y in 0..rows {
                let (from, at) = (part.at(item, y, 0), self.at(item, to[0] + y, to[1]));
                self.values[at..][..columns * c]
                    .copy_from_slice(&part.values[from..][..columns * c]);
            }
        }
    }

    /// The first `extent` rows (or columns) go over from the last of `before` to this tile's own: the one of
    /// number i is `before · (1 − i/extent) + own · i/extent`.
    fn blend(&mut self, before: &Pixels, extent: usize, axis: Axis) {
        let ([b, h, w, c], [_, bh, bw, _]) = (self.shape, before.shape);
        let (own, other) = if axis == Axis::Rows { (h, bh) } else { (w, bw) };
        let extent = extent.min(own).min(other);
        // A last tile is as short as its neighbours across the other axis.
        let (rows, columns) =
            if axis == Axis::Rows { (extent, w.min(bw)) } else { (h.min(bh), extent) };
        for item in 0..b {
            for y in 0..rows {
                for x in 0..columns {
                    let i = if axis == Axis::Rows { y } else { x };
                    let share = i as f64 / extent as f64;
                    let from = match axis {
                        Axis::Rows => before.at(item, bh - extent + y, x),
                        Axis::Columns => before.at(item, y, bw - extent + x),
                    };
                    let at = self.at(item, y, x);
                    for k in 0..c {
                        self.values[at + k] = before.values[from + k] * (1.0 - share) as f32
                            + self.values[at + k] * share as f32;
                    }
                }
            }
        }
    }
}
