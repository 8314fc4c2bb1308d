// The convolution of reference/conv2d.wgsl as an implicit matrix product: a register tile of 8 output pixels
// by 8 output channels in each invocation, no shared memory, weights decoded where they are used. Invocations
// are numbered with the channels fastest, so that neighbours share pixels.
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

@compute @workgroup_size(WG_X)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let item = id.y * groups.x * WG_X + id.x;
    let across = (p.n + 7u) / 8u;
    let n = item % across * 8u;
    let m = p.m0 + item / across * 8u;
    if (m >= p.m) { return; }
    let ln = p.n - 1u; // rows and pixels beyond the end read the last one and are not stored
    let ma = min(m + vec4u(0u, 1u, 2u, 3u), vec4u(p.m - 1u));
    let mb = min(m + vec4u(4u, 5u, 6u, 7u), vec4u(p.m - 1u));
    let xa = ma % p.out_w * p.stride - p.before;
    let xb = mb % p.out_w * p.stride - p.before;
    let ya = ma / p.out_w % p.out_h * p.stride - p.before;
    let yb = mb / p.out_w % p.out_h * p.stride - p.before;
    let base_a = ma / (p.out_w * p.out_h) * p.in_h;
    let base_b = mb / (p.out_w * p.out_h) * p.in_h;
    let blocks = (p.ca + p.cb + 7u) / 8u;
    var a0 = vec4f(); var a1 = vec4f(); var a2 = vec4f(); var a3 = vec4f();
    var a4 = vec4f(); var a5 = vec4f(); var a6 = vec4f(); var a7 = vec4f();
    var b0 = vec4f(); var b1 = vec4f(); var b2 = vec4f(); var b3 = vec4f();
    var b4 = vec4f(); var b5 = vec4f(); var b6 = vec4f(); var b7 = vec4f();
    for (var tap = 0u; tap < p.side * p.side; tap++) {
        let fa = four(base_a, ya + tap / p.side, xa + tap % p.side);
        let fb = four(base_b, yb + tap / p.side, xb + tap % p.side);
        for (var c8 = 0u; c8 < blocks; c8++) {
            let w0 = weight8(n, tap, c8);
            let w1 = weight8(min(n + 1u, ln), tap, c8);
            let w2 = weight8(min(n + 2u, ln), tap, c8);
            let w3 = weight8(min(n + 3u, ln), tap, c8);
            let w4 = weight8(min(n + 4u, ln), tap, c8);
            let w5 = weight8(min(n + 5u, ln), tap, c8);
            let w6 = weight8(min(n + 6u, ln), tap, c8);
            let w7 = weight8(min(n + 7u, ln), tap, c8);
            let al = mat4x4f(w0.lo, w1.lo, w2.lo, w3.lo);
            let ah = mat4x4f(w0.hi, w1.hi, w2.hi, w3.hi);
            let bl = mat4x4f(w4.lo, w5.lo, w6.lo, w7.lo);
            let bh = mat4x4f(w4.hi, w5.hi, w6.hi, w7.hi);
            var v = pixel8(fa.at.x, c8, fa.inside.x);
            a0 += v.lo * al + v.hi * ah; b0 += v.lo * bl + v.hi * bh;
            v = pixel8(fa.at.y, c8, fa.inside.y);
            a1 += v.lo * al + v.hi * ah; b1 += v.lo * bl + v.hi * bh;
            v = pixel8(fa.at.z, c8, fa.inside.z);
            a2 += v.lo * al + v.hi * ah; b2 += v.lo * bl + v.hi * bh;
            v = pixel8(fa.at.w, c8, fa.inside.w);
            a3 += v.lo * al + v.hi * ah; b3 += v.lo * bl + v.hi * bh;
            v = pixel8(fb.at.x, c8, fb.inside.x);
            a4 += v.lo * al + v.hi * ah; b4 += v.lo * bl + v.hi * bh;
            v = pixel8(fb.at.y, c8, fb.inside.y);
            a5 += v.lo * al + v.hi * ah; b5 += v.lo * bl + v.hi * bh;
            v = pixel8(fb.at.z, c8, fb.inside.z);
            a6 += v.lo * al + v.hi * ah; b6 += v.lo * bl + v.hi * bh;
            v = pixel8(fb.at.w, c8, fb.inside.w);
            a7 += v.lo * al + v.hi * ah; b7 += v.lo * bl + v.hi * bh;
        }
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
