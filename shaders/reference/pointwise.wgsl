// One element each; KIND says what:
//   0  y = activation(a)             1  y = a + b              2  y = a · b
//   3  y = activation(a) · b         (SwiGLU: a the gate, b the value)
//   4  y[r, c] = a[r, c] · activation(a[r, C + c])   (GEGLU of diffusers: value first, gate second)
//   5  y = scale · a                 6  y = scale · tanh(a / scale)
// b repeats with period b_len (a vector of channels, or one picture for a whole batch).
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
@group(0) @binding(1) var<storage, read> a: array<act>;        // [n], or [rows, 2 c] for KIND 4
@group(0) @binding(2) var<storage, read> b: array<act>;        // [b_len]
@group(0) @binding(3) var<storage, read_write> y: array<act>;  // [n]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let i = id.y * groups.x * 64u + id.x;
    if (i >= p.n) { return; }
    if (KIND == 0u) { y[i] = act(activation(f32(a[i]))); }
    if (KIND == 1u) { y[i] = act(f32(a[i]) + f32(b[i % p.b_len])); }
    if (KIND == 2u) { y[i] = act(f32(a[i]) * f32(b[i % p.b_len])); }
    if (KIND == 3u) { y[i] = act(activation(f32(a[i])) * f32(b[i])); }
    if (KIND == 4u) {
        let j = i / p.c * 2u * p.c + i % p.c;
        y[i] = act(f32(a[j]) * activation(f32(a[j + p.c])));
    }
    if (KIND == 5u) { y[i] = act(p.scale * f32(a[i])); }
    if (KIND == 6u) { y[i] = act(soft_cap(vec4f(f32(a[i])), p.scale).x); }
}
