// The same as matmul_pieces.wgsl for the two products of a gated unit (Shazeer 2020), whose weights lie side by side in memory:
// y = activation(x · w0ᵀ + bias0) · (x · w1ᵀ + bias1). Half of the ROWS of a group of lanes are rows of w0, the others the same
// rows of w1.
struct Params {
    k: u32,         // columns of x
    blocks: u32,    // blocks of eight k
    n: u32,         // rows of each weight
    pad: u32,
    words: vec2u,   // where each begins, in units of sixteen bytes
    scales: vec2u,  // where its scales begin, in units of four bytes
    cubic: vec4f,   // of each, and two unused
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<xload>;        // [M, k]
@group(0) @binding(2) var<storage, read> bias0: array<f32>;      // [n]
@group(0) @binding(3) var<storage, read> bias1: array<f32>;      // [n]
@group(0) @binding(4) var<storage, read_write> y: array<act>;    // [M, n]

const_assert ROWS > 1u;
const HALF = ROWS / 2u;

@compute @workgroup_size(WG_X)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = local % LANES;
    let first = ((group.y * groups.x + group.x) * (WG_X / LANES) + local / LANES) * HALF;
    // Of two rows: gate, up. Of four: gate, gate, up, up.
    let row = min(first + (vec4u(0u, 1u, 2u, 3u) % HALF), vec4u(p.n - 1u));
    let side = vec4u(0u, 1u, 2u, 3u) / HALF % 2u;
    let r0 = row_at(p.words.x, p.scales.x, row.x, p.cubic.x);
    let r1 = row_at(p.words[side.y], p.scales[side.y], row.y, p.cubic[side.y]);
    let r2 = row_at(p.words[side.z], p.scales[side.z], row.z, p.cubic[side.z]);
    let r3 = row_at(p.words.y, p.scales.y, row.w, p.cubic.y);
    let m = group.z;
    let sum = products(m, lane, local, r0, r1, r2, r3);
    // Lane i stores row i: two lanes are the least.
    for (var i = lane; i < HALF; i += LANES) {
        let n = first + i;
        if (n < p.n) {
            var gate = sum[i];
            var up = sum[HALF + i];
            if (BIAS) {
                gate += bias0[n];
                up += bias1[n];
            }
            y[m * p.n + n] = act(activation(gate) * up);
        }
    }
}
