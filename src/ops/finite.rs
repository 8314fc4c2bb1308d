//! How many values are infinite or NaN, told by stored bits: comparisons with NaN are not to be trusted on
//! every driver.

use std::any::Any;

use super::OpInfo;
use crate::gpu::{Elem, Source, Spec};
use crate::graph::{Dispatch, Lower, Op, Var};
use crate::{Result, params, source};

const FAST: Source = source!("finite.wgsl");
const REFERENCE: Source = source!("reference/finite.wgsl");

/// Elements that one invocation goes through before more invocations are taken.
const FEW: usize = 16;
/// Invocations of the first dispatch, unless each would go through more than [`MOST`] elements.
const PARTS: usize = 4096;
const MOST: usize = 16_384;

params! {
    pub struct Params {
        pub n: u32,
        pub words: u32,
        pub parts: u32,
        pub pad0: u32,
    }
}

#[derive(Clone, Copy, Debug)]
struct CountNonfinite;

/// How many elements of x (f32 or f16, any shape) are infinite or NaN: u32 `[1]`.
#[track_caller]
pub fn count_nonfinite(x: Var<'_>) -> Var<'_> {
    let fits = match x.elem() {
        Elem::U32 => Err("x holds integers, which are all finite".to_string()),
        Elem::F32 | Elem::F16 => Ok([1].into()),
    };
    x.graph().record(CountNonfinite, &[x], fits, Elem::U32)
}

fn spec(reference: bool, count: bool, half: bool) -> Spec {
    Spec::new(if reference { REFERENCE } else { FAST }).flag("COUNT", count).flag("HALF", half)
}

impl Op for CountNonfinite {
    fn name(&self) -> &'static str {
        "count_nonfinite"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }

    /// Many counts, then their sums, then one: no shared memory, no atomics to be cleared.
    fn lower(&self, cx: &mut Lower<'_>) -> Result<()> {
        let (mut x, y) = (cx.input(0)?.clone(), cx.output().clone());
        let half = x.elem == Elem::F16;
        let mut count = true;
        loop {
            let n = x.shape.len();
            let words = if half && count { n.div_ceil(2) } else { n };
            let parts = n.div_ceil(FEW).min(PARTS).max(n.div_ceil(MOST)).max(1);
            let to = if parts == 1 { y.clone() } else { cx.scratch([parts], Elem::U32) };
            let p = Params { n: n as u32, words: words as u32, parts: parts as u32, pad0: 0 };
            let dispatch = Dispatch::new(spec(cx.reference(), count, half && count), &p)
                .arg(&x)
                .arg(&to)
                .linear(parts, 64)
                .trips(n.div_ceil(parts));
            cx.dispatch(dispatch)?;
            if parts == 1 {
                return Ok(());
            }
            (x, count) = (to, false);
        }
    }
}

/// Variants for the shader tests.
pub(crate) fn info() -> Vec<OpInfo> {
    let variants = [(true, true), (true, false), (false, false)];
    let specs = variants.iter().flat_map(|(c, h)| [true, false].map(|r| spec(r, *c, *h)));
    vec![OpInfo { name: "count_nonfinite", specs: specs.collect(), params: Params::FIELDS }]
}
