// Adds four values up over each LANES neighbouring invocations through workgroup memory; all of them get the sums. LANES is
// a power of two. Every invocation of the workgroup must call it.
const_assert ((LANES & (LANES - 1u)) == 0u);
var<workgroup> lane_sums: array<vec4f, WG_X>;
fn reduce_lanes4(v: vec4f, local: u32) -> vec4f {
    workgroupBarrier(); // what an earlier call left may still be read
    lane_sums[local] = v;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (local % LANES < half) {
            lane_sums[local] += lane_sums[local + half];
        }
    }
    workgroupBarrier();
    return lane_sums[local / LANES * LANES];
}
