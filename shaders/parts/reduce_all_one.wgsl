// Each invocation has an item of its own: nothing to share.
fn all_sum(v: f32, local: u32) -> f32 {
    return v;
}
fn all_max(v: f32, local: u32) -> f32 {
    return v;
}
