//! What the targets share: files built from a fuzzer's bytes, whose outer form is right often enough for
//! the inner one to be reached, and everything that can be asked of a store.

use inknib::Result;
use inknib::quant::QuantSpec;
use inknib::weights::{Dtype, WeightStore};
use safetensors::tensor::TensorView;
use serde_json::Value;

/// The fuzzer's bytes, taken from the front; zeros once they are used up.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().map_or((0, self.0), |(b, rest)| (*b, rest));
        self.0 = rest;
        first
    }

    /// Everything up to the next zero byte.
    pub fn text(&mut self) -> &'a [u8] {
        let end = self.0.iter().position(|b| *b == 0).unwrap_or(self.0.len());
        let (text, rest) = self.0.split_at(end);
        self.0 = rest.get(1..).unwrap_or_default();
        text
    }

    /// A size: mostly small, multiples of four and of eight more often than chance has them.
    fn size(&mut self) -> usize {
        let b = self.byte();
        usize::from(b & 15) << [0, 0, 2, 3][usize::from(b >> 6)]
    }

    /// One of the sizes that the parts of a file share, whole or as so many words, or any.
    fn shared(&mut self, sizes: [usize; 3]) -> usize {
        let b = usize::from(self.byte());
        let size = sizes[b % 3];
        match b / 3 % 8 {
            0..=2 => size,
            3 | 4 => size.div_ceil(8),
            5 | 6 => size.div_ceil(4),
            _ => self.size(),
        }
    }

    /// A safetensors file with tensors of these names. A part is there or not, of one of its types
    /// (or, seldom, of another), of up to three axes. Three sizes come up in most shapes.
    pub fn file(&mut self, parts: &[(&str, &[Dtype])], metadata: Option<(&str, &str)>) -> Vec<u8> {
        let sizes = [0; 3].map(|_| self.size());
        let mut tensors = vec![];
        for (name, types) in parts {
            let choice = self.byte();
            if choice & 15 == 15 {
                continue;
            }
            let dtype = match choice >> 4 {
                15 => Dtype::F8_E4M3,
                n => types[usize::from(n) % types.len()],
            };
            let rank = [2, 2, 1, 2, 2, 0, 3, 2][usize::from(choice & 7)];
            let shape: Vec<usize> = (0..rank).map(|_| self.shared(sizes)).collect();
            tensors.push((name.to_string(), dtype, shape));
        }
        let filled: Vec<_> = tensors
            .into_iter()
            .map(|(name, dtype, shape)| {
                let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
                let data: Vec<u8> = (0..bytes.min(1 << 20)).map(|_| self.byte()).collect();
                (name, dtype, shape, data)
            })
            .filter(|(_, dtype, shape, data)| {
                data.len() == shape.iter().product::<usize>() * dtype.bitsize() / 8
            })
            .collect();
        let views = filled.iter().map(|(name, dtype, shape, data)| {
            let view = TensorView::new(*dtype, shape.clone(), data);
            (name.as_str(), view.expect("sizes were computed from the shape"))
        });
        let metadata = metadata.map(|(k, v)| [(k.to_string(), v.to_string())].into());
        safetensors::serialize(views, metadata).expect("a few small tensors")
    }
}

/// Asks a store for everything it lists. Errors are fine; what comes back must have its size, and the
/// values of a packed weight must be numbers.
pub fn exercise(store: &WeightStore) -> Result<()> {
    let names: Vec<String> = store.names().map(String::from).collect();
    for name in names {
        assert!(store.contains(&name));
        let Ok(shape) = store.shape(&name).map(<[usize]>::to_vec) else { continue };
        if let Ok(values) = store.values(&name) {
            assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
        }
        if shape.len() == 2 || shape.len() == 4 {
            if let Ok(packed) = store.pack(&name, &shape, &QuantSpec::INT4) {
                let decoded = packed.decode();
                assert_eq!(decoded.len(), packed.layout.len(), "{name}");
                assert!(decoded.iter().all(|v| v.is_finite()), "{name}");
                assert_eq!(packed.slice_rows(1..3).decode().len() % shape[1].max(1), 0);
            }
        }
        let _ = store.vector(&name, shape.iter().product());
        let _ = store.get(&name).and_then(|view| view.to_tensor());
    }
    Ok(())
}

/// A checkpoint of one layer with `parts`, and one of `configs` or a text of the fuzzer's as its
/// `quantization_config`.
pub fn quantized_elsewhere(data: &[u8], parts: &[(&str, &[Dtype])], configs: &[Value]) {
    let mut bytes = Bytes(data);
    let choice = usize::from(bytes.byte());
    let config = match configs.get(choice % (configs.len() + 1)) {
        Some(config) => config.clone(),
        None => match serde_json::from_slice(bytes.text()) {
            Ok(config) => config,
            Err(_) => return,
        },
    };
    let config = serde_json::json!({ "quantization_config": config });
    let file = bytes.file(parts, None);
    if let Ok(store) = WeightStore::from_bytes_with_config("fuzz", file, &config) {
        let _ = exercise(&store);
    }
}
