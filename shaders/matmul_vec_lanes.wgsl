// The same as matmul_vec.wgsl for subgroups of eight lanes, one to a workgroup, on drivers where a load is a loop over
// the lanes: each lane has two rows of w of its own, thirty-two channels in a fetch, and loads one block in eight of x, which
// goes around by broadcast.
enable subgroups;

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

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let n = (group.y * groups.x + group.x) * 16u + lane * 2u;
    let na = row_at(0u, 0u, min(n, p.n - 1u), info.cubic);
    let nb = row_at(0u, 0u, min(n + 1u, p.n - 1u), info.cubic);
    let m = group.z;
    let last = p.blocks - 1u;
    var sum = vec2f();
    for (var first = 0u; first < p.blocks; first += 8u) {
        // Blocks beyond the end are the last one times zero.
        let own = load8(m * p.k, min(first + lane, last), p.k);
        let lo = select(vec4f(), own.lo, first + lane <= last);
        let hi = select(vec4f(), own.hi, first + lane <= last);
        let u = Piece(
            Eight(subgroupBroadcast(lo, 0u), subgroupBroadcast(hi, 0u)),
            Eight(subgroupBroadcast(lo, 1u), subgroupBroadcast(hi, 1u)),
            Eight(subgroupBroadcast(lo, 2u), subgroupBroadcast(hi, 2u)),
            Eight(subgroupBroadcast(lo, 3u), subgroupBroadcast(hi, 3u)),
        );
        let v = Piece(
            Eight(subgroupBroadcast(lo, 4u), subgroupBroadcast(hi, 4u)),
            Eight(subgroupBroadcast(lo, 5u), subgroupBroadcast(hi, 5u)),
            Eight(subgroupBroadcast(lo, 6u), subgroupBroadcast(hi, 6u)),
            Eight(subgroupBroadcast(lo, 7u), subgroupBroadcast(hi, 7u)),
        );
        let piece = first / 4u;
        let next = min(first + 4u, last) / 4u;
        sum += vec2f(dot32(na, piece, u), dot32(nb, piece, u));
        sum += vec2f(dot32(na, next, v), dot32(nb, next, v));
    }
    for (var i = 0u; i < min(2u, p.n - min(n, p.n)); i++) {
        store(m, n + i, sum[i]);
    }
}
