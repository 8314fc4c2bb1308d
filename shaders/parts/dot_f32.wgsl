// Single-precision weights for products with a vector. One tap alone.
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
@group(1) @binding(1) var<storage, read> w_words: array<vec4f>; // [rows, row_blocks * 2]

fn part(i: u32, x: Eight) -> vec4f {
    return w_words[i] * x.lo + w_words[i + 1u] * x.hi;
}

// A row of a weight whose first word and first word of scales are these.
fn row_at(words: u32, scales: u32, row: u32, cubic: f32) -> Row {
    return Row(words + row * (2u * info.row_blocks), 0u, cubic);
}

// Σ w[row, 32 · piece + i] · x[i]
fn dot32(row: Row, piece: u32, x: Piece) -> f32 {
    let i = row.words + 8u * piece;
    let s = (part(i, x.a) + part(i + 2u, x.b)) + (part(i + 4u, x.c) + part(i + 6u, x.d));
    return (s.x + s.y) + (s.z + s.w);
}
