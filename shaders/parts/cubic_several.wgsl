// Of two or three weights in one each has levels of its own.
fn weight_cubic(row: u32) -> f32 {
    return select(select(p.cubic.x, p.cubic.y, row >= p.begins.y), p.cubic.z, row >= p.begins.z);
}
