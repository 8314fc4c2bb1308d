// Rotary embedding, one pair (i, i + D/2) each: turned by (start + s) · inv_freq[i].
struct Params {
    n: u32,     // invocations: pairs in x
    rows: u32,  // S, rows of one batch item
    heads: u32,
    half: u32,  // D/2
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<act>;        // [B, S, heads · D]
@group(0) @binding(2) var<storage, read> start: array<u32>;    // [1]
@group(0) @binding(3) var<storage, read> inv_freq: array<f32>; // [D/2]
@group(0) @binding(4) var<storage, read_write> y: array<act>;  // [B, S, heads · D]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let item = id.y * groups.x * 64u + id.x;
    if (item >= p.n) { return; }
    let head = item / p.half; // over batch, rows and heads
    let i = item % p.half;
    let position = start[0] + head / p.heads % p.rows;
    let turn = sin_cos(f32(position) * inv_freq[i]);
    let j = head * 2u * p.half + i;
    let lo = f32(x[j]);
    let hi = f32(x[j + p.half]);
    y[j] = act(lo * turn.y - hi * turn.x);
    y[j + p.half] = act(hi * turn.y + lo * turn.x);
}
