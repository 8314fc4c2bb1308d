// The same as matmul.wgsl for few rows of x (decoding): LANES invocations share one output and add their
// parts up. Neighbouring lanes read neighbouring blocks of a row of w.
struct Params {
    m: u32,       // one past the last row of x of this dispatch
    n: u32,       // rows of w in this window
    k: u32,       // columns of x
    n0: u32,      // first row of this window
    n_total: u32, // columns of y
    blocks: u32,  // blocks of eight k
    m0: u32,      // its first row
    pad0: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<xload>;        // [M, k]
@group(0) @binding(2) var<storage, read> bias: array<f32>;       // [n_total]
@group(0) @binding(3) var<storage, read> residual: array<act>;   // [M, n_total]
@group(0) @binding(4) var<storage, read_write> y: array<out>;    // [M, n_total]

@compute @workgroup_size(WG_X)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = local % LANES;
    let n = (group.y * groups.x + group.x) * (WG_X / LANES) + local / LANES;
    let row = min(n, p.n - 1u);
    let m = group.z;
    var sum = 0.0;
    for (var c8 = lane; c8 < p.blocks; c8 += LANES) {
        let w = weight8(row, 0u, c8);
        let v = load8(m * p.k, c8, p.k);
        sum += dot(v.lo, w.lo) + dot(v.hi, w.hi);
    }
    sum = reduce_lanes(sum, local);
    if (lane != 0u || n >= p.n) { return; }
    if (BIAS) { sum += bias[p.n0 + n]; }
    sum = activation(sum);
    let i = m * p.n_total + p.n0 + n;
    if (RESIDUAL) { sum += f32(residual[i]); }
    y[i] = out(sum);
}
