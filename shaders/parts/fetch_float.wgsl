// x as it is, for pieces.wgsl.
fn fetch(m: u32, piece: u32) -> Fetched {
    let c8 = 4u * piece;
    let v = Piece(eight(m, c8), eight(m, c8 + 1u), eight(m, c8 + 2u), eight(m, c8 + 3u));
    if (NORM) {
        let square = (squares(v.a) + squares(v.b)) + (squares(v.c) + squares(v.d));
        let x = Piece(scaled(v.a, c8), scaled(v.b, c8 + 1u), scaled(v.c, c8 + 2u), scaled(v.d, c8 + 3u));
        return Fetched(x, square);
    }
    return Fetched(v, 0.0);
}
