// x in eight bits, thirty-two channels of a row by themselves: s = max |x| / 127, q = round(x / s). NORM: of x · gamma, beside the sum
// of squares of x. One invocation for each word of y.
struct Params {
    m: u32,      // rows of x
    k: u32,      // its channels
    blocks: u32, // of eight channels
    pieces: u32, // of thirty-two
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<xload>;      // [M, k]
@group(0) @binding(2) var<storage, read_write> y: array<u32>;  // [M, pieces, 12] 32 signed bytes, low first; then f32 s, Σ q, Σ x², 0
@group(0) @binding(3) var<storage, read> gamma: array<f32>;    // [k]

fn value(m: u32, c: u32) -> f32 {
    if (c >= p.k) { return 0.0; }
    if (NORM) { return f32(x[m * p.k + c]) * gamma[c]; }
    return f32(x[m * p.k + c]);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let i = id.y * groups.x * 64u + id.x;
    if (i >= p.m * p.pieces * 12u) { return; }
    let m = i / (p.pieces * 12u);
    let first = i / 12u % p.pieces * 32u;
    let word = i % 12u;
    // Bits of |x|, in whose order NaN comes last.
    var top = 0u;
    var square = 0.0;
    for (var c = first; c < first + 32u; c++) {
        top = max(top, bitcast<u32>(value(m, c)) & 0x7fffffffu);
        if (c < p.k) { square += f32(x[m * p.k + c]) * f32(x[m * p.k + c]); }
    }
    let finite = top < 0x7f800000u;
    // Where 127 / top would overflow, all is zero.
    let inside = finite && top > 0x04000000u;
    var sum = 0;
    var bytes = 0u;
    for (var n = 0u; n < 32u; n++) {
        var q = 0;
        if (inside) { q = i32(clamp(round(value(m, first + n) * (127.0 / bitcast<f32>(top))), -127.0, 127.0)); }
        sum += q;
        // Its place among eight: NIBBLES the even ones, then the odd ones.
        var place = n % 8u;
        if (NIBBLES) { place = place / 2u + 4u * (place % 2u); }
        let at = n / 8u * 8u + place;
        if (at / 4u == word) { bytes |= (u32(q) & 255u) << (8u * (at % 4u)); }
    }
    var v = bytes;
    if (word == 8u) {
        v = top;
        if (finite) { v = 0u; }
        if (inside) { v = bitcast<u32>(bitcast<f32>(top) / 127.0); }
    }
    if (word == 9u) { v = bitcast<u32>(f32(sum)); }
    if (word == 10u) {
        v = 0u;
        if (NORM) { v = bitcast<u32>(square); }
    }
    y[i] = v;
}
