// Sum and maximum over the whole workgroup (WG_X invocations, a power of two); every invocation gets the result
// and every invocation must call.
const_assert 0u == (WG_X & (WG_X - 1u));
var<workgroup> lane_values: array<f32, WG_X>;

fn all_sum(v: f32, local: u32) -> f32 {
    lane_values[local] = v;
    for (var half = WG_X / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (local < half) {
            lane_values[local] += lane_values[local + half];
        }
    }
    workgroupBarrier();
    let sum = lane_values[0];
    workgroupBarrier(); // before somebody's next call writes
    return sum;
}

fn all_max(v: f32, local: u32) -> f32 {
    lane_values[local] = v;
    for (var half = WG_X / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (local < half) {
            lane_values[local] = max(lane_values[local], lane_values[local + half]);
        }
    }
    workgroupBarrier();
    let most = lane_values[0];
    workgroupBarrier();
    return most;
}
