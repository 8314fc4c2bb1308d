// Σ_k x[m, k] · w[n, k]; see parts/matmul_out.wgsl for what becomes of it.
// For subgroups of eight lanes, one to a workgroup, on drivers where a load is a loop over the lanes (Mesa's software
// Vulkan): no number is loaded twice. Each lane loads one row of x in eight and eight rows of w; rows of x go around by
// broadcast. A tile is 16 rows (8 if not TALL) by 64 columns.
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

const ROWS = select(8u, 16u, TALL);

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let item = group.y * groups.x + group.x;
    let across = (p.n + 63u) / 64u;
    let n = item % across * 64u + lane * 8u;
    let m = p.m0 + item / across * ROWS;
    if (m >= p.m) { return; }
    let ln = p.n - 1u; // rows beyond the end read the last one and are not stored
    let n0 = min(n, ln); let n1 = min(n + 1u, ln); let n2 = min(n + 2u, ln); let n3 = min(n + 3u, ln);
    let n4 = min(n + 4u, ln); let n5 = min(n + 5u, ln); let n6 = min(n + 6u, ln); let n7 = min(n + 7u, ln);
    let x0 = min(m + lane, p.m - 1u) * p.k;
    let x1 = min(m + lane + 8u, p.m - 1u) * p.k;
    var a0 = vec4f(); var b0 = vec4f(); var a1 = vec4f(); var b1 = vec4f();
    var a2 = vec4f(); var b2 = vec4f(); var a3 = vec4f(); var b3 = vec4f();
    var a4 = vec4f(); var b4 = vec4f(); var a5 = vec4f(); var b5 = vec4f();
    var a6 = vec4f(); var b6 = vec4f(); var a7 = vec4f(); var b7 = vec4f();
    var a8 = vec4f(); var b8 = vec4f(); var a9 = vec4f(); var b9 = vec4f();
    var a10 = vec4f(); var b10 = vec4f(); var a11 = vec4f(); var b11 = vec4f();
    var a12 = vec4f(); var b12 = vec4f(); var a13 = vec4f(); var b13 = vec4f();
    var a14 = vec4f(); var b14 = vec4f(); var a15 = vec4f(); var b15 = vec4f();
    for (var first = 0u; first < p.blocks; first += HELD) {
        let h0 = weight_held(n0, 0u, first); let h1 = weight_held(n1, 0u, first);
        let h2 = weight_held(n2, 0u, first); let h3 = weight_held(n3, 0u, first);
        let h4 = weight_held(n4, 0u, first); let h5 = weight_held(n5, 0u, first);
        let h6 = weight_held(n6, 0u, first); let h7 = weight_held(n7, 0u, first);
        for (var c8 = first; c8 < min(first + HELD, p.blocks); c8++) {
            let w0 = weight8_of(n0, 0u, c8, h0);
            let w1 = weight8_of(n1, 0u, c8, h1);
            let w2 = weight8_of(n2, 0u, c8, h2);
            let w3 = weight8_of(n3, 0u, c8, h3);
            let w4 = weight8_of(n4, 0u, c8, h4);
            let w5 = weight8_of(n5, 0u, c8, h5);
            let w6 = weight8_of(n6, 0u, c8, h6);
            let w7 = weight8_of(n7, 0u, c8, h7);
            let al = mat4x4f(w0.lo, w1.lo, w2.lo, w3.lo);
            let ah = mat4x4f(w0.hi, w1.hi, w2.hi, w3.hi);
            let bl = mat4x4f(w4.lo, w5.lo, w6.lo, w7.lo);
            let bh = mat4x4f(w4.hi, w5.hi, w6.hi, w7.hi);
            var v = load8(x0, c8, p.k);
            var l: vec4f; var h: vec4f;
            l = subgroupBroadcast(v.lo, 0u); h = subgroupBroadcast(v.hi, 0u);
            a0 += l * al + h * ah; b0 += l * bl + h * bh;
            l = subgroupBroadcast(v.lo, 1u); h = subgroupBroadcast(v.hi, 1u);
            a1 += l * al + h * ah; b1 += l * bl + h * bh;
            l = subgroupBroadcast(v.lo, 2u); h = subgroupBroadcast(v.hi, 2u);
            a2 += l * al + h * ah; b2 += l * bl + h * bh;
            l = subgroupBroadcast(v.lo, 3u); h = subgroupBroadcast(v.hi, 3u);
            a3 += l * al + h * ah; b3 += l * bl + h * bh;
            l = subgroupBroadcast(v.lo, 4u); h = subgroupBroadcast(v.hi, 4u);
            a4 += l * al + h * ah; b4 += l * bl + h * bh;
            l = subgroupBroadcast(v.lo, 5u); h = subgroupBroadcast(v.hi, 5u);
            a5 += l * al + h * ah; b5 += l * bl + h * bh;
            l = subgroupBroadcast(v.lo, 6u); h = subgroupBroadcast(v.hi, 6u);
            a6 += l * al + h * ah; b6 += l * bl + h * bh;
            l = subgroupBroadcast(v.lo, 7u); h = subgroupBroadcast(v.hi, 7u);
            a7 += l * al + h * ah; b7 += l * bl + h * bh;
            if (TALL) {
                v = load8(x1, c8, p.k);
                l = subgroupBroadcast(v.lo, 0u); h = subgroupBroadcast(v.hi, 0u);
                a8 += l * al + h * ah; b8 += l * bl + h * bh;
                l = subgroupBroadcast(v.lo, 1u); h = subgroupBroadcast(v.hi, 1u);
                a9 += l * al + h * ah; b9 += l * bl + h * bh;
                l = subgroupBroadcast(v.lo, 2u); h = subgroupBroadcast(v.hi, 2u);
                a10 += l * al + h * ah; b10 += l * bl + h * bh;
                l = subgroupBroadcast(v.lo, 3u); h = subgroupBroadcast(v.hi, 3u);
                a11 += l * al + h * ah; b11 += l * bl + h * bh;
                l = subgroupBroadcast(v.lo, 4u); h = subgroupBroadcast(v.hi, 4u);
                a12 += l * al + h * ah; b12 += l * bl + h * bh;
                l = subgroupBroadcast(v.lo, 5u); h = subgroupBroadcast(v.hi, 5u);
                a13 += l * al + h * ah; b13 += l * bl + h * bh;
                l = subgroupBroadcast(v.lo, 6u); h = subgroupBroadcast(v.hi, 6u);
                a14 += l * al + h * ah; b14 += l * bl + h * bh;
                l = subgroupBroadcast(v.lo, 7u); h = subgroupBroadcast(v.hi, 7u);
                a15 += l * al + h * ah; b15 += l * bl + h * bh;
            }
        }
    }
    // One epilogue in loops whose ends no compiler knows, over a tile that moves up: all of them in a row would be
    // most of what there is to compile.
    let end_m = min(m + ROWS, p.m);
    let end_n = min(n + 8u, p.n);
    for (var i = m; i < end_m; i++) {
        for (var j = n; j < end_n; j++) {
            store(i, j, a0.x);
            a0 = vec4f(a0.yzw, b0.x);
            b0 = b0.yzwx;
        }
        a0 = a1; a1 = a2; a2 = a3; a3 = a4;
        a4 = a5; a5 = a6; a6 = a7; a7 = a8;
        a8 = a9; a9 = a10; a10 = a11; a11 = a12;
        a12 = a13; a13 = a14; a14 = a15;
        b0 = b1; b1 = b2; b2 = b3; b3 = b4;
        b4 = b5; b5 = b6; b6 = b7; b7 = b8;
        b8 = b9; b9 = b10; b10 = b11; b11 = b12;
        b12 = b13; b13 = b14; b14 = b15;
    }
}
