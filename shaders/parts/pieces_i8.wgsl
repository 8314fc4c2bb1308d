// A row of x times ROWS rows of w in LANES invocations, thirty-two k at a time, x in eight bits as round8.wgsl makes them, which also has
// the sums of squares of a norm.
@group(0) @binding(GAMMA) var<storage, read> x_scales: array<vec4f>; // [M, pieces, 3] the same memory as x, its last four words s, Σ q, Σ x², 0

// Every invocation of the workgroup must call it; all lanes get the sums.
fn products(m: u32, lane: u32, local: u32, r0: Row, r1: Row, r2: Row, r3: Row) -> vec4f {
    let pieces = (p.blocks + 3u) / 4u;
    var sum = vec4f();
    var square = 0.0;
    for (var piece = lane; piece < pieces; piece += LANES) {
        let i = 3u * (m * pieces + piece);
        let own = x_scales[i + 2u];
        let v = Piece(x[i], x[i + 1u], own.x, i32(own.y));
        if (NORM) { square += own.z; }
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
