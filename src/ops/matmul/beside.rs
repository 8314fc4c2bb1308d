//! Products of many rows with weights that lie side by side, in one launch of tiles: queries, keys and values, and both halves of a
//! gated unit. Columns of the launch are rows of all the weights, one behind the other, so that tiles cross from one to the next.

use super::geglu::fits_halves;
use super::variant::{Form, Variant, merge, spec};
use super::{Matmul, Params, Tail, decoding, rows_per_dispatch};
use crate::Result;
use crate::gpu::Elem;
use crate::graph::{Dispatch, Lower, Operand, Weight};
use crate::ops::pointwise::Act;

/// Storage buffers that a launch of three products binds.
pub const BUFFERS: u32 = 10;

/// Whether kernels that go by tiles can take this many products of x at once, and how.
fn fit(cx: &Lower<'_>, x: &Operand, weight: &Weight) -> Option<Variant> {
    let size = (x.shape.rows(), x.shape.last(), weight.rows());
    let variant = Variant::fit(cx, x.elem, (weight.format(), None), size);
    matches!(variant, Variant::Tiled { .. } | Variant::Coop { .. }).then_some(variant)
}

/// Three products with one x, and where they go.
pub(super) struct Three<'a> {
    pub products: [&'a Matmul; 3],
    pub outputs: [Operand; 3],
    /// First row in the caches.
    pub start: Option<Operand>,
    /// Rows of the caches.
    pub context: usize,
}

impl Three<'_> {
    /// Emits their launch, or two where sums are divided. False where this device has none.
    pub(super) fn lower(&self, cx: &mut Lower<'_>) -> Result<bool> {
        let x = cx.input(0)?.clone();
        let Some(weight) = Weight::several(&self.products.map(|product| &product.weight)) else {
            return Ok(false);
        };
        let (Some(variant), [chunk]) = (fit(cx, &x, &weight), weight.chunks()) else {
            return Ok(false);
        };
        let (m, n, k) = (x.shape.rows(), weight.rows(), x.shape.last());
        let stored = self.products.iter().zip(&self.outputs).filter(|(p, _)| !p.into_cache);
        let window = cx.window_rows(m, stored.map(|(_, output)| output).chain([&x]));
        let at_once = window.min(rows_per_dispatch(cx, 2 * n * k));
        if m > at_once || cx.caps.max_storage_buffers < BUFFERS {
            return Ok(false);
        }
        let p = self.params(&weight, (m, n, k));
        let form = self.form(cx, x.elem);
        let splits = variant.splits(cx, (m, k, n));
        let part = (splits > 1).then(|| cx.scratch([splits, m, n], Elem::F32));
        let tiles = Form { partial: part.is_some(), ..form };
        let dispatch = Dispatch::new(spec(variant, tiles), &p).arg(&x);
        let dispatch = match &part {
            Some(part) => dispatch.arg(part),
            None => self.bind(dispatch),
        };
        let dispatch =
            dispatch.weight_as(chunk, |spec| decoding(spec, &weight)).flops(2 * m * n * k);
        let mut dispatch = variant.launch(dispatch, m, n, k);
        dispatch.groups[2] = splits as u32;
        cx.dispatch(dispatch)?;
        if let Some(part) = &part {
            let adding = self.bind(Dispatch::new(merge(form, splits), &p).arg(part));
            cx.dispatch(adding.linear(m * n, 64).trips(splits))?;
        }
        Ok(true)
    }

    fn params(&self, weight: &Weight, (m, n, k): (usize, usize, usize)) -> Params {
        let several = weight.parts().unwrap_or_default();
        Params {
            m: m as u32,
            n: n as u32,
            k: k as u32,
            n_total: n as u32,
            blocks: k.div_ceil(8) as u32,
            context: self.context as u32,
            begins: several.begins,
            cubic: several.cubic,
            ..Default::default()
        }
    }

    fn form(&self, cx: &Lower<'_>, x: Elem) -> Form {
        let bits = self.products.iter().enumerate();
        Form {
            x,
            act: cx.act,
            out: cx.act,
            activation: Act::None,
            bias: self.products[0].bias.is_some(),
            tail: Tail::Three,
            caches: bits.map(|(i, product)| u32::from(product.into_cache) << i).sum(),
            eps: None,
            partial: false,
        }
    }

    fn bind(&self, dispatch: Dispatch) -> Dispatch {
        let biases = self.products.iter().map(|product| product.bias.as_ref());
        let dispatch = biases.fold(dispatch, Dispatch::arg);
        self.outputs.iter().fold(dispatch, Dispatch::arg).arg(self.start.as_ref())
    }
}

/// Both halves of a gated unit as one product, where kernels go by tiles: `activation(x · gateᵀ) · (x · upᵀ)`.
pub(super) fn halves(cx: &Lower<'_>, gate: &Matmul, up: &Matmul) -> Result<Option<Matmul>> {
    let both = Weight::several(&[&gate.weight, &up.weight]);
    let Some(weight) = both.filter(|_| gate.bias.is_none() && up.bias.is_none()) else {
        return Ok(None);
    };
    let fits = fits_halves(weight.rows()) && fit(cx, cx.input(0)?, &weight).is_some();
    Ok(fits.then(|| Matmul { weight, tail: Tail::Gate, ..gate.clone() }))
}
