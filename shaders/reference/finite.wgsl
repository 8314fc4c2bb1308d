// Each of p.parts invocations counts every p.parts-th of n elements: those that are infinite or NaN (COUNT), told
// by an exponent of all ones in the stored bits, or else the numbers that earlier invocations counted.
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
    for (var i = part; i < p.n; i += p.parts) {
        if (!COUNT) {
            count += x[i];
        } else if (HALF) {
            let bits = x[i / 2u] >> (16u * (i & 1u));
            count += u32((bits & 0x7c00u) == 0x7c00u);
        } else {
            count += u32((x[i] & 0x7f800000u) == 0x7f800000u);
        }
    }
    y[part] = count;
}
