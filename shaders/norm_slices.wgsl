// Group norm, first of three: mean and sum of squared deviations of four channels over a slice of positions.
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
@group(0) @binding(3) var<storage, read_write> part: array<vec4f>; // [B, slices, (mean, squares), c/4]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let item = id.y * groups.x * 64u + id.x;
    if (item >= p.n) { return; }
    let cells = p.c / 4u;
    let c4 = item % cells;
    let slice = item / cells; // over the batch too
    let item0 = slice / p.slices * p.pixels;
    let first = slice % p.slices * p.chunk;
    let last = min(first + p.chunk, p.pixels);
    var sum = vec4f();
    for (var i = first; i < last; i++) {
        sum += load(item0 + i, c4);
    }
    let mean = sum / f32(last - first);
    var squares = vec4f();
    for (var i = first; i < last; i++) {
        let d = load(item0 + i, c4) - mean;
        squares += d * d;
    }
    part[slice * 2u * cells + c4] = mean;
    part[(slice * 2u + 1u) * cells + c4] = squares;
}
