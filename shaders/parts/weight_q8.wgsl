// Packed INT8, groupwise and symmetric: w[row, tap, c] = s · q, q a signed byte, s an f16 per group of
// GROUP channels of one tap.
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
// Eight neighbouring channels.
struct Eight { lo: vec4f, hi: vec4f }

@group(1) @binding(0) var<uniform> info: WeightInfo;
@group(1) @binding(1) var<storage, read> w_words: array<vec2u>; // [rows, row_blocks] eight bytes, low first
@group(1) @binding(2) var<storage, read> w_scales: array<u32>;  // [rows, row_groups] f16, two per word

fn weight_scale(row: u32, tap: u32, c8: u32) -> f32 {
    let g = row * info.row_groups + tap * info.tap_groups + c8 / (GROUP / 8u);
    let pair = unpack2x16float(w_scales[g >> 1u]);
    return select(pair.x, pair.y, (g & 1u) == 1u);
}

// The four signed bytes of a word.
fn signed_bytes(word: u32) -> vec4f {
    return vec4f((vec4i(bitcast<i32>(word)) << vec4u(24u, 16u, 8u, 0u)) >> vec4u(24u));
}

// Blocks of eight that share what `weight_held` reads.
const HELD = GROUP / 8u;

fn weight_held(row: u32, tap: u32, c8: u32) -> vec2f {
    return vec2f(weight_scale(row, tap, c8), 0.0);
}

fn weight8_of(row: u32, tap: u32, c8: u32, held: vec2f) -> Eight {
    let words = w_words[row * info.row_blocks + tap * info.tap_blocks + c8];
    return Eight(held.x * signed_bytes(words.x), held.x * signed_bytes(words.y));
}

fn weight8(row: u32, tap: u32, c8: u32) -> Eight {
    return weight8_of(row, tap, c8, weight_held(row, tap, c8));
}

fn weight(row: u32, tap: u32, c: u32) -> f32 {
    let words = w_words[row * info.row_blocks + tap * info.tap_blocks + c / 8u];
    let q = signed_bytes(select(words.x, words.y, (c & 4u) != 0u))[c & 3u];
    return weight_scale(row, tap, c / 8u) * q;
}
