// Eight channels of the activation `x: array<…>` of any row length: zeros beyond the row's end, whatever
// lies there.
fn load1(row_start: u32, c: u32, channels: u32) -> f32 {
    let v = f32(x[row_start + min(c, channels - 1u)]);
    return select(0.0, v, c < channels);
}
fn load8(row_start: u32, c8: u32, channels: u32) -> Eight {
    let c = c8 * 8u;
    return Eight(
        vec4f(
            load1(row_start, c, channels), load1(row_start, c + 1u, channels),
            load1(row_start, c + 2u, channels), load1(row_start, c + 3u, channels),
        ),
        vec4f(
            load1(row_start, c + 4u, channels), load1(row_start, c + 5u, channels),
            load1(row_start, c + 6u, channels), load1(row_start, c + 7u, channels),
        ),
    );
}
