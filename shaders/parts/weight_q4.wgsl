// Packed INT4, groupwise: w[row, tap, c] = s · (q − 8) · (1 + cubic · (q − 8)²), q a nibble, s an f16 per group
// of GROUP channels of one tap.
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
@group(1) @binding(1) var<storage, read> w_words: array<u32>;  // [rows, row_blocks] eight nibbles, low first
@group(1) @binding(2) var<storage, read> w_scales: array<u32>; // [rows, row_groups] f16, two per word

fn weight_scale(row: u32, tap: u32, c8: u32) -> f32 {
    let g = row * info.row_groups + tap * info.tap_groups + c8 / (GROUP / 8u);
    let pair = unpack2x16float(w_scales[g >> 1u]);
    return select(pair.x, pair.y, (g & 1u) == 1u);
}

// s · q · (1 + cubic · q²), where held is s and s · cubic: two operations more than s · q.
fn weight_level(q: vec4f, held: vec2f) -> vec4f {
    if (CUBIC) {
        return q * fma(vec4f(held.y), q * q, vec4f(held.x));
    }
    return held.x * q;
}

// Blocks of eight that share what `weight_held` reads.
const HELD = GROUP / 8u;

fn weight_held(row: u32, tap: u32, c8: u32) -> vec2f {
    let s = weight_scale(row, tap, c8);
    return vec2f(s, s * weight_cubic(row));
}

fn weight8_of(row: u32, tap: u32, c8: u32, held: vec2f) -> Eight {
    let word = w_words[row * info.row_blocks + tap * info.tap_blocks + c8];
    let lo = vec4f((vec4u(word) >> vec4u(0u, 4u, 8u, 12u)) & vec4u(15u)) - 8.0;
    let hi = vec4f((vec4u(word) >> vec4u(16u, 20u, 24u, 28u)) & vec4u(15u)) - 8.0;
    return Eight(weight_level(lo, held), weight_level(hi, held));
}

fn weight8(row: u32, tap: u32, c8: u32) -> Eight {
    return weight8_of(row, tap, c8, weight_held(row, tap, c8));
}

fn weight(row: u32, tap: u32, c: u32) -> f32 {
    let word = w_words[row * info.row_blocks + tap * info.tap_blocks + c / 8u];
    let q = f32((word >> (4u * (c % 8u))) & 15u) - 8.0;
    return weight_scale(row, tap, c / 8u) * (q + weight_cubic(row) * q * q * q);
}
