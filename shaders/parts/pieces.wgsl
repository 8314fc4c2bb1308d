// Thirty-two of a row of x at a time, and its norm on the way.
fn squares(v: Eight) -> f32 {
    return dot(v.lo, v.lo) + dot(v.hi, v.hi);
}

// Eight of x times gamma.
fn scaled(v: Eight, c8: u32) -> Eight {
    let g = gamma8(min(c8, p.blocks - 1u));
    return Eight(v.lo * g.lo, v.hi * g.hi);
}

fn piece_of(m: u32, piece: u32) -> Piece {
    let c8 = 4u * piece;
    return Piece(eight(m, c8), eight(m, c8 + 1u), eight(m, c8 + 2u), eight(m, c8 + 3u));
}

// Zeros behind the last block of x, where a row of w has up to three more.
fn eight(m: u32, c8: u32) -> Eight {
    let v = load8(m * p.k, min(c8, p.blocks - 1u), p.k);
    let inside = c8 < p.blocks;
    return Eight(select(vec4f(), v.lo, inside), select(vec4f(), v.hi, inside));
}
