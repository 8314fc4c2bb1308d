// Keys and values in eight bits, as kv_cache_q8.wgsl writes them, one channel.
@group(0) @binding(2) var<storage, read> k: array<u32>; // [sk, kv_heads, d / 4] signed bytes; [sk, kv_heads] f32 scales
@group(0) @binding(3) var<storage, read> v: array<u32>; // [..] as k

fn byte_of(word: u32, c: u32) -> f32 { return f32(bitcast<i32>(word << (24u - 8u * c)) >> 24u); }
fn scale_of(at: u32) -> u32 { return p.sk * p.kv_heads * (p.d / 4u) + at / p.d; }
fn key1(at: u32) -> f32 { return bitcast<f32>(k[scale_of(at)]) * byte_of(k[at / 4u], at % 4u); }
fn value1(at: u32) -> f32 { return bitcast<f32>(v[scale_of(at)]) * byte_of(v[at / 4u], at % 4u); }
