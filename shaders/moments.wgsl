// As reference/moments.wgsl, eight columns each; ca is a multiple of eight.
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
    every: u32,  // unused
    pad1: u32,
    pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<xload>;            // [B, in_h, in_w, ca/4]
@group(0) @binding(2) var<storage, read_write> s: array<vec4f>;      // [3, k/4]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let j = id.y * groups.x * 64u + id.x;
    if (j >= p.k / 8u) { return; }
    let blocks = p.ca / 8u;
    let tap = vec2u(j / blocks % p.side, j / blocks / p.side);
    var at = pixel(p.m0);
    var sum = Eight();
    var square = Eight();
    for (var m = p.m0; m < p.m; m++) {
        let found = place(at, tap);
        at = next(at);
        let v = input8(found.pixel, j % blocks);
        let lo = select(vec4f(), v.lo, found.inside);
        let hi = select(vec4f(), v.hi, found.inside);
        sum = Eight(sum.lo + lo, sum.hi + hi);
        square = Eight(square.lo + lo * lo, square.hi + hi * hi);
    }
    let quarter = p.k / 4u;
    let rows = vec4f(f32(p.m - p.m0));
    s[2u * j] += sum.lo;
    s[2u * j + 1u] += sum.hi;
    s[quarter + 2u * j] += square.lo;
    s[quarter + 2u * j + 1u] += square.hi;
    s[2u * quarter + 2u * j] += rows;
    s[2u * quarter + 2u * j + 1u] += rows;
}
