// x in eight bits, for pieces.wgsl: as round8.wgsl makes them, which has the sums of squares, too.
@group(0) @binding(GAMMA) var<storage, read> x_scales: array<vec4f>; // [M, pieces, 3] the same memory as x, its last four words s, Σ q, Σ x², 0

fn fetch(m: u32, piece: u32) -> Fetched {
    let i = 3u * (m * ((p.blocks + 3u) / 4u) + piece);
    let own = x_scales[i + 2u];
    return Fetched(Piece(x[i], x[i + 1u], own.x, i32(own.y)), own.z);
}
