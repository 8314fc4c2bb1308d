// The same as reference/sampler.wgsl, four neighbouring elements each: the plan counts n and item in fours.
struct Params {
    n: u32,      // elements of x, of the type bound
    copies: u32, // how often x stands in the network's input
    item: u32,   // elements of one picture
    pad0: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> coef: array<f32>;      // [32] one StepCoefficients, guidance, rescale
@group(0) @binding(2) var<storage, read> x: array<vec4f>;       // [n]
@group(0) @binding(3) var<storage, read> a: array<acta>;        // [n] or (u, c) [2, n], the answer; KIND 3, 4: [n] w
@group(0) @binding(4) var<storage, read> b: array<actb>;        // [n] c; KIND 3: [4, n] h1, h2, h3, s
@group(0) @binding(5) var<storage, read> noise: array<vec4f>;   // [n]
@group(0) @binding(6) var<storage, read> factor: array<f32>;    // [n / item]
@group(0) @binding(7) var<storage, read_write> y: array<out>;   // [n]; KIND 0: [copies, n]; 4: [4, n] h1, h2, h3, s

const VALUE = 2u;
const CLIP = 4u;
const NEXT = 5u;
const KEEP = 13u;
const PUSH = 19u;
const CLEAN = 20u;
const GUIDANCE = 27u;

fn term(c: f32, v: vec4f) -> vec4f {
    return select(c * v, vec4f(), c == 0.0);
}

fn answer(i: u32) -> vec4f {
    var all = vec4f(a[i]);
    if (ANSWERS == 2u) { all += coef[GUIDANCE] * (vec4f(a[p.n + i]) - all); }
    if (ANSWERS == 3u) { all += coef[GUIDANCE] * (vec4f(b[i]) - all); }
    if (RESCALED) { all *= factor[i / p.item]; }
    return all;
}

fn clipped(w: vec4f) -> vec4f {
    let finite = (bitcast<vec4u>(w) & vec4u(0x7f800000u)) != vec4u(0x7f800000u);
    return select(w, clamp(w, vec4f(-coef[CLIP]), vec4f(coef[CLIP])), finite);
}

fn remember(i: u32) {
    let v = clipped(vec4f(a[i]));
    let h1 = vec4f(y[i]);
    let h2 = vec4f(y[p.n + i]);
    let h3 = vec4f(y[2u * p.n + i]);
    var s = term(coef[KEEP], x[i]) + term(coef[KEEP + 1u], v);
    s += term(coef[KEEP + 2u], h1) + term(coef[KEEP + 3u], h2) + term(coef[KEEP + 4u], h3);
    s += term(coef[KEEP + 5u], vec4f(y[3u * p.n + i]));
    y[3u * p.n + i] = out(s);
    if (coef[PUSH] != 0.0) {
        y[2u * p.n + i] = out(h2);
        y[p.n + i] = out(h1);
        y[i] = out(v);
    }
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let i = id.y * groups.x * 64u + id.x;
    if (KIND == 0u) {
        if (i < p.n * p.copies) { y[i] = out(coef[1] * x[i % p.n]); }
        return;
    }
    if (i >= p.n) { return; }
    if (KIND == 1u) {
        y[i] = out(term(coef[VALUE], x[i]) + term(coef[VALUE + 1u], answer(i)));
        return;
    }
    if (KIND == 2u) {
        y[i] = out(term(coef[CLEAN], x[i]) + term(coef[CLEAN + 1u], answer(i)));
        return;
    }
    if (KIND == 4u) {
        remember(i);
        return;
    }
    let w = vec4f(a[i]);
    var next = term(coef[NEXT], x[i]) + term(coef[NEXT + 1u], clipped(w)) + term(coef[NEXT + 7u], w);
    for (var k = 0u; k < 4u; k++) {
        next += term(coef[NEXT + 2u + k], vec4f(b[k * p.n + i]));
    }
    y[i] = out(next + term(coef[NEXT + 6u], noise[i]));
}
