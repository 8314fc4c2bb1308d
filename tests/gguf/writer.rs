//! A small GGUF writer for tests.

/// A metadata value.
#[derive(Clone)]
pub enum Meta {
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Bools(Vec<bool>),
    Text(String),
    Texts(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
}

/// A tensor: axes slowest first, ggml's type number, bytes.
pub struct Stored {
    pub name: String,
    pub shape: Vec<usize>,
    pub ty: u32,
    pub bytes: Vec<u8>,
}

#[derive(Default)]
pub struct File {
    pub meta: Vec<(String, Meta)>,
    pub tensors: Vec<Stored>,
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn head(out: &mut Vec<u8>, element: u32, count: usize) {
    out.extend(9u32.to_le_bytes());
    out.extend(element.to_le_bytes());
    out.extend((count as u64).to_le_bytes());
}

impl File {
    pub fn put(&mut self, key: &str, value: Meta) {
        self.meta.retain(|(k, _)| k != key);
        self.meta.push((key.to_string(), value));
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.put(key, Meta::Text(value.to_string()));
    }

    /// An F32 tensor.
    pub fn f32(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensors.push(Stored { name: name.into(), shape: shape.to_vec(), ty: 0, bytes });
    }

    /// The bytes of a file of version 3, aligned to 32.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.meta.len() as u64).to_le_bytes());
        for (key, value) in &self.meta {
            text(&mut out, key);
            put(&mut out, value);
        }
        let mut at = 0u64;
        for tensor in &self.tensors {
            text(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            for &n in tensor.shape.iter().rev() {
                out.extend((n as u64).to_le_bytes());
            }
            out.extend(tensor.ty.to_le_bytes());
            out.extend(at.to_le_bytes());
            at += (tensor.bytes.len() as u64).next_multiple_of(32);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&tensor.bytes);
        }
        out
    }
}

fn put(out: &mut Vec<u8>, value: &Meta) {
    let mut scalar = |kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Meta::U32(v) => scalar(4, &v.to_le_bytes()),
        Meta::I32(v) => scalar(5, &v.to_le_bytes()),
        Meta::F32(v) => scalar(6, &v.to_le_bytes()),
        Meta::Bool(v) => scalar(7, &[u8::from(*v)]),
        Meta::Bools(list) => {
            head(out, 7, list.len());
            out.extend(list.iter().map(|&v| u8::from(v)));
        }
        Meta::Text(v) => {
            out.extend(8u32.to_le_bytes());
            text(out, v);
        }
        Meta::Texts(list) => {
            head(out, 8, list.len());
            list.iter().for_each(|v| text(out, v));
        }
        Meta::F32s(list) => {
            head(out, 6, list.len());
            list.iter().for_each(|v| out.extend(v.to_le_bytes()));
        }
        Meta::I32s(list) => {
            head(out, 5, list.len());
            list.iter().for_each(|v| out.extend(v.to_le_bytes()));
        }
    }
}
