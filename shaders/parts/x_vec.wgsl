// Eight channels of the activation `x: array<vec4<…>>`, where the row length is a multiple of eight.
fn load8(row_start: u32, c8: u32, channels: u32) -> Eight {
    let i = row_start / 4u + c8 * 2u;
    return Eight(vec4f(x[i]), vec4f(x[i + 1u]));
}
