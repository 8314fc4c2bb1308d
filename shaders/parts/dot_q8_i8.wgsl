// Packed INT8, groupwise, as weight_q8.wgsl has it, times x in eight bits (round8.wgsl): thirty-two channels in two fetches of sixteen bytes,
// their sum exact in i32. One tap alone.
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
// Thirty-two channels of x in eight bits, in their order; their scale and their sum.
struct Piece { lo: vec4u, hi: vec4u, scale: f32, sum: i32 }
// Where a row begins, in w_words and among the scales.
struct Row { words: u32, groups: u32, cubic: f32 }

@group(1) @binding(0) var<uniform> info: WeightInfo;
@group(1) @binding(1) var<storage, read> w_words: array<vec4u>; // [rows, row_blocks / 2] 16 bytes, low first
@group(1) @binding(2) var<storage, read> w_scales: array<u32>;  // [rows, row_groups] f16, two per word

fn scale(g: u32) -> f32 {
    let pair = unpack2x16float(w_scales[g >> 1u]);
    return select(pair.x, pair.y, (g & 1u) == 1u);
}

fn sixteen(w: vec4u, x: vec4u) -> i32 {
    return dot4I8Packed(w.x, x.x) + dot4I8Packed(w.y, x.y) + dot4I8Packed(w.z, x.z) + dot4I8Packed(w.w, x.w);
}

// A row of a weight whose first word and first word of scales are these.
fn row_at(words: u32, scales: u32, row: u32, cubic: f32) -> Row {
    return Row(words + row * (info.row_blocks / 2u), 2u * scales + row * info.row_groups, cubic);
}

// Σ w[row, 32 · piece + i] · x[i]. Groups of sixteen channels have two scales in a piece.
fn dot32(row: Row, piece: u32, x: Piece) -> f32 {
    let i = row.words + 2u * piece;
    let s = sixteen(w_words[i], x.lo);
    let t = sixteen(w_words[i + 1u], x.hi);
    let g = row.groups;
    if (GROUP == 16u) {
        return x.scale * (scale(g + 2u * piece) * f32(s) + scale(g + 2u * piece + 1u) * f32(t));
    }
    return scale(g + 4u * piece / (GROUP / 8u)) * x.scale * f32(s + t);
}
