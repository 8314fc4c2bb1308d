// The same as reference/timestep.wgsl, a sine and its cosine in each invocation.
struct Params {
    batch: u32,
    dim: u32,       // channels of y
    half: u32,      // frequencies
    cos_first: u32, // 1: cosines come first
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> t: array<f32>;          // [batch]
@group(0) @binding(2) var<storage, read> freq: array<f32>;       // [half]
@group(0) @binding(3) var<storage, read_write> y: array<act>;    // [batch, dim]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let i = id.y * groups.x * 64u + id.x;
    let columns = (p.dim + 1u) / 2u;
    if (i >= p.batch * columns) { return; }
    let b = i / columns;
    let c = i % columns;
    if (c >= p.half) {
        y[b * p.dim + p.dim - 1u] = act(0.0);
        return;
    }
    let both = sin_cos(t[b] * freq[c]);
    let cos_first = p.cos_first == 1u;
    y[b * p.dim + c] = act(select(both.x, both.y, cos_first));
    y[b * p.dim + p.half + c] = act(select(both.y, both.x, cos_first));
}
