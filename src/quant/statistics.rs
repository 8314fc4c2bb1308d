//! What calibration knows of the inputs of layers.

use std::collections::BTreeMap;

/// A square of XᵀX that lies on its diagonal.
#[derive(Clone, Debug, PartialEq)]
pub struct GramBlock {
    /// First column of X.
    pub first: usize,
    pub width: usize,
    /// `[width, width]`; the lower triangle counts.
    pub values: Vec<f32>,
}

/// Sums over the rows of X `[rows, K]`, what a layer's weight `[N, K]` was multiplied with; columns in the order
/// (tap, channel), as [`Layout`](super::Layout) has them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerStatistics {
    pub rows: f64,
    /// Σ of each column, `[K]`.
    pub sum: Vec<f32>,
    /// Σ of the squares, `[K]`.
    pub square: Vec<f32>,
    /// XᵀX in blocks along the diagonal that hold all columns, in order; empty where it was not asked for.
    pub gram: Vec<GramBlock>,
}

/// By the name of the weight that reads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    pub layers: BTreeMap<String, LayerStatistics>,
}

impl Statistics {
    /// Adds what another run has seen. Layers of other sizes replace those of the same name.
    pub fn merge(&mut self, other: Statistics) {
        for (name, layer) in other.layers {
            match self.layers.get_mut(&name).filter(|own| own.fits(&layer)) {
                Some(own) => own.add(&layer),
                None => drop(self.layers.insert(name, layer)),
            }
        }
    }
}

impl LayerStatistics {
    fn fits(&self, other: &LayerStatistics) -> bool {
        let blocks = |s: &LayerStatistics| -> Vec<[usize; 2]> {
            s.gram.iter().map(|b| [b.first, b.width]).collect()
        };
        self.sum.len() == other.sum.len() && blocks(self) == blocks(other)
    }

    fn add(&mut self, other: &LayerStatistics) {
        self.rows += other.rows;
        let add = |a: &mut [f32], b: &[f32]| a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        add(&mut self.sum, &other.sum);
        add(&mut self.square, &other.square);
        for (own, other) in self.gram.iter_mut().zip(&other.gram) {
            add(&mut own.values, &other.values);
        }
    }

    /// The mean of each column.
    pub fn mean(&self) -> Vec<f64> {
        self.sum.iter().map(|&v| f64::from(v) / self.rows.max(1.0)).collect()
    }

    /// What the squared error of a weight at each column costs: the mean square there, relative to the mean over all
    /// columns. Not less than 1 % of that, so that channels which calibration never woke keep their values.
    pub fn importance(&self) -> Vec<f32> {
        let mean = self.square.iter().map(|&v| f64::from(v)).sum::<f64>()
            / self.square.len().max(1) as f64;
        if mean <= 0.0 || !mean.is_finite() {
            return vec![1.0; self.square.len()];
        }
        self.square.iter().map(|&v| (f64::from(v) / mean).max(0.01) as f32).collect()
    }

    /// Σ over the rows of X of (x·e)², the power that a row `e` `[K]` of weights (or of their errors) makes in the output:
    /// by XᵀX where it is known, else as if the columns were independent.
    pub fn power(&self, e: &[f32]) -> f64 {
        if self.gram.is_empty() {
            let terms = e.iter().zip(&self.square);
            return terms.map(|(&e, &s)| f64::from(e) * f64::from(e) * f64::from(s)).sum();
        }
        let block = |b: &GramBlock| -> f64 {
            let e = &e[b.first..b.first + b.width];
            let row = |(i, g): (usize, &[f32])| -> f64 {
                let below = f64::from(dot(&g[..i], &e[..i]));
                f64::from(e[i]) * (2.0 * below + f64::from(g[i]) * f64::from(e[i]))
            };
            b.values.chunks_exact(b.width).enumerate().map(row).sum()
        };
        self.gram.iter().map(block).sum()
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        (0..16).for_each(|i| sums[i] += a[i] * b[i]);
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// X of three rows and two columns.
    fn layer() -> LayerStatistics {
        let values = vec![14.0, 0.0, 5.0, 9.0];
        LayerStatistics {
            rows: 3.0,
            sum: vec![6.0, 3.0],
            square: vec![14.0, 9.0],
            gram: vec![GramBlock { first: 0, width: 2, values }],
        }
    }

    #[test]
    fn power_is_that_of_the_products() {
        // X = [1 0; 2 1... any with these sums]: |Xe|² = 14 e0² + 10 e0 e1 + 9 e1².
        let layer = layer();
        assert_eq!(layer.power(&[2.0, -1.0]), 56.0 - 20.0 + 9.0);
        let diagonal = LayerStatistics { gram: vec![], ..layer };
        assert_eq!(diagonal.power(&[2.0, -1.0]), 56.0 + 9.0);
    }

    #[test]
    fn runs_add_up() {
        let mut all = Statistics::default();
        for _ in 0..2 {
            let layers = [("a".to_string(), layer())].into();
            all.merge(Statistics { layers });
        }
        let sum = &all.layers["a"];
        assert_eq!((sum.rows, sum.sum[0], sum.gram[0].values[2]), (6.0, 12.0, 10.0));
        assert_eq!(sum.mean(), [2.0, 1.0]);
        let importance = sum.importance();
        assert!((importance[0] - 14.0 / 11.5).abs() < 1e-6 && importance[1] < 1.0);
        // A layer of another size is another layer.
        let other = LayerStatistics { sum: vec![1.0], ..Default::default() };
        all.merge(Statistics { layers: [("a".to_string(), other)].into() });
        assert_eq!(all.layers["a"].sum, [1.0]);
    }
}
