// reference/topk.wgsl for k = 1, with one workgroup of LANES for each segment: each lane keeps the best of its own numbers, a
// tree finds the best of all.
struct Params {
    n: u32,       // numbers in x
    k: u32,       // winners of each segment
    segment: u32, // numbers in one segment
    segments: u32,
    pairs: u32,   // 1: x holds n numbers, then their n ids; 0: n numbers, the id is the place
    ids_only: u32, // 1: y holds ids alone
    pad0: u32,
    pad1: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;        // [n] bits of f32, or [2, n] with ids
@group(0) @binding(2) var<storage, read_write> y: array<u32>;  // [2, segments, k] bits of f32, ids; or [k] ids

const_assert ((LANES & (LANES - 1u)) == 0u);
var<workgroup> found: array<Candidate, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let segment = group.x;
    let end = min((segment + 1u) * p.segment, p.n);
    found[lane] = best_of(segment * p.segment + lane, end);
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (lane < half && beats(found[lane + half], found[lane])) {
            found[lane] = found[lane + half];
        }
    }
    if (lane == 0u) { put(segment, found[0], found[0].key == BAD_KEY); }
}
