// The same as reference/sampler.wgsl, four neighbouring elements each: the plan counts n in fours.
struct Params {
    n: u32,     // elements of x, of the type bound
    batch: u32, // items of the network's input or answer
    pad0: u32,
    pad1: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> coef: array<f32>;         // [16] one StepCoefficients, then guidance
@group(0) @binding(2) var<storage, read> x: array<vec4f>;          // [n]
@group(0) @binding(3) var<storage, read> a: array<acta>;          // KIND 1: [batch, n] the answer; 2: [n] x0
@group(0) @binding(4) var<storage, read> x0_prev: array<vec4f>;    // [n]
@group(0) @binding(5) var<storage, read> noise: array<vec4f>;      // [n]
@group(0) @binding(6) var<storage, read_write> y: array<out>;    // [n], or [batch, n] for KIND 0

fn term(c: f32, v: vec4f) -> vec4f {
    return select(c * v, vec4f(), c == 0.0);
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
        var answer = vec4f(a[i]);
        if (p.batch == 2u) { answer += coef[12] * (vec4f(a[p.n + i]) - answer); }
        let v = term(coef[2], x[i]) + term(coef[3], answer);
        let finite = (bitcast<vec4u>(v) & vec4u(0x7f800000u)) != vec4u(0x7f800000u);
        y[i] = out(select(v, clamp(v, vec4f(-coef[9]), vec4f(coef[9])), finite));
        return;
    }
    var v = term(coef[4], x[i]) + term(coef[5], vec4f(a[i]));
    v += term(coef[6], x0_prev[i]);
    v += term(coef[7], noise[i]);
    y[i] = out(v);
}
