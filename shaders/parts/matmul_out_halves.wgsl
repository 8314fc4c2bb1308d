// What becomes of a product with a weight in two halves, a and b of each row, one of which gates the other:
// y[m, n] = (a + bias[n]) · activation(b + bias[N/2 + n]), or, with GATE_FIRST, activation(a + bias[n]) · (b + bias[N/2 + n]).
// An invocation stores what the first half makes, and later multiplies it by what the second does: rows_paired.wgsl has both in the
// tile of one invocation.
@group(0) @binding(2) var<storage, read> bias: array<f32>;       // [n_total]
@group(0) @binding(3) var<storage, read_write> y: array<out>;    // [M, n_total / 2]

fn store(m: u32, n: u32, v: f32) {
    let row = row_of(n);
    let half = p.n_total / 2u;
    let first = row < half;
    var r = v;
    if (BIAS) { r += bias[row]; }
    if (first == GATE_FIRST) { r = activation(r); }
    let i = m * half + row % half;
    if (first) {
        y[i] = out(r);
    } else {
        y[i] = out(f32(y[i]) * r);
    }
}
