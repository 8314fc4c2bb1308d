// The same as matmul_vec.wgsl for subgroups of eight lanes, one to a workgroup, on drivers where a load is a loop over
// the lanes: each lane has two rows of w of its own and loads one block in eight of x, which goes around by broadcast.
enable subgroups;

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

// Blocks between two readings of what a group shares; groups that do not tile eight blocks are read for each block.
const STRIDE = select(1u, HELD, 8u % HELD == 0u || HELD % 8u == 0u);

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let n = (group.y * groups.x + group.x) * 16u + lane * 2u;
    let na = min(n, p.n - 1u);
    let nb = min(n + 1u, p.n - 1u);
    let m = group.z;
    let last = p.blocks - 1u;
    var sum = vec2f();
    var ha: vec2f;
    var hb: vec2f;
    for (var first = 0u; first < p.blocks; first += 8u) {
        // Blocks beyond the end are the last one times zero.
        let own = load8(m * p.k, min(first + lane, last), p.k);
        let lo = select(vec4f(), own.lo, first + lane <= last);
        let hi = select(vec4f(), own.hi, first + lane <= last);
        var c8 = first;
        ha = weight_held(na, 0u, c8);
        hb = weight_held(nb, 0u, c8);
        sum += both(na, nb, c8, ha, hb, subgroupBroadcast(lo, 0u), subgroupBroadcast(hi, 0u));
        c8 = min(first + 1u, last);
        if (1u % STRIDE == 0u) {
            ha = weight_held(na, 0u, c8);
            hb = weight_held(nb, 0u, c8);
        }
        sum += both(na, nb, c8, ha, hb, subgroupBroadcast(lo, 1u), subgroupBroadcast(hi, 1u));
        c8 = min(first + 2u, last);
        if (2u % STRIDE == 0u) {
            ha = weight_held(na, 0u, c8);
            hb = weight_held(nb, 0u, c8);
        }
        sum += both(na, nb, c8, ha, hb, subgroupBroadcast(lo, 2u), subgroupBroadcast(hi, 2u));
        c8 = min(first + 3u, last);
        if (3u % STRIDE == 0u) {
            ha = weight_held(na, 0u, c8);
            hb = weight_held(nb, 0u, c8);
        }
        sum += both(na, nb, c8, ha, hb, subgroupBroadcast(lo, 3u), subgroupBroadcast(hi, 3u));
        c8 = min(first + 4u, last);
        if (4u % STRIDE == 0u) {
            ha = weight_held(na, 0u, c8);
            hb = weight_held(nb, 0u, c8);
        }
        sum += both(na, nb, c8, ha, hb, subgroupBroadcast(lo, 4u), subgroupBroadcast(hi, 4u));
        c8 = min(first + 5u, last);
        if (5u % STRIDE == 0u) {
            ha = weight_held(na, 0u, c8);
            hb = weight_held(nb, 0u, c8);
        }
        sum += both(na, nb, c8, ha, hb, subgroupBroadcast(lo, 5u), subgroupBroadcast(hi, 5u));
        c8 = min(first + 6u, last);
        if (6u % STRIDE == 0u) {
            ha = weight_held(na, 0u, c8);
            hb = weight_held(nb, 0u, c8);
        }
        sum += both(na, nb, c8, ha, hb, subgroupBroadcast(lo, 6u), subgroupBroadcast(hi, 6u));
        c8 = min(first + 7u, last);
        if (7u % STRIDE == 0u) {
            ha = weight_held(na, 0u, c8);
            hb = weight_held(nb, 0u, c8);
        }
        sum += both(na, nb, c8, ha, hb, subgroupBroadcast(lo, 7u), subgroupBroadcast(hi, 7u));
    }
    for (var i = 0u; i < min(2u, p.n - min(n, p.n)); i++) {
        store(m, n + i, sum[i]);
    }
}

// Eight channels of x times those of two rows of w.
fn both(na: u32, nb: u32, c8: u32, ha: vec2f, hb: vec2f, lo: vec4f, hi: vec4f) -> vec2f {
    let a = weight8_of(na, 0u, c8, ha);
    let b = weight8_of(nb, 0u, c8, hb);
    return vec2f(dot(lo, a.lo) + dot(hi, a.hi), dot(lo, b.lo) + dot(hi, b.hi));
}

fn store(m: u32, n: u32, v: f32) {
    var r = v;
    if (BIAS) { r += bias[p.n0 + n]; }
    r = activation(r);
    let i = m * p.n_total + p.n0 + n;
    if (RESIDUAL) { r += f32(residual[i]); }
    y[i] = out(r);
}
