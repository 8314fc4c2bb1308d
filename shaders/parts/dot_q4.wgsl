// Packed INT4, groupwise, as weight_q4.wgsl has it, for products with a vector: thirty-two channels in one fetch of sixteen
// bytes. One tap alone.
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
@group(1) @binding(2) var<storage, read> w_scales: array<u32>;  // [rows, row_groups] f16, two per word

const ZERO = 8388616.0; // 2^23 + 8
// The first four nibbles of a word: the bits of 2^23 + q, less 2^23, are q; conversions are slow on real GPUs.
fn nibbles(word: u32) -> vec4f {
    let bits = ((vec4u(word) >> vec4u(0u, 4u, 8u, 12u)) & vec4u(15u)) | vec4u(0x4b000000u);
    return bitcast<vec4f>(bits) - ZERO;
}

// q · x, or q · (1 + cubic · q²) · x.
fn part(q: vec4f, cubic: f32, x: vec4f) -> vec4f {
    if (CUBIC) {
        return q * fma(vec4f(cubic), q * q, vec4f(1.0)) * x;
    }
    return q * x;
}

// A row of a weight whose first word and first word of scales are these.
fn row_at(words: u32, scales: u32, row: u32, cubic: f32) -> Row {
    return Row(words + row * (info.row_blocks / 4u), 2u * scales + row * info.row_groups, cubic);
}

// Σ w[row, 32 · piece + i] · x[i]
fn dot32(row: Row, piece: u32, x: Piece) -> f32 {
    let words = w_words[row.words + piece];
    let g = row.groups + 4u * piece / (GROUP / 8u);
    let pair = unpack2x16float(w_scales[g >> 1u]);
    var s = part(nibbles(words.x), row.cubic, x.a.lo) + part(nibbles(words.x >> 16u), row.cubic, x.a.hi);
    s += part(nibbles(words.y), row.cubic, x.b.lo) + part(nibbles(words.y >> 16u), row.cubic, x.b.hi);
    s += part(nibbles(words.z), row.cubic, x.c.lo) + part(nibbles(words.z >> 16u), row.cubic, x.c.hi);
    s += part(nibbles(words.w), row.cubic, x.d.lo) + part(nibbles(words.w >> 16u), row.cubic, x.d.hi);
    return select(pair.x, pair.y, (g & 1u) == 1u) * ((s.x + s.y) + (s.z + s.w));
}
