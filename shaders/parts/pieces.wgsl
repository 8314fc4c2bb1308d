// A row of x times ROWS rows of w in LANES invocations, thirty-two k at a time, and the norm of x on the way.
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

// Every invocation of the workgroup must call it; all lanes get the sums.
fn products(m: u32, lane: u32, local: u32, r0: Row, r1: Row, r2: Row, r3: Row) -> vec4f {
    var sum = vec4f();
    var square = 0.0;
    for (var piece = lane; piece < (p.blocks + 3u) / 4u; piece += LANES) {
        var v = piece_of(m, piece);
        if (NORM) {
            square += (squares(v.a) + squares(v.b)) + (squares(v.c) + squares(v.d));
            let c8 = 4u * piece;
            v = Piece(scaled(v.a, c8), scaled(v.b, c8 + 1u), scaled(v.c, c8 + 2u), scaled(v.d, c8 + 3u));
        }
        sum.x += dot32(r0, piece, v);
        if (ROWS > 1u) { sum.y += dot32(r1, piece, v); }
        if (ROWS > 2u) {
            sum.z += dot32(r2, piece, v);
            sum.w += dot32(r3, piece, v);
        }
    }
    sum = reduce_lanes4(sum, local);
    if (NORM) {
        square = reduce_lanes4(vec4f(square), local).x;
        sum *= inverseSqrt(square / f32(p.k) + bitcast<f32>(EPS));
    }
    return sum;
}
