// Group, layer and RMS norm in five stages, so that no invocation loops long (STAGE):
//   0  part[slice] = Σ x over a slice of positions and the group's channels
//   1  mean[group] = Σ part / count
//   2  part[slice] = Σ (x − mean)²
//   3  deviation[group] = √(Σ part / count + eps)
//   4  y = activation((x − mean) / deviation · gamma + beta), one element each; ADDED: plus b
// RMS norm (not CENTER) has mean 0, no beta, and starts at stage 2.
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
@group(0) @binding(1) var<storage, read> a: array<act>;          // [B, pixels, ca]
@group(0) @binding(2) var<storage, read> b: array<act>;          // [B, pixels, c − ca], or [B, pixels, c] if ADDED
@group(0) @binding(3) var<storage, read> gamma: array<f32>;      // [c]
@group(0) @binding(4) var<storage, read> beta: array<f32>;       // [c]
@group(0) @binding(5) var<storage, read_write> part: array<f32>; // [B, groups, slices]
@group(0) @binding(6) var<storage, read_write> stat: array<f32>; // [B, groups, (mean, deviation)]
@group(0) @binding(7) var<storage, read_write> y: array<act>;    // [B, pixels, c]

fn load(row: u32, c: u32) -> f32 {
    if (TWO && c >= p.ca) { return f32(b[row * (p.c - p.ca) + c - p.ca]); }
    return f32(a[row * p.ca + c]);
}

fn mean_of(group: u32) -> f32 {
    if (CENTER) { return stat[group * 2u]; }
    return 0.0;
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let item = id.y * groups.x * 64u + id.x;
    if (item >= p.n) { return; }
    let size = p.c / p.groups;
    if (STAGE == 0u || STAGE == 2u) {
        let group = item / p.slices; // over the batch too
        let row0 = group / p.groups * p.pixels;
        let c0 = group % p.groups * size;
        let first = item % p.slices * p.chunk;
        var sum = 0.0;
        for (var e = 0u; e < (min(first + p.chunk, p.pixels) - first) * size; e++) {
            let x = load(row0 + first + e / size, c0 + e % size);
            if (STAGE == 0u) {
                sum += x;
            } else {
                sum += (x - mean_of(group)) * (x - mean_of(group));
            }
        }
        part[item] = sum;
    }
    if (STAGE == 1u || STAGE == 3u) {
        var sum = 0.0;
        for (var slice = 0u; slice < p.slices; slice++) {
            sum += part[item * p.slices + slice];
        }
        sum /= f32(p.pixels) * f32(size);
        if (STAGE == 1u) {
            stat[item * 2u] = sum;
        } else {
            stat[item * 2u + 1u] = sqrt(sum + p.eps);
        }
    }
    if (STAGE == 4u) {
        let c = item % p.c;
        let row = item / p.c;
        let group = row / p.pixels * p.groups + c / size;
        var v = (load(row, c) - mean_of(group)) / stat[group * 2u + 1u] * gamma[c];
        if (CENTER) { v += beta[c]; }
        v = activation(v);
        if (ADDED) { v += f32(b[item]); }
        y[item] = act(v);
    }
}
