// y[r, c] = exp(x[r, c] − max) / Σ exp(x[r, ·] − max), one row each.
struct Params {
    rows: u32,
    c: u32,    // length of a row
    pad0: u32,
    pad1: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<act>;        // [rows, c]
@group(0) @binding(2) var<storage, read_write> y: array<act>;  // [rows, c]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let row = id.y * groups.x * 64u + id.x;
    if (row >= p.rows) { return; }
    let first = row * p.c;
    var most = f32(x[first]);
    for (var c = 1u; c < p.c; c++) {
        most = max(most, f32(x[first + c]));
    }
    var sum = 0.0;
    for (var c = 0u; c < p.c; c++) {
        sum += exp(f32(x[first + c]) - most);
    }
    for (var c = 0u; c < p.c; c++) {
        y[first + c] = act(exp(f32(x[first + c]) - most) / sum);
    }
}
