// y[b] = [sin(t·f), cos(t·f)] or, with p.cos_first, [cos, sin]: diffusers' get_timestep_embedding, one element
// each. f comes from the host; an odd last channel is zero.
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
    if (i >= p.batch * p.dim) { return; }
    let c = i % p.dim;
    if (c >= 2u * p.half) {
        y[i] = act(0.0);
        return;
    }
    let both = sin_cos(t[i / p.dim] * freq[c % p.half]);
    let first = c < p.half;
    y[i] = act(select(both.x, both.y, first == (p.cos_first == 1u)));
}
