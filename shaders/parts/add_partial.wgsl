// Adds up the sums of PARTS parts of k (or of the taps), one element each, and does with them what is to become of it.
@group(0) @binding(1) var<storage, read> sums: array<f32>; // [PARTS, m - m0, n_total]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let item = id.y * groups.x * 64u + id.x;
    let count = (p.m - p.m0) * p.n_total;
    if (item >= count) { return; }
    var sum = 0.0;
    for (var i = 0u; i < PARTS; i++) {
        sum += sums[i * count + item];
    }
    store(p.m0 + item / p.n_total, item % p.n_total, sum);
}
