// Counts loop iterations in one invocation: y[0] += 1 and y[1] = xorshift32(y[1]), p.trips times. The second makes
// every iteration depend on the one before, so that no compiler can replace the loop by its result.
struct Params {
    trips: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<u32>;  // [2] count, state

@compute @workgroup_size(1)
fn main() {
    var count = y[0];
    var state = y[1];
    for (var i = 0u; i < p.trips; i++) {
        count += 1u;
        state ^= state << 13u;
        state ^= state >> 17u;
        state ^= state << 5u;
    }
    y[0] = count;
    y[1] = state;
}
