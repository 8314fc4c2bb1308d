// The same as conv2d.wgsl for adapters with real workgroup memory: see parts/tile64.wgsl. Rows are output pixels,
// columns output channels, k runs over the blocks of eight channels of each tap.
struct Params {
    m0: u32,      // first output pixel of this dispatch (of all pixels of the batch)
    m: u32,       // one past its last output pixel
    n: u32,       // rows of w in this window
    n0: u32,      // first row of this window
    n_total: u32, // channels of y
    in_h: u32,
    in_w: u32,
    out_h: u32,
    out_w: u32,
    ca: u32,      // channels of x
    cb: u32,      // channels of the second input, 0 without
    side: u32,    // taps in each direction
    stride: u32,
    up: u32,      // 1 if the input is doubled in both directions first
    before: u32,  // zeros before the first row and column
    steps: u32,   // rows of the table of time embeddings
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<xload>;        // [B, in_h, in_w, ca]

// Workgroups of which part of the taps, of groups.z.
var<private> split: u32;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let item = group.y * groups.x + group.x;
    let across = (p.n + 63u) / 64u;
    let n = item % across * 64u;
    let m = p.m0 + item / across * 64u;
    if (m >= p.m) { return; }
    let tx = local % 8u;
    let ty = local / 8u;
    // The first 32 invocations fetch x, the others w: a quad and one of two blocks of eight channels each.
    let quad = local % 32u / 2u;
    let half = local % 2u;
    let row = min(n + quad * 4u + vec4u(0u, 1u, 2u, 3u), vec4u(p.n - 1u));
    let pixel = min(m + quad * 4u + vec4u(0u, 1u, 2u, 3u), vec4u(p.m - 1u));
    let x0 = pixel % p.out_w * p.stride - p.before;
    let y0 = pixel / p.out_w % p.out_h * p.stride - p.before;
    let base = pixel / (p.out_w * p.out_h) * p.in_h;
    let blocks = (p.ca + p.cb + 7u) / 8u;
    split = group.z;
    let taps = p.side * p.side;
    let span = (taps + groups.z - 1u) / groups.z;
    let end = min(taps, (split + 1u) * span);
    var s = Sums();
    for (var tap = split * span; tap < end; tap++) {
        let f = four(base, y0 + tap / p.side, x0 + tap % p.side);
        for (var block = 0u; block < blocks; block += 2u) {
            let c8 = min(block + half, blocks - 1u);
            workgroupBarrier();
            if (local < 32u) {
                let inside = f.inside & vec4<bool>(block + half < blocks);
                tile_put(
                    0u, quad, half,
                    pixel8(f.at.x, c8, inside.x), pixel8(f.at.y, c8, inside.y),
                    pixel8(f.at.z, c8, inside.z), pixel8(f.at.w, c8, inside.w),
                );
            } else {
                tile_put(
                    1u, quad, half,
                    weight8(row.x, tap, c8), weight8(row.y, tap, c8),
                    weight8(row.z, tap, c8), weight8(row.w, tap, c8),
                );
            }
            workgroupBarrier();
            tile_multiply(&s, tx, ty);
        }
    }
    tile_store(&s, m, n, tx, ty);
}
