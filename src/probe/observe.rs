//! Sums up on the GPU what the layers of a net are given while it runs: moments, and XᵀX where it is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard};

use crate::Result;
use crate::gpu::{Buffer, Elem, Gpu};
use crate::graph::{Graph, Observe, Var};
use crate::ops::concat::cat;
use crate::ops::embed::tables;
use crate::ops::gram::{Walk, gram, reader};
use crate::ops::moments::moments;
use crate::quant::{GramBlock, LayerStatistics, Statistics};

/// Watches the layers of some weights in every plan whose options name it
/// ([`PlanOptions::observe`](crate::graph::PlanOptions)).
pub struct Observer {
    gpu: Gpu,
    /// Weights by name, and whether XᵀX is wanted.
    wanted: BTreeSet<String>,
    gram: bool,
    layers: Mutex<BTreeMap<String, Sums>>,
}

/// One layer's sums on the GPU.
struct Sums {
    columns: usize,
    moments: Buffer,
    gram: Vec<(usize, usize, Buffer)>,
    /// Every how manieth row XᵀX has seen.
    every: usize,
    /// The weight is a table, too, whose rows are read as they are.
    table: bool,
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Observer of {} weights", self.wanted.len())
    }
}

/// Of so many rows of X in one run, every which counts for XᵀX: neighbouring pixels say much the same, and XᵀX is what
/// calibration takes its time for. Odd, so that rows come from all columns of a picture.
fn every(rows: usize) -> usize {
    /// Rows of a run that are enough.
    const ENOUGH: usize = 128;
    match rows / ENOUGH {
        0 | 1 => 1,
        n => n | 1,
    }
}

/// The widths of the blocks of XᵀX for `taps` of `channels`: all columns where they are at most `most`, else as many whole
/// taps as that holds, or pieces of one.
pub fn blocks(taps: usize, channels: usize, most: usize) -> Vec<usize> {
    let columns = taps * channels;
    let width = match most / channels.max(1) {
        _ if columns <= most => columns,
        // Pieces of a tap end where groups of 128 do.
        0 => (most / 128 * 128).max(128),
        whole => whole * channels,
    };
    let rest = |at: usize| if channels > most { channels - at % channels } else { columns - at };
    let mut out = vec![];
    let mut at = 0;
    while at < columns {
        out.push(width.min(rest(at)));
        at += out[out.len() - 1];
    }
    out
}

/// Adds to XᵀX what a table's rows are read for: an error in each channel counts alike, and as much as in the output layer on
/// average.
fn as_table(gram: &mut [f32], width: usize) {
    let mean = gram.iter().step_by(width + 1).sum::<f32>() / width as f32;
    gram.iter_mut().step_by(width + 1).for_each(|v| *v += mean);
}

impl Observer {
    /// Watches the weights of these names; `gram`: sums up XᵀX too.
    pub fn new(gpu: &Gpu, wanted: impl IntoIterator<Item = String>, gram: bool) -> Observer {
        let wanted = wanted.into_iter().collect();
        Observer { gpu: gpu.clone(), wanted, gram, layers: Mutex::default() }
    }

    /// The widest block of XᵀX: what one binding holds, at most 8,192 columns.
    pub fn widest(gpu: &Gpu) -> usize {
        ((gpu.caps().max_binding_bytes / 4).isqrt() as usize).min(8192)
    }

    fn layers(&self) -> MutexGuard<'_, BTreeMap<String, Sums>> {
        // A panic elsewhere leaves sums that are still true.
        self.layers.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Reads the sums of all layers that have run.
    pub fn statistics(&self) -> Result<Statistics> {
        let floats = |buffer: &Buffer, count: usize| -> Result<Vec<f32>> {
            Ok(bytemuck::pod_collect_to_vec(&self.gpu.read(buffer, 0, 4 * count as u64)?))
        };
        let mut all = Statistics::default();
        for (name, sums) in self.layers().iter() {
            let k = sums.columns;
            let moments = floats(&sums.moments, 3 * k)?;
            let block = |(first, width, buffer): &(usize, usize, Buffer)| -> Result<GramBlock> {
                let mut values = floats(buffer, width * width)?;
                // As if all rows had been seen.
                values.iter_mut().for_each(|v| *v *= sums.every as f32);
                if sums.table {
                    as_table(&mut values, *width);
                }
                Ok(GramBlock { first: *first, width: *width, values })
            };
            let layer = LayerStatistics {
                rows: f64::from(moments[2 * k]),
                sum: moments[..k].to_vec(),
                square: moments[k..2 * k].to_vec(),
                gram: sums.gram.iter().map(block).collect::<Result<_>>()?,
            };
            all.layers.insert(name.clone(), layer);
        }
        Ok(all)
    }

    fn sums(&self, taps: usize, channels: usize, every: usize, table: bool) -> Result<Sums> {
        let zeros = |count: usize| self.gpu.upload("sums", &vec![0; 4 * count]);
        let columns = taps * channels;
        let mut gram = vec![];
        if self.gram {
            let mut first = 0;
            for width in blocks(taps, channels, Observer::widest(&self.gpu)) {
                gram.push((first, width, zeros(width * width)?));
                first += width;
            }
        }
        Ok(Sums { columns, moments: zeros(3 * columns)?, gram, every, table })
    }

    fn record<'g>(&self, graph: &'g Graph, name: &str, sums: &Sums, x: Var<'g>, walk: Walk) {
        let into = graph.external(&sums.moments, [3, sums.columns], Elem::F32);
        graph.output(&format!("{name}.moments"), moments(into, x, walk));
        for (first, width, buffer) in &sums.gram {
            let into = graph.external(buffer, [*width, *width], Elem::F32);
            graph.output(&format!("{name}.gram.{first}"), gram(into, x, walk, *first, sums.every));
        }
    }
}

impl Observe for Observer {
    fn observe(&self, graph: &Graph) -> Result<()> {
        let mut layers = self.layers();
        let ops = graph.ops();
        let tables: BTreeSet<&str> = ops.iter().flat_map(|(op, _)| tables(op.as_ref())).collect();
        for (op, inputs) in &ops {
            let Some((weight, walk, two)) = reader(op.as_ref()) else { continue };
            // Parts of a joined tensor are named by their rows; they read the same.
            let name = weight.name().split('[').next().unwrap_or_default();
            if !self.wanted.contains(name) || weight.columns().is_some() {
                continue;
            }
            let x = if two { cat(inputs[0], inputs[1]) } else { inputs[0] };
            if !layers.contains_key(name) {
                let rows = walk.size(x).map_or(0, |[rows, _]| rows);
                let table = tables.contains(weight.name());
                let sums = self.sums(weight.taps(), weight.channels(), every(rows), table)?;
                layers.insert(name.to_string(), sums);
            }
            if let Some(sums) = layers.get(name) {
                self.record(graph, name, sums, x, walk);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pictures_are_sampled() {
        assert_eq!([32, 128, 255, 512, 8192].map(every), [1, 1, 1, 5, 65]);
    }

    #[test]
    fn blocks_hold_whole_taps() {
        assert_eq!(blocks(9, 64, 8192), [576]);
        assert_eq!(blocks(9, 1280, 5792), [5120, 5120, 1280]);
        assert_eq!(blocks(1, 11_008, 5792), [5760, 5248]);
        assert_eq!(blocks(9, 640, 5792), [5760]);
        let pieces = blocks(9, 6000, 5792);
        assert_eq!((pieces.len(), pieces[0], pieces[1]), (18, 5760, 240));
    }
}
