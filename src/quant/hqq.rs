//! HQQ (Badri and Shaji 2023), the calibration-free baseline: `w = s·(q − z)` with a float z, found by a proximal
//! iteration on the error's ‖·‖ₚ, p = 0.7. Steps and constants are those of the `hqq` package's
//! `optimize_weights_proximal_legacy` on the CPU, 4 bits, groups along the inputs.

use half::f16;
use rayon::prelude::*;

use super::numbers::Rows;
use super::{Layout, Offset, Packed};
use crate::Result;

const P: f32 = 0.7;
const BETA: f32 = 10.0;
const ROUNDS: usize = 20;
/// Largest code.
const MOST: f32 = 15.0;

/// Scale (its inverse, as it is worked with) and zero of a group.
#[derive(Clone, Copy)]
struct Group {
    inverse: f32,
    zero: f32,
}

/// Packs a weight in groups of `group` channels.
pub(super) fn pack(rows: &Rows<'_>, group: u32) -> Result<Packed> {
    let layout = rows.layout;
    let mut values = vec![0.0f32; layout.len()];
    let room = || vec![0.0; layout.row_len()];
    let each = values.par_chunks_mut(layout.row_len().max(1)).enumerate();
    each.for_each_init(room, |scratch, (row, out)| rows.read(row, scratch, out));
    let parts: Vec<&[f32]> =
        values.chunks(layout.channels.max(1)).flat_map(|tap| tap.chunks(group as usize)).collect();
    let mut groups: Vec<Group> = parts.par_iter().map(|w| first(w)).collect();
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        // The error of the whole tensor decides when to stop; zeros are those after the last round.
        let stepped: Vec<(f64, Group)> =
            parts.par_iter().zip(&groups).map(|(w, g)| step(w, *g)).collect();
        let error: f64 = stepped.iter().map(|(error, _)| error).sum();
        groups = stepped.into_iter().map(|(_, group)| group).collect();
        if error >= best {
            break;
        }
        best = error;
    }
    finish(&values, &parts, &groups, layout, group)
}

/// From the least to the greatest weight.
fn first(w: &[f32]) -> Group {
    let least = w.iter().copied().fold(f32::INFINITY, f32::min);
    let most = w.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let range = most - least;
    let inverse = if range.abs() <= 1e-4 { 1.0 } else { (MOST / range).min(2e4) };
    Group { inverse, zero: (-least * inverse).round_ties_even() }
}

fn code(w: f32, g: Group) -> f32 {
    (w * g.inverse + g.zero).round_ties_even().clamp(0.0, MOST)
}

/// Σ of the absolute errors, and the next zero.
fn step(w: &[f32], g: Group) -> (f64, Group) {
    let (mut error, mut sum) = (0.0, 0.0);
    for &w in w {
        let q = code(w, g);
        let e = w - (q - g.zero) / g.inverse;
        error += f64::from(e.abs());
        // The proximal step: what ‖·‖ₚ leaves of the error.
        let size = e.abs();
        let kept = (size - size.powf(P - 1.0) / BETA).max(0.0).copysign(e);
        sum += q - (w - if size == 0.0 { 0.0 } else { kept }) * g.inverse;
    }
    (error, Group { zero: sum / w.len() as f32, ..g })
}

fn finish(
    values: &[f32],
    parts: &[&[f32]],
    groups: &[Group],
    layout: Layout,
    group: u32,
) -> Result<Packed> {
    let codes: Vec<u8> =
        parts.iter().zip(groups).flat_map(|(w, g)| w.iter().map(|&w| code(w, *g) as u8)).collect();
    let scales: Vec<f16> = groups.iter().map(|g| f16::from_f32(1.0 / g.inverse)).collect();
    let zeros: Vec<f16> = groups.iter().map(|g| f16::from_f32(g.zero)).collect();
    let mut packed =
        Packed::from_q4_codes_with_offsets(layout, group, Offset::Zero, &codes, &scales, &zeros)?;
    packed.sqnr_db = Some(packed.sqnr_against(values));
    Ok(packed)
}
