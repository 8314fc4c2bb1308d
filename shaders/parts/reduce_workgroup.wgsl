// Adds a value up over each LANES neighbouring invocations through workgroup memory. LANES is a power of two;
// lane 0 gets the sum. Every invocation of the workgroup must call it.
const_assert ((LANES & (LANES - 1u)) == 0u);
var<workgroup> lane_sums: array<f32, WG_X>;
fn reduce_lanes(v: f32, local: u32) -> f32 {
    lane_sums[local] = v;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (local % LANES < half) {
            lane_sums[local] += lane_sums[local + half];
        }
    }
    workgroupBarrier();
    return lane_sums[local];
}
