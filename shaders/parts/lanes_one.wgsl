// The sums of one lane, for adapters whose lanes are a processor's.
const_assert LANES == 1u;
fn reduce_lanes4(v: vec4f, local: u32) -> vec4f {
    return v;
}
