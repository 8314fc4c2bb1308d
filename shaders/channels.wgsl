// As reference/channels.wgsl, four neighbouring channels each: c is a multiple of four.
struct Params {
    n: u32,     // elements of y
    c: u32,     // channels
    item: u32,  // elements of one item of the batch
    steps: u32, // rows of the table
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<act4>;       // [B, .., c/4]
@group(0) @binding(2) var<storage, read> table: array<tab4>;   // [steps, c/4]
@group(0) @binding(3) var<storage, read> rows: array<u32>;     // [B]
@group(0) @binding(4) var<storage, read_write> y: array<act4>; // [B, .., c/4]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let i = id.y * groups.x * 64u + id.x;
    if (i >= p.n / 4u) { return; }
    let c = p.c / 4u;
    let row = min(rows[i / (p.item / 4u)], p.steps - 1u);
    y[i] = act4(vec4f(x[i]) + vec4f(table[row * c + i % c]));
}
