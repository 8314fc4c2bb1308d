// Group norm of small pictures in one launch: y = activation((x − mean) · gamma / √(variance + eps) + beta) over all positions and the
// channels of a group, which a workgroup goes over three times (Wu and He 2018). Groups are whole fours of channels.
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
@group(0) @binding(3) var<storage, read> gamma: array<vec4f>;   // [c/4]
@group(0) @binding(4) var<storage, read> beta: array<vec4f>;    // [c/4]
@group(0) @binding(5) var<storage, read_write> y: array<act4>;  // [B, pixels, c/4]

@compute @workgroup_size(WG_X)
fn main(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    // Over the batch too; workgroups beyond the last one repeat it and do not store.
    let item = id.y * groups.x + id.x;
    let group = min(item, p.n - 1u);
    let size4 = p.c / p.groups / 4u;
    let row0 = group / p.groups * p.pixels;
    let c0 = group % p.groups * size4;
    let cells = p.pixels * size4;
    let count = f32(4u * cells);
    var sum = vec4f();
    for (var i = local; i < cells; i += WG_X) {
        sum += load(row0 + i / size4, c0 + i % size4);
    }
    let mean = all_sum(dot(sum, vec4f(1.0)), local) / count;
    var squares = vec4f();
    for (var i = local; i < cells; i += WG_X) {
        let d = load(row0 + i / size4, c0 + i % size4) - mean;
        squares += d * d;
    }
    let variance = all_sum(dot(squares, vec4f(1.0)), local) / count;
    let scale = 1.0 / sqrt(variance + p.eps);
    if (item >= p.n) { return; }
    for (var i = local; i < cells; i += WG_X) {
        let row = row0 + i / size4;
        let c4 = c0 + i % size4;
        let v = (load(row, c4) - mean) * scale * gamma[c4] + beta[c4];
        y[row * (p.c / 4u) + c4] = act4(vec4f(activation(v.x), activation(v.y), activation(v.z), activation(v.w)));
    }
}
