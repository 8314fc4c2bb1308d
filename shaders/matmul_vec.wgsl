// The same as matmul.wgsl for few rows of x (decoding) on adapters whose lanes are a processor's: one output each.
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
    let n = (group.y * groups.x + group.x) * WG_X + local;
    if (n >= p.n) { return; }
    let m = group.z;
    var sum = 0.0;
    for (var first = 0u; first < p.blocks; first += HELD) {
        let held = weight_held(n, 0u, first);
        for (var c8 = first; c8 < min(first + HELD, p.blocks); c8++) {
            let w = weight8_of(n, 0u, c8, held);
            let v = load8(m * p.k, c8, p.k);
            sum += dot(v.lo, w.lo) + dot(v.hi, w.hi);
        }
    }
    store(m, n, sum);
}
