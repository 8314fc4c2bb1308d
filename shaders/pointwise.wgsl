// Four neighbouring elements each; KIND as in reference/pointwise.wgsl. Element counts, b_len and c are
// multiples of four, otherwise the plan takes the reference.
struct Params {
    n: u32,     // elements of y
    b_len: u32, // elements of b
    c: u32,     // channels of y
    kind: u32,
    scale: f32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<act4>;        // [n/4], or [rows, 2 c/4] for KIND 4
@group(0) @binding(2) var<storage, read> b: array<act4>;        // [b_len/4]
@group(0) @binding(3) var<storage, read_write> y: array<act4>;  // [n/4]

fn activation4(v: vec4f) -> vec4f {
    return vec4f(activation(v.x), activation(v.y), activation(v.z), activation(v.w));
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let i = id.y * groups.x * 64u + id.x;
    if (i >= p.n / 4u) { return; }
    if (KIND == 0u) { y[i] = act4(activation4(vec4f(a[i]))); }
    if (KIND == 1u) { y[i] = act4(vec4f(a[i]) + vec4f(b[i % (p.b_len / 4u)])); }
    if (KIND == 2u) { y[i] = act4(vec4f(a[i]) * vec4f(b[i % (p.b_len / 4u)])); }
    if (KIND == 3u) { y[i] = act4(activation4(vec4f(a[i])) * vec4f(b[i])); }
    if (KIND == 4u) {
        let c4 = p.c / 4u;
        let j = i / c4 * 2u * c4 + i % c4;
        y[i] = act4(vec4f(a[j]) * activation4(vec4f(a[j + c4])));
    }
    if (KIND == 5u) { y[i] = act4(p.scale * vec4f(a[i])); }
    if (KIND == 6u) { y[i] = act4(soft_cap(vec4f(a[i]), p.scale)); }
}
