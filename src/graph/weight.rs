//! Weights as they lie on the GPU: packed matrices, cut into windows that fit one storage binding, and
//! f32 vectors. Every kernel that reads a weight binds one window as its group 1 (see
//! shaders/parts/weight_*.wgsl).

mod beside;

use std::borrow::Cow;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::stream::Held;
use crate::gpu::{Bind, Buffer, Gpu, Source, Spec};
use crate::quant::{Format, Layout, Offset, Packed, Words};
use crate::source;
use crate::{Error, Result};

/// Where bytes would begin in memory that others would share.
#[derive(Clone, Debug)]
struct Place {
    memory: Arc<()>,
    offset: u64,
}

/// Where the bytes of a weight are.
#[derive(Clone, Debug)]
enum Memory {
    Gpu(Bind),
    /// On the host; a plan brings them to the GPU when it runs.
    Host(Held),
    /// Nowhere: so many bytes that can be planned with, never run with.
    Outline(u64, Option<Place>),
}

impl Memory {
    fn bytes(&self) -> u64 {
        match self {
            Memory::Gpu(bind) => bind.bytes,
            Memory::Host(held) => held.len() as u64 * 4,
            Memory::Outline(bytes, _) => *bytes,
        }
    }
}

/// Rows `row0 .. row0 + rows` of a weight, in buffers of their own.
#[derive(Clone, Debug)]
pub struct Chunk {
    pub row0: usize,
    pub rows: usize,
    words: Memory,
    scales: Option<Memory>,
    info: Buffer,
}

/// Where a weight is to stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residence {
    /// On the GPU, where every plan finds it.
    #[default]
    Gpu,
    /// On the host; plans stream it ([`PlanOptions::stream_pool`](super::PlanOptions)).
    Host,
    /// Nowhere: it has a size and can be measured ([`Plan::measure`](super::Plan::measure)), not run.
    Outline,
}

#[derive(Debug)]
struct Inner {
    name: String,
    format: Format,
    layout: Layout,
    columns: Option<Buffer>,
    chunks: Vec<Chunk>,
    /// If it is several: first row of each, one past the last, and what makes the levels of each cubic.
    several: Option<Several>,
}

/// Rows at which each of several weights in one begins, and at which the last one ends; what makes the levels of each cubic.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Several {
    pub begins: [u32; 4],
    pub cubic: [f32; 4],
}

/// A packed matrix `[rows, taps, channels]` on the GPU: F32, F16, Q8 or Q4 is a property of the data.
#[derive(Clone, Debug)]
pub struct Weight(Arc<Inner>);

/// `struct WeightInfo` of shaders/parts/weight_*.wgsl; strides count blocks of eight elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct WeightInfo {
    pub row_blocks: u32,
    pub tap_blocks: u32,
    pub row_groups: u32,
    pub tap_groups: u32,
    pub cubic: f32,
    pub rows: u32,
    pub pad0: u32,
    pub pad1: u32,
}

impl Weight {
    /// Copies a packed weight to the GPU, in as many windows as the binding limit asks for.
    pub fn upload(gpu: &Gpu, label: &str, packed: &Packed) -> Result<Weight> {
        Weight::upload_windowed(gpu, label, packed, gpu.caps().max_binding_bytes)
    }

    /// As [`Weight::upload`], or kept on the host in windows of at most 16 MiB, so that a small pool
    /// serves.
    pub fn place(gpu: &Gpu, label: &str, packed: &Packed, residence: Residence) -> Result<Weight> {
        let limit = match residence {
            Residence::Gpu => gpu.caps().max_binding_bytes,
            Residence::Host => gpu.caps().max_binding_bytes.min(16 << 20),
            Residence::Outline => return Weight::outline(gpu, packed.layout, packed.format),
        };
        Weight::windowed(gpu, label, packed, limit, residence)
    }

    /// As [`Weight::upload`] with a limit of the caller's (tests use small ones).
    pub fn upload_windowed(gpu: &Gpu, label: &str, packed: &Packed, limit: u64) -> Result<Weight> {
        Weight::windowed(gpu, label, packed, limit, Residence::Gpu)
    }

    fn windowed(
        gpu: &Gpu,
        label: &str,
        packed: &Packed,
        limit: u64,
        residence: Residence,
    ) -> Result<Weight> {
        let rows = packed.layout.rows;
        let row_bytes = (packed.words.len() * 4 / rows.max(1)).max(1) as u64;
        let window = ((limit / row_bytes).max(1) as usize).min(rows);
        let mut chunks = Vec::new();
        let mut row0 = 0;
        while row0 < rows {
            let count = window.min(rows - row0);
            chunks.push(if count == rows {
                chunk(gpu, label, packed, row0, residence)?
            } else {
                let part = packed.slice_rows(row0..row0 + count);
                chunk(gpu, label, &part, row0, residence)?
            });
            row0 += count;
        }
        let columns = packed.columns.as_deref().map(|c| gpu.upload(label, bytemuck::cast_slice(c)));
        let (format, layout, columns) = (packed.format, packed.layout, columns.transpose()?);
        let name = label.to_string();
        Ok(Weight(Arc::new(Inner { name, format, layout, columns, chunks, several: None })))
    }

    /// A weight of this layout and format without its numbers.
    pub fn outline(gpu: &Gpu, layout: Layout, format: Format) -> Result<Weight> {
        let whole = format.bytes(&layout) as u64;
        let row = (whole / layout.rows.max(1) as u64).max(1);
        let window = ((gpu.caps().max_binding_bytes / row).max(1) as usize).min(layout.rows);
        let info = gpu.uniform("weight outline", 16)?;
        let chunk = |row0: usize| {
            let rows = window.min(layout.rows - row0);
            let words = Memory::Outline(format.bytes(&Layout { rows, ..layout }) as u64, None);
            Chunk { row0, rows, words, scales: None, info: info.clone() }
        };
        let chunks = (0..layout.rows).step_by(window.max(1)).map(chunk).collect();
        let (name, columns) = (String::new(), None);
        Ok(Weight(Arc::new(Inner { name, format, layout, columns, chunks, several: None })))
    }

    /// What it was uploaded as: its tensor's name in the checkpoint, for weights of a net. Empty for an outline.
    pub fn name(&self) -> &str {
        &self.0.name
    }
    pub fn format(&self) -> Format {
        self.0.format
    }
    pub fn layout(&self) -> Layout {
        self.0.layout
    }
    pub fn rows(&self) -> usize {
        self.0.layout.rows
    }
    pub fn taps(&self) -> usize {
        self.0.layout.taps
    }
    pub fn channels(&self) -> usize {
        self.0.layout.channels
    }
    /// Where the channels were reordered: u32 `[channels]`, the channel of the source that each is.
    pub fn columns(&self) -> Option<&Buffer> {
        self.0.columns.as_ref()
    }
    pub fn chunks(&self) -> &[Chunk] {
        &self.0.chunks
    }
    /// Where its parts begin, if it is several weights in one ([`Weight::several`]).
    pub fn parts(&self) -> Option<Several> {
        self.0.several
    }
    /// Bytes of all its numbers, wherever they are.
    pub fn bytes(&self) -> u64 {
        let chunks: u64 = self.0.chunks.iter().map(Chunk::bytes).sum();
        chunks + self.columns().map_or(0, Buffer::bytes)
    }
    /// Number of real weights.
    pub fn elements(&self) -> usize {
        let Layout { rows, taps, channels } = self.0.layout;
        rows * taps * channels
    }
}

/// A part for each kind of format.
struct Parts {
    f32: Source,
    f16: Source,
    q8: Source,
    q4: Source,
    q4z: Source,
}

const DECODE: Parts = Parts {
    f32: source!("parts/weight_f32.wgsl"),
    f16: source!("parts/weight_f16.wgsl"),
    q8: source!("parts/weight_q8.wgsl"),
    q4: source!("parts/weight_q4.wgsl"),
    q4z: source!("parts/weight_q4z.wgsl"),
};
const DOT: Parts = Parts {
    f32: source!("parts/dot_f32.wgsl"),
    f16: source!("parts/dot_f16.wgsl"),
    q8: source!("parts/dot_q8.wgsl"),
    q4: source!("parts/dot_q4.wgsl"),
    q4z: source!("parts/dot_q4z.wgsl"),
};
/// Of formats that integers can be multiplied with; the others are never asked for.
const INT_DOT: Parts = Parts {
    q8: source!("parts/dot_q8_i8.wgsl"),
    q4: source!("parts/dot_q4_i8.wgsl"),
    q4z: source!("parts/dot_q4z_i8.wgsl"),
    ..DOT
};

impl Parts {
    fn join(&self, spec: Spec, format: Format) -> Spec {
        match format {
            Format::F32 => spec.part(self.f32),
            Format::F16 => spec.part(self.f16),
            Format::Q8 { group } => spec.part(self.q8).u32("GROUP", group),
            Format::Q4 { group, cubic, offset: Offset::None } => {
                spec.part(self.q4).u32("GROUP", group).flag("CUBIC", cubic != 0.0)
            }
            Format::Q4 { group, offset, .. } => {
                spec.part(self.q4z).u32("GROUP", group).flag("OFFSET_MIN", offset == Offset::Min)
            }
        }
    }
}

/// What makes the levels of a weight cubic: in one weight, and in several, of which the op's `Params` tell ([`Several`]).
const CUBIC_ONE: Source = source!("parts/cubic_one.wgsl");
const CUBIC_SEVERAL: Source = source!("parts/cubic_several.wgsl");

/// Joins the part that decodes this format.
pub fn weight_part(spec: Spec, format: Format) -> Spec {
    DECODE.join(cubic_part(spec, format, CUBIC_ONE), format)
}

/// The same for [`Weight::several`]; the kernel's `p` has `begins` and `cubic`.
pub fn several_part(spec: Spec, format: Format) -> Spec {
    DECODE.join(cubic_part(spec, format, CUBIC_SEVERAL), format)
}

fn cubic_part(spec: Spec, format: Format, part: Source) -> Spec {
    match format {
        Format::Q4 { offset: Offset::None, .. } => spec.part(part),
        _ => spec,
    }
}

/// Joins the part that multiplies thirty-two channels of a row in this format with x: `dot32(row, piece, x)`.
pub fn dot_part(spec: Spec, format: Format) -> Spec {
    DOT.join(spec, format)
}

/// The same for x in eight bits; levels that are not even, and floats, have none.
pub fn int_dot_part(spec: Spec, format: Format) -> Spec {
    INT_DOT.join(spec, format)
}

impl Chunk {
    /// Bytes of its numbers, wherever they are.
    pub fn bytes(&self) -> u64 {
        self.words.bytes() + self.scales.as_ref().map_or(0, Memory::bytes)
    }
    /// What of it is on the host.
    pub(super) fn held(&self) -> impl Iterator<Item = &Held> {
        [Some(&self.words), self.scales.as_ref()].into_iter().flatten().filter_map(|m| match m {
            Memory::Gpu(_) | Memory::Outline(..) => None,
            Memory::Host(held) => Some(held),
        })
    }
    /// Group 1 of a kernel joined with [`weight_part`]; `place` says where a part from the host lies.
    pub(super) fn binds_with(
        &self,
        mut place: impl FnMut(&Held) -> Result<Bind>,
    ) -> Result<Vec<Option<Bind>>> {
        let mut binds = vec![Some(Bind::whole(&self.info))];
        for memory in [Some(&self.words), self.scales.as_ref()].into_iter().flatten() {
            binds.push(Some(match memory {
                Memory::Gpu(bind) => bind.clone(),
                Memory::Host(held) => place(held)?,
                Memory::Outline(..) => {
                    return Err(Error::Runtime("an outline of a weight cannot be run".into()));
                }
            }));
        }
        Ok(binds)
    }
}

fn chunk(
    gpu: &Gpu,
    label: &str,
    packed: &Packed,
    row0: usize,
    residence: Residence,
) -> Result<Chunk> {
    let put = |words: &Words| -> Result<Memory> {
        Ok(match residence {
            Residence::Gpu => {
                let buffer = gpu.upload(label, bytemuck::cast_slice(words))?;
                words.release();
                Memory::Gpu(Bind::whole(&buffer))
            }
            Residence::Host => Memory::Host(Arc::new(words.clone())),
            Residence::Outline => Memory::Outline(words.len() as u64 * 4, None),
        })
    };
    let info = upload_info(gpu, packed)?;
    let words = put(&packed.words)?;
    let scales = scale_words(packed).map(|words| put(&words)).transpose()?;
    Ok(Chunk { row0, rows: packed.layout.rows, words, scales, info })
}

/// A vector of f32 on the GPU: biases and norm parameters.
#[derive(Clone, Debug)]
pub struct Vector {
    pub buffer: Buffer,
    pub len: usize,
}

impl Vector {
    pub fn upload(gpu: &Gpu, label: &str, values: &[f32]) -> Result<Vector> {
        Ok(Vector { buffer: gpu.upload(label, bytemuck::cast_slice(values))?, len: values.len() })
    }
    /// A vector without its numbers, to plan with.
    pub fn outline(gpu: &Gpu, len: usize) -> Result<Vector> {
        Ok(Vector { buffer: gpu.buffer("vector outline", 16)?, len })
    }
}

/// What kernels know of a window besides its numbers.
fn upload_info(gpu: &Gpu, packed: &Packed) -> Result<Buffer> {
    let layout = packed.layout;
    let (group, cubic) = match packed.format {
        Format::F32 | Format::F16 => (0, 0.0),
        Format::Q8 { group } | Format::Q4 { group, .. } => (group, packed.format.cubic()),
    };
    let groups =
        if group == 0 { (0, 0) } else { (layout.row_groups(group), layout.groups_per_tap(group)) };
    let info = WeightInfo {
        row_blocks: (layout.row_stride() / 8) as u32,
        tap_blocks: (layout.tap_stride() / 8) as u32,
        row_groups: groups.0 as u32,
        tap_groups: groups.1 as u32,
        cubic,
        rows: layout.rows as u32,
        pad0: 0,
        pad1: 0,
    };
    let uniform = gpu.uniform("weight info", std::mem::size_of::<WeightInfo>() as u64)?;
    gpu.write(&uniform, 0, bytemuck::bytes_of(&info))?;
    Ok(uniform)
}

/// Scales as kernels read them; None for formats without.
fn scale_words(packed: &Packed) -> Option<Cow<'_, Words>> {
    match packed.format {
        Format::F32 | Format::F16 => None,
        _ if packed.format.offset() == Offset::None => Some(Cow::Borrowed(&packed.scales)),
        // Side by side: one fetch, and no binding more than the symmetric forms have (a convolution
        // with everything fused is at the eight that are certain).
        _ => Some(Cow::Owned(packed.scale_offset_pairs().into())),
    }
}
