// What becomes of a sum of a convolution: y[m, n0 + n] = activation(v + bias[n0 + n] + time embedding) + residual[m, n0 + n].
@group(0) @binding(2) var<storage, read> bias: array<f32>;       // [n_total]
@group(0) @binding(3) var<storage, read> residual: array<act>;   // [B, out_h, out_w, n_total]
@group(0) @binding(4) var<storage, read_write> y: array<act>;    // [B, out_h, out_w, n_total]

fn store(m: u32, n: u32, v: f32) {
    var r = v;
    if (BIAS) { r += bias[p.n0 + n]; }
    r += shift(m / (p.out_h * p.out_w), p.n0 + n);
    r = activation(r);
    let i = m * p.n_total + p.n0 + n;
    if (RESIDUAL) { r += f32(residual[i]); }
    y[i] = act(r);
}
