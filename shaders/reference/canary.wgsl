// The same count as canary.wgsl with sixteen steps written out in each iteration: no driver stops so short a loop.
struct Params {
    trips: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<u32>;  // [2] count, state

fn step(v: u32) -> u32 {
    let a = v ^ (v << 13u);
    let b = a ^ (a >> 17u);
    return b ^ (b << 5u);
}

fn four(v: u32) -> u32 {
    return step(step(step(step(v))));
}

@compute @workgroup_size(1)
fn main() {
    var count = y[0];
    var state = y[1];
    for (var i = 0u; i < p.trips / 16u; i++) {
        count += 16u;
        state = four(four(four(four(state))));
    }
    for (var i = 0u; i < p.trips % 16u; i++) {
        count += 1u;
        state = step(state);
    }
    y[0] = count;
    y[1] = state;
}
