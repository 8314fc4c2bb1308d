// The same as conv2d.wgsl for adapters that multiply matrices by subgroups: see parts/coop.wgsl. Rows are output pixels,
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

// Pixels of the input under the tap, one more than their index; 0 outside of the picture.
var<workgroup> under: array<u32, TILE>;

fn find(pixel: u32, tap: u32) -> u32 {
    let x0 = pixel % p.out_w * p.stride - p.before + tap % p.side;
    let y0 = pixel / p.out_w % p.out_h * p.stride - p.before + tap / p.side;
    let f = four(vec4u(pixel / (p.out_w * p.out_h) * p.in_h), vec4u(y0), vec4u(x0));
    return select(0u, f.at.x + 1u, f.inside.x);
}

// Workgroups of which part of the taps, of groups.z.
var<private> split: u32;

@compute @workgroup_size(WG_X)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let item = group.y * groups.x + group.x;
    let across = (p.n + TILE - 1u) / TILE;
    let n = item % across * TILE;
    let m = p.m0 + item / across * TILE;
    if (m >= p.m) { return; }
    let up = subgroup / 2u * SPAN;
    let left = subgroup % 2u * SPAN;
    let blocks = (p.ca + p.cb + 7u) / 8u;
    split = group.z;
    let taps = p.side * p.side;
    let span = (taps + groups.z - 1u) / groups.z;
    let end = min(taps, (split + 1u) * span);
    var s = Sums();
    for (var tap = split * span; tap < end; tap++) {
        workgroupBarrier();
        for (var i = local; i < TILE; i += WG_X) {
            under[i] = find(min(m + i, p.m - 1u), tap);
        }
        for (var block = 0u; block < blocks; block += 4u) {
            workgroupBarrier();
            for (var i = local; i < TILE * 4u; i += WG_X) {
                let at = i / 4u;
                let k8 = i % 4u;
                let c8 = min(block + k8, blocks - 1u);
                let pixel = under[at];
                put_row(at, k8, pixel8(max(pixel, 1u) - 1u, c8, pixel > 0u && block + k8 < blocks));
                put_column(at, k8, weight8(min(n + at, p.n - 1u), tap, c8));
            }
            workgroupBarrier();
            coop_multiply(&s, up, left);
        }
    }
    coop_store(&s, m + up, n + left, subgroup, lane);
}
