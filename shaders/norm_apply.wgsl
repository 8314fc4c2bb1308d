// Group norm, last of three: y = activation((x − mean) · gamma / deviation + beta), four channels each.
struct Params {
    pixels: u32, // positions of one batch item that share statistics (1 for layer and RMS norm)
    c: u32,      // channels
    ca: u32,     // channels of the first part, c if there is one part
    groups: u32, // groups of channels
    chunk: u32,  // positions in a slice
    slices: u32, // slices of one batch item
    n: u32,      // items of work
    eps: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(3) var<storage, read> beta: array<vec4f>;    // [c/4]
@group(0) @binding(4) var<storage, read> coef: array<vec4f>;    // [B, (mean, gamma / deviation), c/4]
@group(0) @binding(5) var<storage, read_write> y: array<act4>;  // [B, pixels, c/4]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let item = id.y * groups.x * 64u + id.x;
    if (item >= p.n) { return; }
    let cells = p.c / 4u;
    let c4 = item % cells;
    let row = item / cells;
    let i = row / p.pixels * 2u * cells + c4;
    let v = (load(row, c4) - coef[i]) * coef[i + cells] + beta[c4];
    y[item] = act4(vec4f(activation(v.x), activation(v.y), activation(v.z), activation(v.w)));
}
