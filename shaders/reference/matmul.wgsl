// y[m, n0 + n] = activation(Σ_k x[m, k] · w[n, k] + bias[n0 + n]) + residual[m, n0 + n], or times it (MULTIPLY), one output
// each. INTO_CACHE: into row start[0] + m of y, if it has that.
struct Params {
    m: u32,       // one past the last row of x of this dispatch
    n: u32,       // rows of w in this window
    k: u32,       // columns of x
    n0: u32,      // first row of this window
    n_total: u32, // columns of y
    blocks: u32,  // blocks of eight k
    m0: u32,      // its first row
    context: u32, // rows of y, where that is a cache
    begins: vec4u, // first row of each weight of several, and one past the last
    cubic: vec4f, // of each
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<xload>;        // [M, k]
@group(0) @binding(2) var<storage, read> bias: array<f32>;       // [n_total]
@group(0) @binding(3) var<storage, read> residual: array<act>;   // [M, n_total]
@group(0) @binding(4) var<storage, read_write> y: array<out>;    // [M, n_total], or [context, n_total]
@group(0) @binding(5) var<storage, read> start: array<u32>;      // [1]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let item = id.y * groups.x * 64u + id.x;
    let m = p.m0 + item / p.n;
    let n = item % p.n;
    if (m >= p.m) { return; }
    var sum = 0.0;
    for (var k = 0u; k < p.k; k++) {
        sum += f32(x[m * p.k + k]) * weight(n, 0u, k);
    }
    if (BIAS) { sum += bias[p.n0 + n]; }
    sum = activation(sum);
    let i = m * p.n_total + p.n0 + n;
    if (RESIDUAL && MULTIPLY) { sum *= f32(residual[i]); }
    if (RESIDUAL && !MULTIPLY) { sum += f32(residual[i]); }
    if (!INTO_CACHE) {
        y[i] = out(sum);
    } else if (start[0] < p.context && m < p.context - start[0]) {
        y[i + start[0] * p.n_total] = out(sum);
    }
}
