// An RMS norm of each head on the way: x · gamma / √(mean of x² + ε).
@group(0) @binding(6) var<storage, read> gamma: array<vec4f>; // [D / 4]

// 1 / √(mean of x² + ε) of the head whose first four channels are `first`.
fn root_of(first: u32, d4: u32) -> f32 {
    var sum = 0.0;
    for (var c = 0u; c < d4; c++) {
        let v = vec4f(x[first + c]);
        sum += dot(v, v);
    }
    return inverseSqrt(sum / f32(4u * d4) + p.eps);
}

// Four channels of a head, from 4 · c4 on.
fn normed(v: vec4f, c4: u32, root: f32) -> vec4f { return v * root * gamma[c4]; }
