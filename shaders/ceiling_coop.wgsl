// y[subgroup, i, j] = Σ_t<8 (t + trips) · EDGE · mul · add: eight chains of C ← A · B + C with A full of mul and B of add, which do
// not wait for each other; they begin apart, so that no compiler makes one of two. A workgroup is a subgroup.
enable wgpu_cooperative_matrix;
struct Params {
    count: u32,  // subgroups
    trips: u32,
    mul: u32,    // bits of an f32
    add: u32,    // bits of an f32
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;  // [count, EDGE, EDGE]
var<workgroup> left: array<f16, EDGE * EDGE>;
var<workgroup> right: array<f16, EDGE * EDGE>;

@compute @workgroup_size(WG_X)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    for (var i = local; i < EDGE * EDGE; i += WG_X) {
        left[i] = f16(bitcast<f32>(p.mul));
        right[i] = f16(bitcast<f32>(p.add));
    }
    workgroupBarrier();
    if (group.x >= p.count) { return; }
    let a = coopLoadT<Left>(&left[0], EDGE);
    let b = coopLoadT<Right>(&right[0], EDGE);
    var s0 = Sum();
    var s1 = coopMultiplyAdd(a, b, s0);
    var s2 = coopMultiplyAdd(a, b, s1);
    var s3 = coopMultiplyAdd(a, b, s2);
    var s4 = coopMultiplyAdd(a, b, s3);
    var s5 = coopMultiplyAdd(a, b, s4);
    var s6 = coopMultiplyAdd(a, b, s5);
    var s7 = coopMultiplyAdd(a, b, s6);
    for (var t = 0u; t < p.trips; t++) {
        s0 = coopMultiplyAdd(a, b, s0);
        s1 = coopMultiplyAdd(a, b, s1);
        s2 = coopMultiplyAdd(a, b, s2);
        s3 = coopMultiplyAdd(a, b, s3);
        s4 = coopMultiplyAdd(a, b, s4);
        s5 = coopMultiplyAdd(a, b, s5);
        s6 = coopMultiplyAdd(a, b, s6);
        s7 = coopMultiplyAdd(a, b, s7);
    }
    let sum = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7));
    coopStoreT(sum, &y[group.x * EDGE * EDGE], EDGE);
}
