// s[0, j] += Σ_m X[m, j], s[1, j] += Σ_m X[m, j]², s[2, j] += number of rows, where X [M, taps · ca] has a
// row for each output pixel of a convolution and a column for each (tap, channel). One column each.
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
    every: u32,  // unused
    pad1: u32,
    pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<xload>;       // [B, in_h, in_w, ca]
@group(0) @binding(2) var<storage, read_write> s: array<f32>;   // [3, k]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let j = id.y * groups.x * 64u + id.x;
    if (j >= p.k) { return; }
    let tap = vec2u(j / p.ca % p.side, j / p.ca / p.side);
    let channel = j % p.ca;
    var sum = 0.0;
    var square = 0.0;
    for (var m = p.m0; m < p.m; m++) {
        let at = place(pixel(m), tap);
        let v = select(0.0, input1(at.pixel, channel), at.inside);
        sum += v;
        square += v * v;
    }
    s[j] += sum;
    s[p.k + j] += square;
    s[2u * p.k + j] += f32(p.m - p.m0);
}
