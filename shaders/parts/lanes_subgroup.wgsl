// Adds four values up over each LANES neighbouring invocations, all of one subgroup; all of them get the sums. LANES is a
// power of two and no more than a subgroup. Invocations are taken to be in subgroups in their order, as on every known driver;
// WGSL does not promise it, the self-test would see it.
enable subgroups;
const_assert ((LANES & (LANES - 1u)) == 0u);
fn reduce_lanes4(v: vec4f, local: u32) -> vec4f {
    var sum = v;
    for (var mask = LANES / 2u; mask > 0u; mask /= 2u) {
        sum += subgroupShuffleXor(sum, mask);
    }
    return sum;
}
