// Adds up the sums of a product over parts of k, and does with them what is to become of it.
struct Params {
    m: u32,       // one past the last row of x of this dispatch
    n: u32,       // rows of w in this window
    k: u32,       // columns of x
    n0: u32,      // first row of this window
    n_total: u32, // columns of y
    blocks: u32,  // blocks of eight k
    m0: u32,      // its first row
    context: u32, // rows of y, where that is a cache
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> sums: array<f32>; // [parts, m - m0, n_total]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let item = id.y * groups.x * 64u + id.x;
    let count = (p.m - p.m0) * p.n_total;
    if (item >= count) { return; }
    var sum = 0.0;
    for (var i = item; i < arrayLength(&sums); i += count) {
        sum += sums[i];
    }
    store(p.m0 + item / p.n_total, item % p.n_total, sum);
}
