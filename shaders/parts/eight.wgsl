// Eight channels of a row of x, what they add to a norm, and times its scale.
fn squares(v: Eight) -> f32 {
    return dot(v.lo, v.lo) + dot(v.hi, v.hi);
}

// Eight of x times gamma.
fn scaled(v: Eight, c8: u32) -> Eight {
    let g = gamma8(min(c8, p.blocks - 1u));
    return Eight(v.lo * g.lo, v.hi * g.hi);
}

// Zeros behind the last block of x, where a row of w has up to three more.
fn eight(m: u32, c8: u32) -> Eight {
    let v = load8(m * p.k, min(c8, p.blocks - 1u), p.k);
    let inside = c8 < p.blocks;
    return Eight(select(vec4f(), v.lo, inside), select(vec4f(), v.hi, inside));
}
