// dst[i] = value[i] in elements of four words; no float passes through a register as a float, so NaNs keep their bits.
struct Params {
    n: u32, // elements of type item
    pad0: u32,
    pad1: u32,
    pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> value: array<item>;      // [n]
@group(0) @binding(2) var<storage, read_write> dst: array<item>;  // [n]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let i = id.y * groups.x * 64u + id.x;
    if (i < p.n) { dst[i] = value[i]; }
}
