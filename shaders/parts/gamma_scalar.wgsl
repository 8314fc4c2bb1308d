// Eight channels of a norm's scale; those beyond the end are the last one, where x is zero.
@group(0) @binding(GAMMA) var<storage, read> gamma: array<f32>; // [k]

fn gamma4(c: u32) -> vec4f {
    let i = min(vec4u(c) + vec4u(0u, 1u, 2u, 3u), vec4u(p.k - 1u));
    return vec4f(gamma[i.x], gamma[i.y], gamma[i.z], gamma[i.w]);
}

fn gamma8(c8: u32) -> Eight {
    return Eight(gamma4(8u * c8), gamma4(8u * c8 + 4u));
}
