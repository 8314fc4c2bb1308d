// What becomes of a product: y[m, n0 + n] = activation(v + bias[n0 + n]) + residual[m, n0 + n], or times it (MULTIPLY).
// INTO_CACHE: y is a cache of keys or values, and m lies start[0] rows further down in it; rows beyond its end are dropped.
@group(0) @binding(2) var<storage, read> bias: array<f32>;       // [n_total]
@group(0) @binding(3) var<storage, read> residual: array<act>;   // [M, n_total]
@group(0) @binding(4) var<storage, read_write> y: array<out>;    // [M, n_total], or [context, n_total]
@group(0) @binding(5) var<storage, read> start: array<u32>;      // [1]

fn store(m: u32, n: u32, v: f32) {
    var r = v;
    if (BIAS) { r += bias[p.n0 + n]; }
    r = activation(r);
    var i = m * p.n_total + p.n0 + n;
    if (RESIDUAL) {
        let other = f32(residual[i]);
        if (MULTIPLY) { r *= other; } else { r += other; }
    }
    if (INTO_CACHE) {
        // Compared without the sum, which could wrap.
        if (start[0] >= p.context || m >= p.context - start[0]) { return; }
        i += start[0] * p.n_total;
    }
    y[i] = out(r);
}
