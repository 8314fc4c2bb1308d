// The same as reference/finite.wgsl, word by word: two f16 at a time.
struct Params {
    n: u32,     // elements of x
    words: u32, // 32-bit words of x
    parts: u32, // elements of y
    pad0: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;        // [words]: n f32, n f16 in pairs (HALF), n counts
@group(0) @binding(2) var<storage, read_write> y: array<u32>;  // [parts]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let part = id.y * groups.x * 64u + id.x;
    if (part >= p.parts) { return; }
    var count = 0u;
    for (var i = part; i < p.words; i += p.parts) {
        let bits = x[i];
        if (!COUNT) {
            count += bits;
        } else if (HALF) {
            count += u32((bits & 0x7c00u) == 0x7c00u);
            // An odd number of halves leaves the last word's upper one out.
            count += u32((bits & 0x7c000000u) == 0x7c000000u && 2u * i + 1u < p.n);
        } else {
            count += u32((bits & 0x7f800000u) == 0x7f800000u);
        }
    }
    y[part] = count;
}
