// As reference/concat.wgsl, four neighbouring channels each: ca and cb are multiples of four.
struct Params {
    n: u32,    // elements of y
    ca: u32,   // channels of a
    cb: u32,   // channels of b
    pad0: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<act4>;       // [rows, ca/4]
@group(0) @binding(2) var<storage, read> b: array<act4>;       // [rows, cb/4]
@group(0) @binding(3) var<storage, read_write> y: array<act4>; // [rows, (ca + cb)/4]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let i = id.y * groups.x * 64u + id.x;
    if (i >= p.n / 4u) { return; }
    let ca = p.ca / 4u;
    let cb = p.cb / 4u;
    let r = i / (ca + cb);
    let c = i % (ca + cb);
    if (c < ca) {
        y[i] = a[r * ca + c];
    } else {
        y[i] = b[r * cb + c - ca];
    }
}
