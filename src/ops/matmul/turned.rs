//! A product that is turned before it is stored, queries or keys: in one launch with the other products of an attention layer
//! (joint.rs), or one behind the other where there is no such launch.

use std::any::Any;
use std::rc::Rc;

use super::{Matmul, VEC_ROWS, joint, whole_groups};
use crate::Result;
use crate::graph::{Joint, Lower, Op};
use crate::ops::rope::Rope;

/// Inputs: x `[B, S, K]`, then those of [`Rope`] behind its first.
#[derive(Clone, Debug)]
pub(super) struct Turned {
    pub(super) product: Matmul,
    pub(super) rope: Rope,
}

/// Both at once, for so few rows that kernels for real GPUs take them by pieces.
pub(super) fn pair(product: &Matmul, rope: &Rope, rows: usize) -> Option<Rc<dyn Op>> {
    let few = rows <= VEC_ROWS && product.weight.chunks().len() == 1;
    let whole = whole_groups(product.weight.format(), product.weight.channels());
    let plain = joint::plain(product) && !product.into_cache && rope.is_plain();
    let turned = || Turned { product: product.clone(), rope: rope.clone() };
    (few && whole && plain).then(|| Rc::new(turned()) as Rc<dyn Op>)
}

impl Op for Turned {
    fn name(&self) -> &'static str {
        "matmul"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn in_place(&self) -> Option<usize> {
        self.rope.in_place()
    }
    fn partners(&self) -> usize {
        self.product.partners()
    }
    fn joins(&self, inputs: &[usize], other: &dyn Op, theirs: &[usize]) -> bool {
        joint::joins(self, inputs, other, theirs)
    }
    fn lower_joint(&self, cx: &mut Lower<'_>, others: &[Joint]) -> Result<bool> {
        joint::lower(cx, self, others)
    }
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let (x, output) = (cx.input(0)?.clone(), cx.output().clone());
        let shape = x.shape.with_last(self.product.weight.rows());
        let product = cx.scratch(shape, cx.act);
        cx.lower_as(&self.product, vec![x], product.clone())?;
        let inputs = [product].into_iter().chain(cx.inputs()[1..].iter().cloned()).collect();
        cx.lower_as(&self.rope, inputs, output)
    }
}
