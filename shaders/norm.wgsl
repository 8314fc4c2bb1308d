// Layer norm y = (x − mean) · gamma / √(variance + eps) + beta and RMS norm y = x · gamma / √(mean of squares + eps)
// over rows (Ba et al. 2016; Zhang and Sennrich 2019), ADDED: plus r. LANES invocations share a row: one, or the workgroup.
struct Params {
    pixels: u32, // positions of one batch item that share statistics (1 for layer and RMS norm)
    c: u32,      // channels
    ca: u32,     // channels of the first part, c if there is one part
    groups: u32, // groups of channels
    chunk: u32,  // positions in a slice
    slices: u32, // slices of one batch item
    n: u32,      // items of work
    eps: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<act4>;        // [n, c/4]
@group(0) @binding(2) var<storage, read> gamma: array<vec4f>;   // [c/4]
@group(0) @binding(3) var<storage, read> beta: array<vec4f>;    // [c/4]
@group(0) @binding(4) var<storage, read_write> y: array<act4>;  // [n, c/4]
@group(0) @binding(5) var<storage, read> r: array<act4>;        // [n, c/4]

@compute @workgroup_size(WG_X)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let row = (group.y * groups.x + group.x) * (WG_X / LANES) + local / LANES;
    let lane = local % LANES;
    let cells = p.c / 4u;
    // Lanes of the last workgroup beyond the end repeat the last row and do not store.
    let first = min(row, p.n - 1u) * cells;
    var mean = 0.0;
    if (CENTER) {
        var sum = vec4f();
        for (var c = lane; c < cells; c += LANES) {
            sum += vec4f(x[first + c]);
        }
        mean = all_sum(dot(sum, vec4f(1.0)), local) / f32(p.c);
    }
    var squares = vec4f();
    for (var c = lane; c < cells; c += LANES) {
        let d = vec4f(x[first + c]) - mean;
        squares += d * d;
    }
    let variance = all_sum(dot(squares, vec4f(1.0)), local) / f32(p.c);
    let scale = 1.0 / sqrt(variance + p.eps);
    if (row >= p.n) { return; }
    for (var c = lane; c < cells; c += LANES) {
        var v = (vec4f(x[first + c]) - mean) * scale * gamma[c];
        if (CENTER) { v += beta[c]; }
        if (ADDED) { v += vec4f(r[first + c]); }
        y[first + c] = act4(v);
    }
}
