// y[i] = x[i]. Each workgroup copies a block of 64 · trips neighbouring cells, so that the reads of one turn lie side by
// side and those of a workgroup in one place.
struct Params {
    count: u32,  // cells of four words
    trips: u32,  // cells that one invocation copies
    mul: u32,
    add: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4u>;  // [count]
@group(0) @binding(2) var<storage, read_write> y: array<vec4u>;  // [count]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_id) lane: vec3u) {
    let first = group.x * 64u * p.trips + lane.x;
    for (var t = 0u; t < p.trips; t++) {
        let i = first + t * 64u;
        if (i < p.count) {
            y[i] = x[i];
        }
    }
}
