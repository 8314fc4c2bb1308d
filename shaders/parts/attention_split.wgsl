// Keys are divided into parts: sums with their maximum and total, for attention_merge.wgsl.
@group(0) @binding(5) var<storage, read_write> part: array<vec4f>;  // [rows, splits, d / 4]
@group(0) @binding(6) var<storage, read_write> stats: array<vec2f>; // [rows, splits] maximum and total

fn store(row: u32, split: u32, c: u32, sum: vec4f, stat: vec2f) {
    let at = row * p.splits + split;
    part[at * (p.d / 4u) + c] = sum;
    if (c == 0u) { stats[at] = stat; }
}
