// Packed INT4, groupwise and asymmetric, as weight_q4z.wgsl has it, for products with a vector: see dot_q4.wgsl.
struct WeightInfo {
    row_blocks: u32, // blocks of eight elements per row
    tap_blocks: u32, // blocks per tap
    row_groups: u32, // scales per row
    tap_groups: u32, // scales per tap
    cubic: f32,
    rows: u32,
    pad0: u32,
    pad1: u32,
}
// Eight neighbouring channels, and thirty-two.
struct Eight { lo: vec4f, hi: vec4f }
struct Piece { a: Eight, b: Eight, c: Eight, d: Eight }
// Where a row begins, in w_words and among the scales.
struct Row { words: u32, groups: u32, cubic: f32 }

@group(1) @binding(0) var<uniform> info: WeightInfo;
@group(1) @binding(1) var<storage, read> w_words: array<vec4u>; // [rows, row_blocks / 4] 32 nibbles, low first
@group(1) @binding(2) var<storage, read> w_scales: array<u32>;  // [rows, row_groups] f16 s low, f16 z or m high

const ZERO = 8388608.0; // 2^23
// The first four nibbles of a word: the bits of 2^23 + q, less 2^23, are q; conversions are slow on real GPUs.
fn nibbles(word: u32) -> vec4f {
    let bits = ((vec4u(word) >> vec4u(0u, 4u, 8u, 12u)) & vec4u(15u)) | vec4u(0x4b000000u);
    return bitcast<vec4f>(bits) - ZERO;
}

fn part(q: vec4f, s: vec2f, x: vec4f) -> vec4f {
    if (OFFSET_MIN) {
        return fma(vec4f(s.x), q, vec4f(s.y)) * x;
    }
    return s.x * (q - s.y) * x;
}

// A row of a weight whose first word and first word of scales are these.
fn row_at(words: u32, scales: u32, row: u32, cubic: f32) -> Row {
    return Row(words + row * (info.row_blocks / 4u), scales + row * info.row_groups, cubic);
}

// Σ w[row, 32 · piece + i] · x[i]
fn dot32(row: Row, piece: u32, x: Piece) -> f32 {
    let words = w_words[row.words + piece];
    let h = unpack2x16float(w_scales[row.groups + 4u * piece / (GROUP / 8u)]);
    var s = part(nibbles(words.x), h, x.a.lo) + part(nibbles(words.x >> 16u), h, x.a.hi);
    s += part(nibbles(words.y), h, x.b.lo) + part(nibbles(words.y >> 16u), h, x.b.hi);
    s += part(nibbles(words.z), h, x.c.lo) + part(nibbles(words.z >> 16u), h, x.c.hi);
    s += part(nibbles(words.w), h, x.d.lo) + part(nibbles(words.w >> 16u), h, x.d.hi);
    return (s.x + s.y) + (s.z + s.w);
}
