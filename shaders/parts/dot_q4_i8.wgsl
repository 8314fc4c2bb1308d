// Packed INT4, groupwise and uniform, as weight_q4.wgsl has it, times x in eight bits (round8.wgsl): thirty-two channels in one fetch of
// sixteen bytes, their sum exact in i32. One tap alone.
const_assert !CUBIC;
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
// Thirty-two channels of x in eight bits, of each eight the even ones, then the odd ones; their scale and their sum.
struct Piece { lo: vec4u, hi: vec4u, scale: f32, sum: i32 }
// Where a row begins, in w_words and among the scales.
struct Row { words: u32, groups: u32, cubic: f32 }

@group(1) @binding(0) var<uniform> info: WeightInfo;
@group(1) @binding(1) var<storage, read> w_words: array<vec4u>; // [rows, row_blocks / 4] 32 nibbles, low first
@group(1) @binding(2) var<storage, read> w_scales: array<u32>;  // [rows, row_groups] f16, two per word

// Σ q · x over nibbles q of 0 to 15: of each word the even ones under the mask, then the odd ones.
fn nibbles(words: vec4u, x: Piece) -> i32 {
    let even = words & vec4u(0x0f0f0f0fu);
    let odd = (words >> vec4u(4u)) & vec4u(0x0f0f0f0fu);
    var s = dot4I8Packed(even.x, x.lo.x) + dot4I8Packed(odd.x, x.lo.y);
    s += dot4I8Packed(even.y, x.lo.z) + dot4I8Packed(odd.y, x.lo.w);
    s += dot4I8Packed(even.z, x.hi.x) + dot4I8Packed(odd.z, x.hi.y);
    return s + dot4I8Packed(even.w, x.hi.z) + dot4I8Packed(odd.w, x.hi.w);
}

// A row of a weight whose first word and first word of scales are these.
fn row_at(words: u32, scales: u32, row: u32, cubic: f32) -> Row {
    return Row(words + row * (info.row_blocks / 4u), 2u * scales + row * info.row_groups, cubic);
}

// Σ w[row, 32 · piece + i] · x[i]
fn dot32(row: Row, piece: u32, x: Piece) -> f32 {
    let g = row.groups + 4u * piece / (GROUP / 8u);
    let pair = unpack2x16float(w_scales[g >> 1u]);
    let s = nibbles(w_words[row.words + piece], x) - 8 * x.sum;
    return select(pair.x, pair.y, (g & 1u) == 1u) * x.scale * f32(s);
}
