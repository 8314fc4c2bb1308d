// Eight channels of a norm's scale, where the row length is a multiple of eight.
@group(0) @binding(GAMMA) var<storage, read> gamma: array<vec4f>; // [k / 4]

fn gamma8(c8: u32) -> Eight {
    return Eight(gamma[2u * c8], gamma[2u * c8 + 1u]);
}
