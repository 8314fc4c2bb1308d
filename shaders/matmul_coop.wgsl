// The same as matmul.wgsl for adapters that multiply matrices by subgroups: see parts/coop.wgsl.
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

// Eight k of a row of x, zeros beyond the last block.
fn row8(m: u32, c8: u32) -> Eight {
    let v = load8(min(m, p.m - 1u) * p.k, min(c8, p.blocks - 1u), p.k);
    let inside = c8 < p.blocks;
    return Eight(select(vec4f(), v.lo, inside), select(vec4f(), v.hi, inside));
}

fn column8(n: u32, c8: u32) -> Eight {
    return weight8(row_of(min(n, p.n - 1u)), 0u, min(c8, p.blocks - 1u));
}

// Workgroups of which part of k, of groups.z.
var<private> split: u32;

@compute @workgroup_size(WG_X)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let n = group.x * TILE;
    let m = p.m0 + group.y * TILE;
    let up = subgroup / 2u * SPAN;
    let left = subgroup % 2u * SPAN;
    split = group.z;
    let span = (p.blocks + 4u * groups.z - 1u) / (4u * groups.z) * 4u;
    let end = min(p.blocks, (split + 1u) * span);
    var s = Sums();
    for (var block = split * span; block < end; block += 4u) {
        workgroupBarrier();
        for (var i = local; i < TILE * 4u; i += WG_X) {
            let at = i / 4u;
            let k8 = i % 4u;
            put_row(at, k8, row8(m + at, block + k8));
            put_column(at, k8, column8(n + at, block + k8));
        }
        workgroupBarrier();
        coop_multiply(&s, up, left);
    }
    coop_store(&s, m + up, n + left, subgroup, lane);
}
