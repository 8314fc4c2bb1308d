// y[i] = Σ_j<3 Aⁿ(i mod 8 + 4j + (0, 1, 2, 3)) with A(a) = a · mul + add and n = 16 · trips: twelve chains that do not wait
// for each other, which are few enough for sixteen registers. They differ, so that no compiler makes one of two.
struct Params {
    count: u32,
    trips: u32,
    mul: u32,  // bits of an f32
    add: u32,  // bits of an f32
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<vec4f>;  // [count]

fn four(a: V, m: V, b: V) -> V {
    return fma(fma(fma(fma(a, m, b), m, b), m, b), m, b);
}

fn sixteen(a: V, m: V, b: V) -> V {
    return four(four(four(four(a, m, b), m, b), m, b), m, b);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
    if (id.x >= p.count) {
        return;
    }
    let m = V(vec4f(bitcast<f32>(p.mul)));
    let b = V(vec4f(bitcast<f32>(p.add)));
    let first = vec4f(f32(id.x % 8u)) + vec4f(0.0, 1.0, 2.0, 3.0);
    var a0 = V(first);
    var a1 = V(first + 4.0);
    var a2 = V(first + 8.0);
    for (var t = 0u; t < p.trips; t++) {
        a0 = sixteen(a0, m, b);
        a1 = sixteen(a1, m, b);
        a2 = sixteen(a2, m, b);
    }
    y[id.x] = vec4f(a0) + vec4f(a1) + vec4f(a2);
}
