// Half-precision weights, unpacked without the shader-f16 feature.
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
@group(1) @binding(1) var<storage, read> w_words: array<vec4u>; // [rows, row_blocks] eight halves, low first

fn weight8(row: u32, tap: u32, c8: u32) -> Eight {
    let words = w_words[row * info.row_blocks + tap * info.tap_blocks + c8];
    return Eight(
        vec4f(unpack2x16float(words.x), unpack2x16float(words.y)),
        vec4f(unpack2x16float(words.z), unpack2x16float(words.w)),
    );
}

// Nothing is shared by a whole group here.
const HELD = 1048576u;

fn weight_held(row: u32, tap: u32, c8: u32) -> vec2f {
    return vec2f();
}

fn weight8_of(row: u32, tap: u32, c8: u32, held: vec2f) -> Eight {
    return weight8(row, tap, c8);
}

fn weight(row: u32, tap: u32, c: u32) -> f32 {
    let words = w_words[row * info.row_blocks + tap * info.tap_blocks + c / 8u];
    return unpack2x16float(words[(c % 8u) / 2u])[c & 1u];
}
