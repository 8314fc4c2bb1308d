// Input of a convolution: the channels of `x` [pixels, ca], then those of `x2` [pixels, cb], read where they
// lie. ca and cb are multiples of eight, so that no block of eight straddles the two.
@group(0) @binding(SECOND) var<storage, read> x2: array<xload>; // [pixels, cb]

fn input8(pixel: u32, c8: u32) -> Eight {
    let first = p.ca / 8u;
    if (c8 < first) {
        let i = pixel * (p.ca / 4u) + c8 * 2u;
        return Eight(vec4f(x[i]), vec4f(x[i + 1u]));
    }
    let i = pixel * (p.cb / 4u) + (c8 - first) * 2u;
    return Eight(vec4f(x2[i]), vec4f(x2[i + 1u]));
}
