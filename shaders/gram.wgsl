// As reference/gram.wgsl, eight columns by eight in each invocation; ca, k0 and k are multiples of eight.
struct Params {
    m0: u32,     // first row of this dispatch
    m: u32,      // one past its last
    k0: u32,     // first column
    k: u32,      // number of columns
    in_h: u32,
    in_w: u32,
    out_h: u32,
    out_w: u32,
    ca: u32,     // channels of x
    side: u32,   // taps in each direction
    stride: u32,
    up: u32,     // 1 if the input is doubled in both directions first
    before: u32, // zeros before the first row and column
    every: u32,  // 1, or n to add up every nth row
    pad1: u32,
    pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<xload>;       // [B, in_h, in_w, ca/4]
@group(0) @binding(2) var<storage, read_write> g: array<f32>;   // [k, k]

fn eight(at: Pixel, tap: vec2u, c8: u32) -> Eight {
    let found = place(at, tap);
    let v = input8(found.pixel, c8);
    return Eight(select(vec4f(), v.lo, found.inside), select(vec4f(), v.hi, found.inside));
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let item = id.y * groups.x * 64u + id.x;
    let i = item / (p.k / 8u) * 8u;
    let j = item % (p.k / 8u) * 8u;
    if (i >= p.k || j > i) { return; }
    let blocks = p.ca / 8u;
    let bi = (p.k0 + i) / 8u;
    let bj = (p.k0 + j) / 8u;
    let ti = vec2u(bi / blocks % p.side, bi / blocks / p.side);
    let tj = vec2u(bj / blocks % p.side, bj / blocks / p.side);
    var at = pixel(p.m0);
    var a0 = vec4f(); var a1 = vec4f(); var a2 = vec4f(); var a3 = vec4f();
    var a4 = vec4f(); var a5 = vec4f(); var a6 = vec4f(); var a7 = vec4f();
    var b0 = vec4f(); var b1 = vec4f(); var b2 = vec4f(); var b3 = vec4f();
    var b4 = vec4f(); var b5 = vec4f(); var b6 = vec4f(); var b7 = vec4f();
    for (var m = p.m0; m < p.m; m += p.every) {
        let u = eight(at, ti, bi % blocks);
        let v = eight(at, tj, bj % blocks);
        if (p.every == 1u) { at = next(at); } else { at = pixel(m + p.every); }
        a0 += u.lo.x * v.lo; b0 += u.lo.x * v.hi;
        a1 += u.lo.y * v.lo; b1 += u.lo.y * v.hi;
        a2 += u.lo.z * v.lo; b2 += u.lo.z * v.hi;
        a3 += u.lo.w * v.lo; b3 += u.lo.w * v.hi;
        a4 += u.hi.x * v.lo; b4 += u.hi.x * v.hi;
        a5 += u.hi.y * v.lo; b5 += u.hi.y * v.hi;
        a6 += u.hi.z * v.lo; b6 += u.hi.z * v.hi;
        a7 += u.hi.w * v.lo; b7 += u.hi.w * v.hi;
    }
    // The tile moves up and left, as in conv2d.wgsl: cheap to compile.
    for (var r = i; r < i + 8u; r++) {
        for (var c = j; c < j + 8u; c++) {
            if (c <= r) { g[r * p.k + c] += a0.x; }
            a0 = vec4f(a0.yzw, b0.x);
            b0 = b0.yzwx;
        }
        a0 = a1; a1 = a2; a2 = a3; a3 = a4; a4 = a5; a5 = a6; a6 = a7;
        b0 = b1; b1 = b2; b2 = b3; b3 = b4; b4 = b5; b5 = b6; b6 = b7;
    }
}
