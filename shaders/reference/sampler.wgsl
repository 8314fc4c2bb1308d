// The loop of a diffusion sampler, one element each (diffusion/sampler says where the coefficients come from):
//   KIND 0  y[k, i] = input_scale · x[i]                                    what the network reads, k < copies
//   KIND 1  y = value[0] · x + value[1] · answer                            the row's value w, before the clamp
//   KIND 2  y = x0[0] · x + x0[1] · answer                                  the clean picture, for previews
//   KIND 3  y = next · (x, v, h1, h2, h3, s, noise, w)                      the next x
//   KIND 4  (h1, h2, h3, s) = (v, h1, h2 if push, keep · (x, v, h1, h2, h3, s))
// where v = clamp(w, −clip, clip). answer is the network's alone, or (u + guidance · (c − u)) · factor of its answers u
// without and c with the prompt.
// A term whose coefficient is zero is left out, whatever lies in its memory; what is not finite stays so under the
// clamp, so that it can be seen.
struct Params {
    n: u32,      // elements of x, of the type bound
    copies: u32, // how often x stands in the network's input
    item: u32,   // elements of one picture
    pad0: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> coef: array<f32>;      // [32] one StepCoefficients, guidance, rescale
@group(0) @binding(2) var<storage, read> x: array<f32>;         // [n]
@group(0) @binding(3) var<storage, read> a: array<acta>;        // [n] or (u, c) [2, n], the answer; KIND 3, 4: [n] w
@group(0) @binding(4) var<storage, read> b: array<actb>;        // [n] c; KIND 3: [4, n] h1, h2, h3, s
@group(0) @binding(5) var<storage, read> noise: array<f32>;     // [n]
@group(0) @binding(6) var<storage, read> factor: array<f32>;    // [n / item]
@group(0) @binding(7) var<storage, read_write> y: array<out>;   // [n]; KIND 0: [copies, n]; 4: [4, n] h1, h2, h3, s

const VALUE = 2u;
const CLIP = 4u;
const NEXT = 5u;
const KEEP = 13u;
const PUSH = 19u;
const CLEAN = 20u;
const GUIDANCE = 27u;

fn term(c: f32, v: f32) -> f32 {
    return select(c * v, 0.0, c == 0.0);
}

fn answer(i: u32) -> f32 {
    var all = f32(a[i]);
    if (ANSWERS == 2u) { all += coef[GUIDANCE] * (f32(a[p.n + i]) - all); }
    if (ANSWERS == 3u) { all += coef[GUIDANCE] * (f32(b[i]) - all); }
    if (RESCALED) { all *= factor[i / p.item]; }
    return all;
}

fn clipped(w: f32) -> f32 {
    let finite = (bitcast<u32>(w) & u32(0x7f800000u)) != u32(0x7f800000u);
    return select(w, clamp(w, f32(-coef[CLIP]), f32(coef[CLIP])), finite);
}

fn remember(i: u32) {
    let v = clipped(f32(a[i]));
    let h1 = f32(y[i]);
    let h2 = f32(y[p.n + i]);
    let h3 = f32(y[2u * p.n + i]);
    var s = term(coef[KEEP], x[i]) + term(coef[KEEP + 1u], v);
    s += term(coef[KEEP + 2u], h1) + term(coef[KEEP + 3u], h2) + term(coef[KEEP + 4u], h3);
    s += term(coef[KEEP + 5u], f32(y[3u * p.n + i]));
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
    let w = f32(a[i]);
    var next = term(coef[NEXT], x[i]) + term(coef[NEXT + 1u], clipped(w)) + term(coef[NEXT + 7u], w);
    for (var k = 0u; k < 4u; k++) {
        next += term(coef[NEXT + 2u + k], f32(b[k * p.n + i]));
    }
    y[i] = out(next + term(coef[NEXT + 6u], noise[i]));
}
