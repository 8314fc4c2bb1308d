// What makes the levels of a weight cubic.
fn weight_cubic(row: u32) -> f32 {
    return info.cubic;
}
