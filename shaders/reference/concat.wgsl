// y[r, c] = a[r, c] for c < ca, b[r, c − ca] beyond. One element each.
struct Params {
    n: u32,    // elements of y
    ca: u32,   // channels of a
    cb: u32,   // channels of b
    pad0: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<act>;       // [rows, ca]
@group(0) @binding(2) var<storage, read> b: array<act>;       // [rows, cb]
@group(0) @binding(3) var<storage, read_write> y: array<act>; // [rows, ca + cb]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let i = id.y * groups.x * 64u + id.x;
    if (i >= p.n) { return; }
    let r = i / (p.ca + p.cb);
    let c = i % (p.ca + p.cb);
    if (c < p.ca) {
        y[i] = a[r * p.ca + c];
    } else {
        y[i] = b[r * p.cb + c - p.ca];
    }
}
