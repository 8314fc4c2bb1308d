// y[r, c] = exp(x[r, c] − max) / Σ exp(x[r, ·] − max), over rows of any length. LANES invocations share a row:
// one (software adapters) or the whole workgroup.
struct Params {
    rows: u32,
    c: u32,    // length of a row
    pad0: u32,
    pad1: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<act>;        // [rows, c]
@group(0) @binding(2) var<storage, read_write> y: array<act>;  // [rows, c]

@compute @workgroup_size(WG_X)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let row = (group.y * groups.x + group.x) * (WG_X / LANES) + local / LANES;
    let lane = local % LANES;
    // Lanes of the last workgroup beyond the end repeat the last row and do not store.
    let first = min(row, p.rows - 1u) * p.c;
    var most = -3.4e38;
    for (var c = lane; c < p.c; c += LANES) {
        most = max(most, f32(x[first + c]));
    }
    most = all_max(most, local);
    var sum = 0.0;
    for (var c = lane; c < p.c; c += LANES) {
        sum += exp(f32(x[first + c]) - most);
    }
    sum = all_sum(sum, local);
    if (row >= p.rows) { return; }
    for (var c = lane; c < p.c; c += LANES) {
        y[first + c] = act(exp(f32(x[first + c]) - most) / sum);
    }
}
