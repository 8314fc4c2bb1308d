// One word of the result per invocation, of the three kernels by KIND:
// 0, ceiling_copy.wgsl: y[i] = x[i].
// 1, ceiling_fma.wgsl: word i is component i mod 4 of cell i / 4, an f32: Σ_j<3 Aⁿ(cell mod 8 + 4j + i mod 4), A(a) = a · mul +
// add, n = 16 · trips.
// 2, ceiling_dot.wgsl: Σ_j<8 Dⁿ(0x01030507 · (i mod 8 + 1) + 0x11213141 · j), D(s) = s + the dot product of the signed bytes
// of s and mul, n = 4 · trips.
// 3, ceiling_coop.wgsl: every word is an f32, Σ_j<8 of the sums of j + trips products of EDGE times mul by add.
struct Params {
    count: u32,  // words of the result
    trips: u32,
    mul: u32,
    add: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;  // [count] of a copy
@group(0) @binding(2) var<storage, read_write> y: array<u32>;  // [count]

fn signed_byte(word: u32, k: u32) -> i32 {
    return extractBits(bitcast<i32>(word), 8u * k, 8u);
}

fn chain(i: u32) -> u32 {
    let m = T(bitcast<f32>(p.mul));
    let b = T(bitcast<f32>(p.add));
    var sum = 0.0;
    for (var j = 0u; j < 3u; j++) {
        var a = T(f32(i / 4u % 8u + 4u * j + i % 4u));
        for (var n = 0u; n < 16u * p.trips; n++) {
            a = fma(a, m, b);
        }
        sum += f32(a);
    }
    return bitcast<u32>(sum);
}

fn dots(i: u32) -> u32 {
    var sum = 0u;
    for (var j = 0u; j < 8u; j++) {
        var s = 0x01030507u * (i % 8u + 1u) + 0x11213141u * j;
        for (var n = 0u; n < 4u * p.trips; n++) {
            var dot = 0;
            for (var k = 0u; k < 4u; k++) {
                dot += signed_byte(s, k) * signed_byte(p.mul, k);
            }
            s += u32(dot);
        }
        sum += s;
    }
    return sum;
}

fn product() -> u32 {
    var sum = 0.0;
    for (var j = 0u; j < 8u; j++) {
        for (var n = 0u; n < (j + p.trips) * EDGE; n++) {
            sum += bitcast<f32>(p.mul) * bitcast<f32>(p.add);
        }
    }
    return bitcast<u32>(sum);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
    let i = id.x;
    if (i >= p.count) {
        return;
    }
    if (KIND == 0u) {
        y[i] = x[i];
    } else if (KIND == 1u) {
        y[i] = chain(i);
    } else if (KIND == 2u) {
        y[i] = dots(i);
    } else {
        y[i] = product();
    }
}
