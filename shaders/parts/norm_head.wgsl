// An RMS norm of each head on the way: x · gamma / √(mean of x² + ε).

// 1 / √(mean of x² + ε) of the head of the s-th input whose first four channels are `first`.
fn root_of(s: u32, first: u32, d4: u32) -> f32 {
    var sum = 0.0;
    for (var c = 0u; c < d4; c++) {
        let v = load(s, first + c);
        sum += dot(v, v);
    }
    return inverseSqrt(sum / f32(4u * d4) + p.eps);
}

// Four channels of a head, from 4 · c4 on.
fn normed(s: u32, v: vec4f, c4: u32, root: f32) -> vec4f { return v * root * gamma_of(s, c4); }
