//! Large uploads, through a few buffers that the host writes and the device copies from, each used again and again: what the driver
//! would allocate for every single one costs more than the copy.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, MutexGuard};

use super::buffer::Buffer;
use super::device::Gpu;
use super::queue::Answer;
use crate::{Error, Result};

/// Bytes of one buffer.
const PIECE: usize = 8 << 20;
/// Buffers: one is filled while the device copies from the others.
const PIECES: usize = 3;
/// Bytes from which an upload takes this way; smaller ones wait in the driver's memory for the next submission.
pub(super) const LARGE: usize = 1 << 20;

/// The buffers of a device, made when they are first needed.
#[derive(Default)]
pub(super) struct Staging(Mutex<Vec<Piece>>);

struct Piece {
    buffer: wgpu::Buffer,
    /// The copy out of it, and the answer to its being asked for again; None while the host may write.
    busy: Option<(wgpu::SubmissionIndex, Receiver<Answer>)>,
}

impl Staging {
    fn pieces(&self) -> MutexGuard<'_, Vec<Piece>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Gpu {
    /// Puts bytes, a multiple of four of them, into a buffer and sends them on their way.
    pub(super) fn stage(&self, buffer: &Buffer, offset: u64, data: &[u8]) -> Result<()> {
        let mut pieces = self.inner.staging.pieces();
        for (i, part) in data.chunks(PIECE).enumerate() {
            if pieces.len() < PIECES {
                pieces.push(self.piece());
            } else {
                // The one whose copy has been under way for longest.
                pieces.rotate_left(1);
            }
            let Some(piece) = pieces.last_mut() else { break };
            if let Some((copy, answer)) = &piece.busy {
                self.wait_for(Some(copy.clone()))?;
                self.mapped(answer, "an upload")?;
                piece.busy = None;
            }
            self.send_piece(piece, part, buffer, offset + (i * PIECE) as u64)
                .or_else(|e| self.check().and(Err(e)))?;
        }
        self.check()
    }

    fn send_piece(&self, piece: &mut Piece, part: &[u8], to: &Buffer, offset: u64) -> Result<()> {
        let bytes = part.len() as u64;
        let view = piece.buffer.get_mapped_range_mut(0..bytes);
        let failed = |e| Error::DeviceLost(format!("an upload failed: {e}"));
        view.map_err(failed)?.copy_from_slice(part);
        piece.buffer.unmap();
        let mut encoder = self.inner.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&piece.buffer, 0, to.raw(), offset, bytes);
        let copy = {
            let _turn = self.turn();
            // What was written before goes along.
            self.inner.unsent.store(0, Ordering::Relaxed);
            self.inner.queue.submit([encoder.finish()])
        };
        let (send, receive) = mpsc::channel();
        piece.buffer.map_async(wgpu::MapMode::Write, .., move |answer| {
            let _ = send.send(answer);
        });
        piece.busy = Some((copy, receive));
        Ok(())
    }

    fn piece(&self) -> Piece {
        let buffer = self.inner.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("staging"),
            size: PIECE as u64,
            usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: true,
        });
        Piece { buffer, busy: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::GpuOptions;

    /// More pieces than there are buffers, the last one short, and more than one upload before anything is read.
    #[test]
    fn large_uploads_arrive() {
        let gpu = match Gpu::open(&GpuOptions::default()) {
            Ok(gpu) => gpu,
            Err(error) => return println!("skipped: {error}"),
        };
        let words = (PIECES + 2) * PIECE / 4 + 5;
        let data = |seed: u32| -> Vec<u8> {
            (0..words as u32)
                .flat_map(|i| i.wrapping_mul(2_654_435_761 + seed).to_le_bytes())
                .collect()
        };
        let all = [data(0), data(2)];
        let buffers = all.each_ref().map(|data| {
            let buffer = gpu.buffer("large", data.len() as u64 + 256).unwrap();
            gpu.write(&buffer, 256, data).unwrap();
            buffer
        });
        for (buffer, data) in buffers.iter().zip(&all) {
            assert!(gpu.read(buffer, 256, data.len() as u64).unwrap() == *data);
        }
    }
}
