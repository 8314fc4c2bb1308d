// Keys and values in eight bits, as kv_cache_q8.wgsl writes them: four neighbouring channels, at = position in fours.
@group(0) @binding(2) var<storage, read> k: array<u32>; // [sk, kv_heads, d / 4] signed bytes; [sk, kv_heads] f32 scales
@group(0) @binding(3) var<storage, read> v: array<u32>; // [..] as k

fn signed_bytes(word: u32) -> vec4f {
    return vec4f((vec4i(bitcast<i32>(word)) << vec4u(24u, 16u, 8u, 0u)) >> vec4u(24u));
}
// Where the scale of the head that `at` belongs to lies.
fn scale_of(at: u32) -> u32 {
    let d4 = p.d / 4u;
    return p.sk * p.kv_heads * d4 + at / d4;
}
fn key4(at: u32) -> vec4f { return bitcast<f32>(k[scale_of(at)]) * signed_bytes(k[at]); }
fn value4(at: u32) -> vec4f { return bitcast<f32>(v[scale_of(at)]) * signed_bytes(v[at]); }
