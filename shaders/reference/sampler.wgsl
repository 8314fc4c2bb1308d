// The loop of a diffusion sampler, one element each (diffusion/sampler.rs says where the coefficients come from):
//   KIND 0  y[b, i] = input_scale · x[i]                         what the network reads
//   KIND 1  y = clamp(x0[0] · x + x0[1] · (u + guidance · (c − u)), −clip, clip)     the clean picture
//   KIND 2  y = next[0] · x + next[1] · x0 + next[2] · x0_prev + next[3] · noise     the next x
// u and c are the network's answers without and with the prompt. A term whose coefficient is zero is left out,
// whatever lies in its memory; what is not finite stays so under the clamp, so that it can be seen.
struct Params {
    n: u32,     // elements of x, of the type bound
    batch: u32, // items of the network's input or answer
    pad0: u32,
    pad1: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> coef: array<f32>;         // [16] one StepCoefficients, then guidance
@group(0) @binding(2) var<storage, read> x: array<f32>;          // [n]
@group(0) @binding(3) var<storage, read> a: array<acta>;          // KIND 1: [batch, n] the answer; 2: [n] x0
@group(0) @binding(4) var<storage, read> x0_prev: array<f32>;    // [n]
@group(0) @binding(5) var<storage, read> noise: array<f32>;      // [n]
@group(0) @binding(6) var<storage, read_write> y: array<out>;    // [n], or [batch, n] for KIND 0

fn term(c: f32, v: f32) -> f32 {
    return select(c * v, 0.0, c == 0.0);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let i = id.y * groups.x * 64u + id.x;
    if (KIND == 0u) {
        if (i < p.n * p.batch) { y[i] = out(coef[1] * x[i % p.n]); }
        return;
    }
    if (i >= p.n) { return; }
    if (KIND == 1u) {
        var answer = f32(a[i]);
        if (p.batch == 2u) { answer += coef[12] * (f32(a[p.n + i]) - answer); }
        let v = term(coef[2], x[i]) + term(coef[3], answer);
        let finite = (bitcast<u32>(v) & 0x7f800000u) != 0x7f800000u;
        y[i] = out(select(v, clamp(v, -coef[9], coef[9]), finite));
        return;
    }
    var v = term(coef[4], x[i]) + term(coef[5], f32(a[i]));
    v += term(coef[6], x0_prev[i]);
    v += term(coef[7], noise[i]);
    y[i] = out(v);
}
