//! The triangular factor that GPTQ walks along, in f64.

use rayon::prelude::*;

use crate::{Error, Result};

/// Columns that are factored together: their rows stay in a core's cache.
const BLOCK: usize = 64;

/// U, upper triangular, with H⁻¹ = UᵀU, for a positive definite H `[n, n]` of which the lower triangle is read; `[n,
/// n]` rows, zeros below the diagonal. With P the reversal of rows and columns and PHP = LLᵀ (Cholesky), U = PL⁻¹P, so
/// that H⁻¹ is never made.
///
/// # Errors
/// `Runtime` where H is not positive definite.
pub fn inverse_factor(h: &[f64], n: usize) -> Result<Vec<f64>> {
    let mut a = vec![0.0; n * n];
    for i in 0..n {
        // The lower triangle of PHP is the upper of H in reverse, which is the lower one of H by symmetry.
        for j in 0..=i {
            a[i * n + j] = h[(n - 1 - j) * n + n - 1 - i];
        }
    }
    cholesky(&mut a, n)?;
    let columns = inverse_columns(&a, n);
    let mut u = vec![0.0; n * n];
    u.par_chunks_mut(n.max(1)).enumerate().for_each(|(i, row)| {
        let rest = row.iter_mut().enumerate().skip(i);
        rest.for_each(|(j, v)| *v = columns[(n - 1 - j) * n + n - 1 - i]);
    });
    Ok(u)
}

/// L with A = LLᵀ in the place of A's lower triangle.
fn cholesky(a: &mut [f64], n: usize) -> Result<()> {
    for first in (0..n).step_by(BLOCK) {
        let end = n.min(first + BLOCK);
        let (top, below) = a.split_at_mut(end * n);
        for i in first..end {
            let (before, row) = top.split_at_mut(i * n);
            for j in first..i {
                let other = &before[j * n..];
                row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
            }
            let rest = row[i] - dot(&row[..i], &row[..i]);
            if rest.is_nan() || rest <= 0.0 {
                return Err(Error::Runtime(format!(
                    "a matrix of {n} columns is not positive definite at column {i}; more calibration data or a \
                     larger damping would mend it"
                )));
            }
            row[i] = rest.sqrt();
        }
        below.par_chunks_mut(n).for_each(|row| {
            for j in first..end {
                let other = &top[j * n..];
                row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
            }
        });
    }
    Ok(())
}

/// The columns of L⁻¹, each as a row: row c holds L⁻¹[i, c] for i ≥ c.
fn inverse_columns(l: &[f64], n: usize) -> Vec<f64> {
    /// Columns that share what is read of L.
    const COLUMNS: usize = 16;
    let mut out = vec![0.0; n * n];
    out.par_chunks_mut((COLUMNS * n).max(1)).enumerate().for_each(|(chunk, columns)| {
        let first = chunk * COLUMNS;
        for i in first..n {
            let row = &l[i * n..][..=i];
            for (c, x) in columns.chunks_exact_mut(n).enumerate().take(i + 1 - first) {
                let c = first + c;
                let sum = if i == c { 1.0 } else { -dot(&row[c..i], &x[c..i]) };
                x[i] = sum / row[i];
            }
        }
    });
    out
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        (0..8).for_each(|i| sums[i] += a[i] * b[i]);
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_inverts() {
        // Beyond one block, and no multiple of anything.
        for n in [1, 5, 64, 131] {
            let x: Vec<f64> =
                (0..n * (n + 3)).map(|i| ((i * i * 7 + i) % 23) as f64 - 11.0).collect();
            let rows: Vec<&[f64]> = x.chunks(n + 3).collect();
            let h: Vec<f64> = (0..n * n)
                .map(|at| {
                    dot(rows[at / n], rows[at % n]) + if at / n == at % n { 50.0 } else { 0.0 }
                })
                .collect();
            let u = inverse_factor(&h, n).unwrap();
            // H · UᵀU is the unit matrix.
            for i in 0..n {
                for j in 0..n {
                    let inverse =
                        |k: usize| (0..n).map(|m| u[m * n + k] * u[m * n + j]).sum::<f64>();
                    let one: f64 = (0..n).map(|k| h[i * n + k] * inverse(k)).sum();
                    // f64 with a condition number of a few thousand.
                    assert!((one - f64::from(u8::from(i == j))).abs() < 1e-9, "{n}: {i} {j} {one}");
                }
                assert!((0..i).all(|j| u[i * n + j] == 0.0));
            }
        }
    }

    #[test]
    fn indefinite_matrices_are_refused() {
        assert!(inverse_factor(&[1.0, 2.0, 2.0, 1.0], 2).is_err());
        assert!(inverse_factor(&[f64::NAN], 1).is_err());
    }
}
