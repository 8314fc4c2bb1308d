//! AWQ checkpoints in AutoAWQ's "GEMM" version (`awq/modules/linear/gemm.py`,
//! `awq/utils/packing_utils.py`). For a layer of K inputs and N outputs in groups of g inputs:
//!
//! - `NAME.qweight` i32 `[K, N/8]` and `NAME.qzeros` i32 `[K/g, N/8]`, eight outputs a word in the
//!   order 0, 2, 4, 6, 1, 3, 5, 7 from the low bits up;
//! - `NAME.scales` `[K/g, N]`.

use super::WeightStore;
use super::codes::{Codes, Groups, transpose, unpack};
use super::foreign::{Config, Part, Parts};
use super::gptq::misfit;
use crate::{Error, Result};

/// Where output n mod 8 lies in its word.
const SHIFT: [u32; 8] = [0, 16, 4, 20, 8, 24, 12, 28];

/// What the configuration says.
#[derive(Clone, Debug)]
pub(super) struct Awq {
    /// `None`: one group for each row.
    group: Option<usize>,
    /// False where a missing `qzeros` means code 8.
    zero_point: bool,
}

impl Awq {
    pub(super) fn new(config: &Config<'_>) -> Result<Awq> {
        // Under `config.json` and in AutoAWQ's own quant_config.json.
        match config.number("bits")?.or(config.number("w_bit")?).unwrap_or(4) {
            4 => {}
            other => return Err(config.refuse(&format!("AWQ at {other} bits"))),
        }
        let version = config.text("version").unwrap_or("gemm");
        if !version.eq_ignore_ascii_case("gemm") {
            return Err(config.refuse(&format!("AWQ weights in the version `{version}`")));
        }
        let key = if config.has("group_size") { "group_size" } else { "q_group_size" };
        Ok(Awq { group: config.group(key)?, zero_point: config.flag("zero_point", true)? })
    }

    /// How messages name it.
    pub(super) fn describe(&self) -> String {
        "AWQ (GEMM), 4 bits".into()
    }

    /// Layers by name, each with its `[N, K]`.
    pub(super) fn find(&self, store: &WeightStore) -> Result<Parts> {
        Parts::find(store, "qweight", &["qzeros", "scales"], |name| {
            let qweight = store.part(name, "qweight", Part::Words)?;
            match *qweight.shape {
                [k, words] if k > 0 && words > 0 => Ok([words.saturating_mul(8), k]),
                _ => Err(Error::Model(format!("`{name}.qweight` has shape {:?}", qweight.shape))),
            }
        })
    }

    pub(super) fn read(&self, store: &WeightStore, name: &str, shape: [usize; 2]) -> Result<Codes> {
        let [n, k] = shape;
        let part = |word: u32, n: usize| (word >> SHIFT[n % 8]) as u8 & 15;
        let group = self.group.unwrap_or(k);
        let groups = k.div_ceil(group);
        let scales = store.part(name, "scales", Part::Floats)?;
        if scales.shape != [groups, n] {
            return Err(misfit(&scales, &format!("[{groups}, {n}]"), name, shape));
        }
        let zeros = if !self.zero_point && !store.is_plain(&format!("{name}.qzeros")) {
            vec![8; n * groups]
        } else {
            let view = store.part(name, "qzeros", Part::Words)?;
            if view.shape != [groups, n / 8] {
                return Err(misfit(&view, &format!("[{groups}, {}]", n / 8), name, shape));
            }
            let words = view.to_u32()?;
            unpack(n, groups, |row, g| part(words[g * (n / 8) + row / 8], row))
        };
        let words = store.part(name, "qweight", Part::Words)?.to_u32()?;
        Ok(Codes {
            rows: n,
            channels: k,
            bits: 4,
            codes: unpack(n, k, |row, k| part(words[k * (n / 8) + row / 8], row)),
            groups: Groups::Runs(group),
            scales: transpose(&scales.to_f32()?, groups, n),
            zeros,
        })
    }
}
