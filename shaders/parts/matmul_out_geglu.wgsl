// What becomes of a product with a weight in two halves, v and g of each row: y[m, n] = (v + bias[n]) · activation(g + bias[N/2 + n]).
// An invocation stores a value, and later multiplies it by its gate: rows_paired.wgsl has them in the tile of one invocation.
@group(0) @binding(2) var<storage, read> bias: array<f32>;       // [n_total]
@group(0) @binding(3) var<storage, read_write> y: array<out>;    // [M, n_total / 2]

fn store(m: u32, n: u32, v: f32) {
    let row = row_of(n);
    let half = p.n_total / 2u;
    var r = v;
    if (BIAS) { r += bias[row]; }
    let i = m * half + row % half;
    if (row < half) {
        y[i] = out(r);
    } else {
        y[i] = out(f32(y[i]) * activation(r));
    }
}
