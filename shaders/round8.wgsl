// x in eight bits, thirty-two channels of a row by themselves: s = max |x| / 127, q = round(x / s). NORM: of x · gamma, beside the sum
// of squares of x, by which a product completes an RMS norm. One invocation for each thirty-two.
struct Params {
    m: u32,      // rows of x
    k: u32,      // its channels
    blocks: u32, // of eight channels
    pieces: u32, // of thirty-two
}
struct Eight { lo: vec4f, hi: vec4f }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<xload>;        // [M, k]
@group(0) @binding(2) var<storage, read_write> y: array<vec4u>;  // [M, pieces, 3] 32 signed bytes, low first; then f32 s, Σ q, Σ x², 0

// The bits of |v|, in whose order NaN comes last: max of floats may lose it.
fn magnitudes(v: Eight) -> vec4u {
    return max(bitcast<vec4u>(v.lo) & vec4u(0x7fffffffu), bitcast<vec4u>(v.hi) & vec4u(0x7fffffffu));
}

fn codes(v: vec4f, inverse: f32) -> vec4u {
    return vec4u(vec4i(clamp(round(v * inverse), vec4f(-127.0), vec4f(127.0)))) & vec4u(255u);
}

fn bytes(q: vec4u) -> u32 {
    return q.x | (q.y << 8u) | (q.z << 16u) | (q.w << 24u);
}

// Eight channels in two words: NIBBLES the even ones, then the odd ones, as the nibbles of a word lie under a mask.
fn words(v: Eight, inverse: f32) -> vec2u {
    let lo = codes(v.lo, inverse);
    let hi = codes(v.hi, inverse);
    if (NIBBLES) {
        return vec2u(bytes(vec4u(lo.xz, hi.xz)), bytes(vec4u(lo.yw, hi.yw)));
    }
    return vec2u(bytes(lo), bytes(hi));
}

fn sum4(q: vec4u) -> i32 {
    let one = 0x01010101u;
    return dot4I8Packed(q.x, one) + dot4I8Packed(q.y, one) + dot4I8Packed(q.z, one) + dot4I8Packed(q.w, one);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let i = id.y * groups.x * 64u + id.x;
    if (i >= p.m * p.pieces) { return; }
    let m = i / p.pieces;
    let c8 = 4u * (i % p.pieces);
    var a = eight(m, c8);
    var b = eight(m, c8 + 1u);
    var c = eight(m, c8 + 2u);
    var d = eight(m, c8 + 3u);
    var square = 0.0;
    if (NORM) {
        square = (squares(a) + squares(b)) + (squares(c) + squares(d));
        a = scaled(a, c8);
        b = scaled(b, c8 + 1u);
        c = scaled(c, c8 + 2u);
        d = scaled(d, c8 + 3u);
    }
    let most = max(max(magnitudes(a), magnitudes(b)), max(magnitudes(c), magnitudes(d)));
    let top = max(max(most.x, most.y), max(most.z, most.w));
    // Where 127 / top would overflow, all is zero; what is not finite is seen in s.
    let inside = top > 0x04000000u && top < 0x7f800000u;
    let inverse = select(0.0, 127.0 / bitcast<f32>(top), inside);
    let s = select(select(0u, top, top >= 0x7f800000u), bitcast<u32>(bitcast<f32>(top) / 127.0), inside);
    let lo = vec4u(words(a, inverse), words(b, inverse));
    let hi = vec4u(words(c, inverse), words(d, inverse));
    y[3u * i] = lo;
    y[3u * i + 1u] = hi;
    y[3u * i + 2u] = vec4u(s, bitcast<u32>(f32(sum4(lo) + sum4(hi))), bitcast<u32>(square), 0u);
}
