// Σ_k x[m, k] · w[n, k]; see parts/matmul_out.wgsl for what becomes of it.
// A register tile of 8 rows of x by 8 rows of w in each invocation, no shared memory. A block of eight k of
// four rows of w is two 4x4 matrices, so that `vector * matrix` is four dot products.
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
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let item = id.y * groups.x * WG_X + id.x;
    let across = (p.n + 7u) / 8u;
    let n = item % across * 8u;
    let m = p.m0 + item / across * 8u;
    if (m >= p.m) { return; }
    let ln = p.n - 1u; // rows beyond the end read the last one and are not stored
    let lm = p.m - 1u;
    var a0 = vec4f(); var a1 = vec4f(); var a2 = vec4f(); var a3 = vec4f();
    var a4 = vec4f(); var a5 = vec4f(); var a6 = vec4f(); var a7 = vec4f();
    var b0 = vec4f(); var b1 = vec4f(); var b2 = vec4f(); var b3 = vec4f();
    var b4 = vec4f(); var b5 = vec4f(); var b6 = vec4f(); var b7 = vec4f();
    for (var c8 = 0u; c8 < p.blocks; c8++) {
        let w0 = weight8(n, 0u, c8);
        let w1 = weight8(min(n + 1u, ln), 0u, c8);
        let w2 = weight8(min(n + 2u, ln), 0u, c8);
        let w3 = weight8(min(n + 3u, ln), 0u, c8);
        let w4 = weight8(min(n + 4u, ln), 0u, c8);
        let w5 = weight8(min(n + 5u, ln), 0u, c8);
        let w6 = weight8(min(n + 6u, ln), 0u, c8);
        let w7 = weight8(min(n + 7u, ln), 0u, c8);
        let al = mat4x4f(w0.lo, w1.lo, w2.lo, w3.lo);
        let ah = mat4x4f(w0.hi, w1.hi, w2.hi, w3.hi);
        let bl = mat4x4f(w4.lo, w5.lo, w6.lo, w7.lo);
        let bh = mat4x4f(w4.hi, w5.hi, w6.hi, w7.hi);
        var v = load8(m * p.k, c8, p.k);
        a0 += v.lo * al + v.hi * ah; b0 += v.lo * bl + v.hi * bh;
        v = load8(min(m + 1u, lm) * p.k, c8, p.k);
        a1 += v.lo * al + v.hi * ah; b1 += v.lo * bl + v.hi * bh;
        v = load8(min(m + 2u, lm) * p.k, c8, p.k);
        a2 += v.lo * al + v.hi * ah; b2 += v.lo * bl + v.hi * bh;
        v = load8(min(m + 3u, lm) * p.k, c8, p.k);
        a3 += v.lo * al + v.hi * ah; b3 += v.lo * bl + v.hi * bh;
        v = load8(min(m + 4u, lm) * p.k, c8, p.k);
        a4 += v.lo * al + v.hi * ah; b4 += v.lo * bl + v.hi * bh;
        v = load8(min(m + 5u, lm) * p.k, c8, p.k);
        a5 += v.lo * al + v.hi * ah; b5 += v.lo * bl + v.hi * bh;
        v = load8(min(m + 6u, lm) * p.k, c8, p.k);
        a6 += v.lo * al + v.hi * ah; b6 += v.lo * bl + v.hi * bh;
        v = load8(min(m + 7u, lm) * p.k, c8, p.k);
        a7 += v.lo * al + v.hi * ah; b7 += v.lo * bl + v.hi * bh;
    }
    // One epilogue in loops whose ends no compiler knows, over a tile that moves up: 64 of them in a row were
    // most of what there was to compile.
    let end_m = min(m + 8u, p.m);
    let end_n = min(n + 8u, p.n);
    for (var i = m; i < end_m; i++) {
        for (var j = n; j < end_n; j++) {
            store(i, j, a0.x);
            a0 = vec4f(a0.yzw, b0.x);
            b0 = b0.yzwx;
        }
        a0 = a1; a1 = a2; a2 = a3; a3 = a4; a4 = a5; a5 = a6; a6 = a7;
        b0 = b1; b1 = b2; b2 = b3; b3 = b4; b4 = b5; b5 = b6; b6 = b7;
    }
}
