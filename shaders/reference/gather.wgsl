// y[.., i] = x[.., columns[i]]. One element each.
struct Params {
    n: u32, // elements of y
    c: u32, // channels
    pad0: u32,
    pad1: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<act>;       // [.., c]
@group(0) @binding(2) var<storage, read> columns: array<u32>; // [c]
@group(0) @binding(3) var<storage, read_write> y: array<act>; // [.., c]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let i = id.y * groups.x * 64u + id.x;
    if (i >= p.n) { return; }
    y[i] = x[i / p.c * p.c + min(columns[i % p.c], p.c - 1u)];
}
