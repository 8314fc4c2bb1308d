// Input of a convolution: one picture `x: array<…>` [pixels, ca] of any number of channels; zeros beyond the
// last channel, whatever lies there.
fn input1(pixel: u32, c: u32) -> f32 {
    let v = f32(x[pixel * p.ca + min(c, p.ca - 1u)]);
    return select(0.0, v, c < p.ca);
}

fn input8(pixel: u32, c8: u32) -> Eight {
    let c = c8 * 8u;
    return Eight(
        vec4f(
            input1(pixel, c), input1(pixel, c + 1u), input1(pixel, c + 2u), input1(pixel, c + 3u),
        ),
        vec4f(
            input1(pixel, c + 4u), input1(pixel, c + 5u),
            input1(pixel, c + 6u), input1(pixel, c + 7u),
        ),
    );
}
