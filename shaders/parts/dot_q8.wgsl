// Packed INT8, groupwise, as weight_q8.wgsl has it, for products with a vector: thirty-two channels in two fetches of sixteen
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
@group(1) @binding(1) var<storage, read> w_words: array<vec4u>; // [rows, row_blocks / 2] 16 bytes, low first
@group(1) @binding(2) var<storage, read> w_scales: array<u32>;  // [rows, row_groups] f16, two per word

// The four signed bytes of a word: the bits of 2^23 + 128 + q, less as much.
fn signed_bytes(word: u32) -> vec4f {
    let bits = ((vec4u(word ^ 0x80808080u) >> vec4u(0u, 8u, 16u, 24u)) & vec4u(255u)) | vec4u(0x4b000000u);
    return bitcast<vec4f>(bits) - 8388736.0;
}

fn scale(g: u32) -> f32 {
    let pair = unpack2x16float(w_scales[g >> 1u]);
    return select(pair.x, pair.y, (g & 1u) == 1u);
}

// A row of a weight whose first word and first word of scales are these.
fn row_at(words: u32, scales: u32, row: u32, cubic: f32) -> Row {
    return Row(words + row * (info.row_blocks / 2u), 2u * scales + row * info.row_groups, cubic);
}

// Σ w[row, 32 · piece + i] · x[i]. Groups of sixteen channels have two scales in a piece.
fn dot32(row: Row, piece: u32, x: Piece) -> f32 {
    let i = row.words + 2u * piece;
    let u = w_words[i];
    let v = w_words[i + 1u];
    var s = signed_bytes(u.x) * x.a.lo + signed_bytes(u.y) * x.a.hi;
    s += signed_bytes(u.z) * x.b.lo + signed_bytes(u.w) * x.b.hi;
    var t = signed_bytes(v.x) * x.c.lo + signed_bytes(v.y) * x.c.hi;
    t += signed_bytes(v.z) * x.d.lo + signed_bytes(v.w) * x.d.hi;
    let g = row.groups;
    if (GROUP == 16u) {
        let h = scale(g + 2u * piece) * s + scale(g + 2u * piece + 1u) * t;
        return (h.x + h.y) + (h.z + h.w);
    }
    s += t;
    return scale(g + 4u * piece / (GROUP / 8u)) * ((s.x + s.y) + (s.z + s.w));
}
