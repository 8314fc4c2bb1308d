// As reference/gather.wgsl, four neighbouring channels each: c is a multiple of four.
struct Params {
    n: u32, // elements of y
    c: u32, // channels
    pad0: u32,
    pad1: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<act>;         // [.., c]
@group(0) @binding(2) var<storage, read> columns: array<vec4u>; // [c/4]
@group(0) @binding(3) var<storage, read_write> y: array<act4>;  // [.., c/4]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let i = id.y * groups.x * 64u + id.x;
    if (i >= p.n / 4u) { return; }
    let row = i / (p.c / 4u) * p.c;
    let at = row + min(columns[i % (p.c / 4u)], vec4u(p.c - 1u));
    y[i] = act4(x[at.x], x[at.y], x[at.z], x[at.w]);
}
