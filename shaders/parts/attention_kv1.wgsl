// Keys and values as their memory holds them, one channel.
@group(0) @binding(2) var<storage, read> k: array<act>; // [B, sk, kv_heads · d]
@group(0) @binding(3) var<storage, read> v: array<act>; // [B, sk, kv_heads · d]

fn key1(at: u32) -> f32 { return f32(k[at]); }
fn value1(at: u32) -> f32 { return f32(v[at]); }
