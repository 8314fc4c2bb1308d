// g[i, j] += Σ_m X[m, k0 + i] · X[m, k0 + j] for j ≤ i, where X [M, taps · ca] has a row for each output
// pixel of a convolution and a column for each (tap, channel). What lies above the diagonal stays as it is.
// One element each.
struct Params {
    m0: u32,     // first row of this dispatch
    m: u32,      // one past its last
    k0: u32,     // first column
    k: u32,      // number of columns
    in_h: u32,
    in_w: u32,
    out_h: u32,
    out_w: u32,
    ca: u32,     // channels of x
    side: u32,   // taps in each direction
    stride: u32,
    up: u32,     // 1 if the input is doubled in both directions first
    before: u32, // zeros before the first row and column
    every: u32,  // 1, or n to add up every nth row
    pad1: u32,
    pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<xload>;       // [B, in_h, in_w, ca]
@group(0) @binding(2) var<storage, read_write> g: array<f32>;   // [k, k]

fn element(at: Pixel, column: u32) -> f32 {
    let tap = column / p.ca;
    let found = place(at, vec2u(tap % p.side, tap / p.side));
    return select(0.0, input1(found.pixel, column % p.ca), found.inside);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let item = id.y * groups.x * 64u + id.x;
    let i = item / p.k;
    let j = item % p.k;
    if (i >= p.k || j > i) { return; }
    var sum = 0.0;
    for (var m = p.m0; m < p.m; m += p.every) {
        sum += element(pixel(m), p.k0 + i) * element(pixel(m), p.k0 + j);
    }
    g[item] += sum;
}
