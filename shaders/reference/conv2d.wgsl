// y[b, oy, ox, n0 + n] = activation(Σ_{ky, kx, c} X[b, oy·stride + ky − before, ox·stride + kx − before, c]
//     · w[n, ky·side + kx, c] + bias[n0 + n] + shift(b, n0 + n)) + residual[b, oy, ox, n0 + n]
// where X is the input, each pixel doubled in both directions if up = 1, and zero outside. One output each.
struct Params {
    m0: u32,      // first output pixel of this dispatch (of all pixels of the batch)
    m: u32,       // one past its last output pixel
    n: u32,       // rows of w in this window
    n0: u32,      // first row of this window
    n_total: u32, // channels of y
    in_h: u32,
    in_w: u32,
    out_h: u32,
    out_w: u32,
    ca: u32,      // channels of x
    cb: u32,      // channels of the second input, 0 without
    side: u32,    // taps in each direction
    stride: u32,
    up: u32,      // 1 if the input is doubled in both directions first
    before: u32,  // zeros before the first row and column
    steps: u32,   // rows of the table of time embeddings
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<xload>;        // [B, in_h, in_w, ca]
@group(0) @binding(2) var<storage, read> bias: array<f32>;       // [n_total]
@group(0) @binding(3) var<storage, read> residual: array<act>;   // [B, out_h, out_w, n_total]
@group(0) @binding(4) var<storage, read_write> y: array<act>;    // [B, out_h, out_w, n_total]

@compute @workgroup_size(WG_X)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let item = id.y * groups.x * WG_X + id.x;
    let m = p.m0 + item / p.n;
    let n = item % p.n;
    if (m >= p.m) { return; }
    let ox = m % p.out_w;
    let oy = m / p.out_w % p.out_h;
    let b = m / p.out_w / p.out_h;
    var sum = 0.0;
    for (var tap = 0u; tap < p.side * p.side; tap++) {
        let iy = i32(oy * p.stride + tap / p.side) - i32(p.before);
        let ix = i32(ox * p.stride + tap % p.side) - i32(p.before);
        if (iy < 0 || ix < 0 || iy >= i32(p.in_h << p.up) || ix >= i32(p.in_w << p.up)) { continue; }
        let pixel = (b * p.in_h + (u32(iy) >> p.up)) * p.in_w + (u32(ix) >> p.up);
        for (var c = 0u; c < p.ca + p.cb; c++) {
            sum += input1(pixel, c) * weight(n, tap, c);
        }
    }
    if (BIAS) { sum += bias[p.n0 + n]; }
    sum = activation(sum + shift(b, p.n0 + n));
    let i = m * p.n_total + p.n0 + n;
    if (RESIDUAL) { sum += f32(residual[i]); }
    y[i] = act(sum);
}
