// Input of a convolution: one picture `x: array<vec4<…>>` [pixels, ca], ca a multiple of eight.
fn input8(pixel: u32, c8: u32) -> Eight {
    let i = pixel * (p.ca / 4u) + c8 * 2u;
    return Eight(vec4f(x[i]), vec4f(x[i + 1u]));
}
