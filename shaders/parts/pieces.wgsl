// A row of x times ROWS rows of w in LANES invocations, thirty-two k at a time, and the norm of x on the way. Another part fetches x.

// Thirty-two of x, times a norm's scale if there is one, and the sum of their squares before.
struct Fetched { x: Piece, square: f32 }

// Every invocation of the workgroup must call it; all lanes get the sums.
fn products(m: u32, lane: u32, local: u32, r0: Row, r1: Row, r2: Row, r3: Row) -> vec4f {
    var sum = vec4f();
    var square = 0.0;
    for (var piece = lane; piece < (p.blocks + 3u) / 4u; piece += LANES) {
        let fetched = fetch(m, piece);
        let v = fetched.x;
        square += fetched.square;
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
