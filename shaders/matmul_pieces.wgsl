// The same as matmul.wgsl for few rows of x (decoding) on adapters with real lanes: LANES invocations share ROWS rows of w,
// thirty-two k at a time, which are sixteen bytes of INT4; what is fetched of x serves all of the rows. Neighbouring lanes
// read neighbouring pieces. NORM: x goes through an RMS norm first, x · gamma / √(mean of x² + ε), of which every group of lanes
// has the sum of squares as a by-product.
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

@compute @workgroup_size(WG_X)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = local % LANES;
    let first = ((group.y * groups.x + group.x) * (WG_X / LANES) + local / LANES) * ROWS;
    let n = min(first + vec4u(0u, 1u, 2u, 3u), vec4u(p.n - 1u));
    let r0 = row_at(0u, 0u, n.x, info.cubic);
    let r1 = row_at(0u, 0u, n.y, info.cubic);
    let r2 = row_at(0u, 0u, n.z, info.cubic);
    let r3 = row_at(0u, 0u, n.w, info.cubic);
    let m = group.z;
    let sum = products(m, lane, local, r0, r1, r2, r3);
    // Lane i stores row i: two lanes are the least.
    for (var i = lane; i < ROWS; i += LANES) {
        if (first + i < p.n) {
            store(m, first + i, sum[i]);
        }
    }
}
