// The same as matmul.wgsl for adapters with real workgroup memory: see parts/tile64.wgsl.
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

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let n = group.x * 64u;
    let m = p.m0 + group.y * 64u;
    let tx = local % 8u;
    let ty = local / 8u;
    // The first 32 invocations fetch x, the others w: a quad and one of two blocks of eight k each.
    let quad = local % 32u / 2u;
    let half = local % 2u;
    split = group.z;
    let span = (p.blocks + 4u * groups.z - 1u) / (4u * groups.z) * 4u;
    let end = min(p.blocks, (split + 1u) * span);
    var s = Sums();
    for (var block = split * span; block < end; block += 2u) {
        let c8 = block + half;
        workgroupBarrier();
        if (local < 32u) {
            let i = m + quad * 4u;
            tile_put(0u, quad, half, row8(i, c8), row8(i + 1u, c8), row8(i + 2u, c8), row8(i + 3u, c8));
        } else {
            let j = n + quad * 4u;
            tile_put(
                1u, quad, half,
                column8(j, c8), column8(j + 1u, c8), column8(j + 2u, c8), column8(j + 3u, c8),
            );
        }
        workgroupBarrier();
        tile_multiply(&s, tx, ty);
    }
    tile_store(&s, m, n, tx, ty);
}
