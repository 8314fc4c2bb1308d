// Group norm, second of three: the statistics of a group from those of its slices and channels (Chan, Golub,
// LeVeque 1979: squares around the common mean are squares around the own mean plus n · (difference of means)²).
// A workgroup takes a group of one batch item.
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
@group(0) @binding(1) var<storage, read> gamma: array<f32>;        // [c]
@group(0) @binding(2) var<storage, read> part: array<f32>;         // [B, slices, (mean, squares), c]
@group(0) @binding(3) var<storage, read_write> coef: array<f32>;   // [B, (mean, gamma / deviation), c]

@compute @workgroup_size(WG_X)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let item = group.y * groups.x + group.x;
    if (item >= p.n) { return; }
    let batch = item / p.groups;
    let size = p.c / p.groups;
    let c0 = item % p.groups * size;
    let count = f32(p.pixels) * f32(size);
    var sum = 0.0;
    for (var e = local; e < p.slices * size; e += WG_X) {
        let slice = e / size;
        let n = f32(min(p.chunk, p.pixels - slice * p.chunk));
        sum += n * part[(batch * p.slices + slice) * 2u * p.c + c0 + e % size];
    }
    let mean = all_sum(sum, local) / count;
    var squares = 0.0;
    for (var e = local; e < p.slices * size; e += WG_X) {
        let slice = e / size;
        let n = f32(min(p.chunk, p.pixels - slice * p.chunk));
        let i = (batch * p.slices + slice) * 2u * p.c + c0 + e % size;
        let d = part[i] - mean;
        squares += part[i + p.c] + n * d * d;
    }
    let deviation = sqrt(all_sum(squares, local) / count + p.eps);
    for (var e = local; e < size; e += WG_X) {
        coef[batch * 2u * p.c + c0 + e] = mean;
        coef[(batch * 2u + 1u) * p.c + c0 + e] = gamma[c0 + e] / deviation;
    }
}
