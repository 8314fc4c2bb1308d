//! A row on the host: the oracle of the GPU op.

use super::{HISTORY, StepCoefficients};
use crate::{Error, Result};

/// What a run carries from row to row; all of one length.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// The sample.
    pub x: Vec<f32>,
    /// Older values, newest first.
    pub history: [Vec<f32>; HISTORY],
    /// The kept sample.
    pub saved: Vec<f32>,
}

impl State {
    /// The state before the first row, which reads nothing but x.
    pub fn new(x: Vec<f32>) -> State {
        let empty = vec![0.0; x.len()];
        State { history: std::array::from_fn(|_| empty.clone()), saved: empty, x }
    }
}

/// One row on the host, in f32 and in the order of the formula. `out` and `noise` have the length of x;
/// `noise` may be None where the row adds none. Returns the state after it and v.
///
/// # Errors
/// `Runtime` for slices that do not fit.
pub fn apply(
    row: &StepCoefficients,
    state: &State,
    out: &[f32],
    noise: Option<&[f32]>,
) -> Result<(State, Vec<f32>)> {
    let n = state.x.len();
    let [h1, h2, h3] = &state.history;
    let given = [
        ("out", Some(out), true),
        ("noise", noise, row.needs_noise()),
        ("h1", Some(h1), true),
        ("h2", Some(h2), true),
        ("h3", Some(h3), true),
        ("the kept sample", Some(&state.saved), true),
    ];
    for (name, slice, needed) in given {
        if slice.map_or(needed, |s| s.len() != n) {
            return Err(Error::Runtime(format!(
                "sampler step at timestep {}: {name} holds {} values, x holds {n}",
                row.timestep,
                slice.map_or(0, <[f32]>::len),
            )));
        }
    }
    let mut after = State { x: Vec::new(), history: state.history.clone(), saved: Vec::new() };
    let mut values = Vec::with_capacity(n);
    for i in 0..n {
        let x = state.x[i];
        let w = row.value[0] * x + row.value[1] * out[i];
        let v = w.clamp(-row.clip, row.clip);
        let drawn = noise.map_or(0.0, |n| n[i]);
        let known = [x, v, h1[i], h2[i], h3[i], state.saved[i], drawn, w];
        after.x.push(sum(&row.next, &known));
        after.saved.push(sum(&row.keep, &known));
        values.push(v);
    }
    if row.push != 0.0 {
        after.history = [values.clone(), h1.clone(), h2.clone()];
    }
    Ok((after, values))
}

/// Terms whose coefficient is zero are left out, whatever they hold.
fn sum(coefficients: &[f32], known: &[f32]) -> f32 {
    let terms = coefficients.iter().zip(known).filter(|(c, _)| **c != 0.0);
    terms.fold(0.0, |sum, (c, v)| sum + c * v)
}
