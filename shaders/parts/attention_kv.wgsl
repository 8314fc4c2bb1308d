// Keys and values as their memory holds them: four neighbouring channels, at = position in fours.
@group(0) @binding(2) var<storage, read> k: array<act4>; // [B, sk, kv_heads · d / 4]
@group(0) @binding(3) var<storage, read> v: array<act4>; // [B, sk, kv_heads · d / 4]

fn key4(at: u32) -> vec4f { return vec4f(k[at]); }
fn value4(at: u32) -> vec4f { return vec4f(v[at]); }
