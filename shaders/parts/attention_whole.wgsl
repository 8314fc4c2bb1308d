// One invocation or workgroup saw all keys: the result.
@group(0) @binding(5) var<storage, read_write> y: array<act4>; // [B, sq, heads · d / 4]

fn store(row: u32, split: u32, c: u32, sum: vec4f, stat: vec2f) {
    y[row * (p.d / 4u) + c] = act4(sum / stat.y);
}
