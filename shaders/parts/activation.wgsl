// activation(v): 0 identity · 1 SiLU x·σ(x) · 2 GELU x·Φ(x) · 3 quick GELU x·σ(1.702 x) · 4 GELU, tanh form
// · 5 ReLU max(x, 0), which keeps what is not a number.

// σ(v) without overflow: the exponent is never positive.
fn logistic(v: f32) -> f32 {
    let e = exp(-abs(v));
    return select(e, 1.0, v >= 0.0) / (1.0 + e);
}

// Chebyshev fit of erfc (Numerical Recipes in C, 2nd ed., §6.2), fractional error below 1.2e-7.
fn erf(v: f32) -> f32 {
    let z = abs(v);
    let t = 1.0 / (1.0 + 0.5 * z);
    let poly = -1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418
        + t * (-0.18628806 + t * (0.27886807 + t * (-1.13520398 + t * (1.48851587
        + t * (-0.82215223 + t * 0.17087277))))))));
    let tail = t * exp(-z * z + poly);
    return select(tail - 1.0, 1.0 - tail, v >= 0.0);
}

fn activation(v: f32) -> f32 {
    if (ACT == 1u) { return v * logistic(v); }
    if (ACT == 2u) { return 0.5 * v * (1.0 + erf(v * 0.70710678118654752)); }
    if (ACT == 3u) { return v * logistic(1.702 * v); }
    if (ACT == 4u) { return v * logistic(1.5957691216057308 * (v + 0.044715 * v * v * v)); }
    if (ACT == 5u) { return select(v, 0.0, v < 0.0); }
    return v;
}
