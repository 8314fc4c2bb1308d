// Input of a convolution: the channels of `x` [pixels, ca], then those of `x2` [pixels, cb], any numbers of
// them; zeros beyond the last channel, whatever lies there.
@group(0) @binding(SECOND) var<storage, read> x2: array<xload>; // [pixels, cb]

fn input1(pixel: u32, c: u32) -> f32 {
    if (c < p.ca) {
        return f32(x[pixel * p.ca + c]);
    }
    if (c < p.ca + p.cb) {
        return f32(x2[pixel * p.cb + c - p.ca]);
    }
    return 0.0;
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
