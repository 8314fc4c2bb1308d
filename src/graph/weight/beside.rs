//! Weights that share their input, in memory side by side, so that one launch may multiply with all of them: by where each begins,
//! or, where nothing lies between them, as one weight of all their rows.

use std::sync::Arc;

use super::{Chunk, Inner, Memory, Place, Several, Weight, scale_words, upload_info};
use crate::Result;
use crate::gpu::{Bind, Buffer, Gpu, buffer_bytes};
use crate::quant::{Format, Layout, Packed};

impl Weight {
    /// Weights that share their input, each as [`Weight::upload`] would have it, in memory side by side, so that one launch may
    /// multiply with all of them ([`Chunk::beside`]). None where they do not fit one binding together or differ in form.
    pub fn upload_beside(gpu: &Gpu, parts: &[(&str, &Packed)]) -> Result<Option<Vec<Weight>>> {
        let forms = || parts.iter().map(|(_, packed)| (packed.layout, packed.format));
        let plain = parts.iter().all(|(_, packed)| packed.columns.is_none());
        let Some([words, scales]) = sides(gpu, forms).filter(|_| plain) else { return Ok(None) };
        let label = parts[0].0;
        let word_buffer = gpu.buffer(label, words.bytes)?;
        let scale_buffer = match scales.bytes {
            0 => None,
            bytes => Some(gpu.buffer(label, bytes)?),
        };
        let mut weights = Vec::with_capacity(parts.len());
        for (i, (name, packed)) in parts.iter().enumerate() {
            let put = |buffer: &Buffer, side: &Side, bytes: &[u8]| -> Result<Memory> {
                gpu.write(buffer, side.offsets[i], bytes)?;
                let (offset, bytes) = (side.offsets[i], buffer_bytes(bytes.len() as u64));
                Ok(Memory::Gpu(Bind { buffer: buffer.clone(), offset, bytes }))
            };
            let scales = match (&scale_buffer, scale_words(packed)) {
                (Some(buffer), Some(words)) => {
                    Some(put(buffer, &scales, bytemuck::cast_slice(&words))?)
                }
                _ => None,
            };
            let words = put(&word_buffer, &words, bytemuck::cast_slice(&packed.words))?;
            packed.words.release();
            let info = upload_info(gpu, packed)?;
            let chunk = Chunk { row0: 0, rows: packed.layout.rows, words, scales, info };
            weights.push(alone(name, (packed.layout, packed.format), chunk));
        }
        Ok(Some(weights))
    }

    /// The same without their numbers.
    pub fn outline_beside(gpu: &Gpu, parts: &[(Layout, Format)]) -> Result<Option<Vec<Weight>>> {
        let Some([words, scales]) = sides(gpu, || parts.iter().copied()) else { return Ok(None) };
        let info = gpu.uniform("weight outline", 16)?;
        let memory = [(); 2].map(|()| Arc::new(()));
        let outline = |(i, (layout, format)): (usize, &(Layout, Format))| {
            let bytes = format.sides(layout);
            let [words, scales] = [(0, &words), (1, &scales)].map(|(of, side)| {
                let place = Place { memory: memory[of].clone(), offset: side.offsets[i] };
                let bytes = buffer_bytes(bytes[of].next_multiple_of(4));
                (side.bytes > 0).then(|| Memory::Outline(bytes, Some(place)))
            });
            let words = words.unwrap_or(Memory::Outline(0, None));
            let chunk = Chunk { row0: 0, rows: layout.rows, words, scales, info: info.clone() };
            alone("", (*layout, *format), chunk)
        };
        Ok(Some(parts.iter().enumerate().map(outline).collect()))
    }

    /// Two or three weights that lie beside each other ([`Weight::upload_beside`] made no others with them, and in this order) as one
    /// weight of all their rows. None where something lies between them.
    pub fn several(parts: &[&Weight]) -> Option<Weight> {
        let first = *parts.first()?;
        let chunk = |part: &&Weight| match part.chunks() {
            [chunk] => Some(chunk.clone()),
            _ => None,
        };
        let chunks: Vec<Chunk> = parts.iter().map(chunk).collect::<Option<_>>()?;
        let mut several = Several { begins: [u32::MAX; 4], cubic: [0.0; 4] };
        let (mut rows, mut next) = (0, [0, 0]);
        for (i, (part, place)) in parts.iter().zip(chunks[0].beside(chunks.iter())?).enumerate() {
            if place != next {
                return None;
            }
            *several.begins.get_mut(i)? = rows as u32;
            several.cubic[i] = part.format().cubic();
            let bytes = part.format().sides(&part.layout());
            (rows, next) = (rows + part.rows(), [0, 1].map(|i| place[i] + bytes[i]));
        }
        *several.begins.get_mut(parts.len())? = rows as u32;
        let chunk = Chunk { rows, ..chunks[0].whole_side() };
        Some(Weight(Arc::new(Inner {
            name: first.name().to_string(),
            format: Format::of_all(parts.iter().map(|part| part.format()))?,
            layout: Layout { rows, ..first.layout() },
            columns: None,
            chunks: vec![chunk],
            several: Some(several),
        })))
    }
}

/// A weight of one window.
fn alone(name: &str, (layout, format): (Layout, Format), chunk: Chunk) -> Weight {
    let (name, columns, chunks, several) = (name.to_string(), None, vec![chunk], None);
    Weight(Arc::new(Inner { name, format, layout, columns, chunks, several }))
}

/// Where words and scales of such weights lie side by side. None where they do not fit one binding together or differ in form.
fn sides<I: Iterator<Item = (Layout, Format)>>(
    gpu: &Gpu,
    parts: impl Fn() -> I,
) -> Option<[Side; 2]> {
    let (first, form) = parts().next()?;
    let alike = |(layout, format): (Layout, Format)| {
        (layout.taps, layout.channels) == (first.taps, first.channels)
            && std::mem::discriminant(&format) == std::mem::discriminant(&form)
    };
    let bytes = |of: usize| parts().map(move |(layout, format)| format.sides(&layout)[of]);
    let sides = [0, 1].map(|of| Side::of(gpu, bytes(of)));
    let fits = sides[0].bytes <= gpu.caps().max_binding_bytes;
    (fits && parts().all(alike)).then_some(sides)
}

/// Where things lie one after another in a buffer, each from where the adapter may bind it.
struct Side {
    offsets: Vec<u64>,
    bytes: u64,
}

impl Side {
    fn of(gpu: &Gpu, sizes: impl Iterator<Item = u64>) -> Side {
        // Kernels count words in sixteens of bytes.
        let align = u64::from(gpu.caps().storage_align.max(16));
        let mut side = Side { offsets: Vec::new(), bytes: 0 };
        for size in sizes {
            side.offsets.push(side.bytes);
            side.bytes += size.next_multiple_of(align);
        }
        side
    }
}

impl Chunk {
    /// Whether other windows lie in the same memory as this one: for each of them and for itself, where its words and its scales
    /// begin there, in bytes.
    pub fn beside<'a>(&self, all: impl Iterator<Item = &'a Chunk>) -> Option<Vec<[u64; 2]>> {
        let place = |memory: &Memory, of: &Memory| match (memory, of) {
            (Memory::Gpu(a), Memory::Gpu(b)) => a.buffer.same(&b.buffer).then_some(a.offset),
            (Memory::Outline(_, Some(a)), Memory::Outline(_, Some(b))) => {
                Arc::ptr_eq(&a.memory, &b.memory).then_some(a.offset)
            }
            _ => None,
        };
        all.map(|chunk| {
            let words = place(&chunk.words, &self.words)?;
            match (&chunk.scales, &self.scales) {
                (Some(a), Some(b)) => Some([words, place(a, b)?]),
                (None, None) => Some([words, 0]),
                _ => None,
            }
        })
        .collect()
    }
    /// This window with all of the memory that others lie in beside it.
    pub fn whole_side(&self) -> Chunk {
        let whole = |memory: &Memory| match memory {
            Memory::Gpu(bind) => Memory::Gpu(Bind::whole(&bind.buffer)),
            other => other.clone(),
        };
        Chunk { words: whole(&self.words), scales: self.scales.as_ref().map(whole), ..self.clone() }
    }
}
