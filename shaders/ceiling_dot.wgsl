// y[i] = Σ_j<8 Dⁿ(0x01030507 · (i mod 8 + 1) + 0x11213141 · j) with D(s) = s + Σ_k<4 s.k · mul.k over the signed bytes of
// both words, n = 4 · trips, all modulo 2³².
struct Params {
    count: u32,
    trips: u32,
    mul: u32,  // four signed bytes
    add: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<u32>;  // [count]

fn four(s: u32, m: u32) -> u32 {
    let a = s + u32(dot4I8Packed(s, m));
    let b = a + u32(dot4I8Packed(a, m));
    let c = b + u32(dot4I8Packed(b, m));
    return c + u32(dot4I8Packed(c, m));
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
    if (id.x >= p.count) {
        return;
    }
    let m = p.mul;
    let first = 0x01030507u * (id.x % 8u + 1u);
    var s0 = first;
    var s1 = first + 0x11213141u;
    var s2 = first + 0x11213141u * 2u;
    var s3 = first + 0x11213141u * 3u;
    var s4 = first + 0x11213141u * 4u;
    var s5 = first + 0x11213141u * 5u;
    var s6 = first + 0x11213141u * 6u;
    var s7 = first + 0x11213141u * 7u;
    for (var t = 0u; t < p.trips; t++) {
        s0 = four(s0, m); s1 = four(s1, m); s2 = four(s2, m); s3 = four(s3, m);
        s4 = four(s4, m); s5 = four(s5, m); s6 = four(s6, m); s7 = four(s7, m);
    }
    y[id.x] = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7;
}
