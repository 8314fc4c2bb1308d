//! A product with a weight in two halves, of which the second gates the first (GEGLU, Shazeer 2020): in one launch where tiles have
//! real lanes, or one behind the other.

use std::any::Any;
use std::rc::Rc;

use super::variant::Variant;
use super::{Matmul, Tail, VEC_ROWS, joint};
use crate::Result;
use crate::graph::{Lower, Op};
use crate::ops::pointwise::GatedHalves;

/// Rows of each half in a tile; those in a pair of matrices, 8 or 16, divide them.
const ROWS: usize = 32;

/// Input: x `[.., K]`; `[.., N]` by a weight of 2N rows.
#[derive(Clone, Debug)]
struct Geglu {
    product: Matmul,
    halves: GatedHalves,
}

/// Whether tiles have whole rows of both halves of so many.
pub(super) fn fits_halves(rows: usize) -> bool {
    rows.is_multiple_of(2 * ROWS)
}

/// Both at once, for so many rows that kernels for real GPUs take them by tiles.
pub(super) fn pair(product: &Matmul, halves: &GatedHalves, rows: usize) -> Option<Rc<dyn Op>> {
    let plain = joint::plain(product) && !product.into_cache;
    let whole = product.weight.chunks().len() == 1;
    let fits = whole && fits_halves(product.weight.rows()) && rows > VEC_ROWS;
    let (product, halves) = (product.clone(), *halves);
    (plain && fits).then(|| Rc::new(Geglu { product, halves }) as Rc<dyn Op>)
}

impl Op for Geglu {
    fn name(&self) -> &'static str {
        "matmul"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let (x, output) = (cx.input(0)?.clone(), cx.output().clone());
        let (m, k, weight) = (x.shape.rows(), x.shape.last(), &self.product.weight);
        let formats = (weight.format(), self.product.codes(cx));
        let variant = Variant::fit(cx, x.elem, formats, (m, k, weight.rows()));
        if matches!(variant, Variant::Tiled { .. } | Variant::Coop { .. }) {
            let (act, tail) = (self.halves.act, Tail::Geglu);
            return Matmul { act, tail, ..self.product.clone() }.lower(cx);
        }
        let both = cx.scratch(x.shape.with_last(weight.rows()), cx.act);
        cx.lower_as(&self.product, vec![x], both.clone())?;
        cx.lower_as(&self.halves, vec![both], output)
    }
}
