// The k largest of each segment of n numbers, largest first, the lower id first among equals (−0 equals 0). One
// invocation for each segment scans it k times, each time for the best that comes after the last one found.
// A number that is not finite makes its whole segment NaN with id 0xffffffff. Numbers are compared as
// integers of the same order, because comparisons of NaN and infinity differ by driver.
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

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
    if (id.x >= p.segments) { return; }
    let start = id.x * p.segment;
    let end = min(start + p.segment, p.n);
    var last = Candidate(BAD_KEY, NO_ID);
    var bad = false;
    for (var i = 0u; i < p.k; i++) {
        var best = Candidate(0u, NO_ID);
        for (var j = start; j < end; j++) {
            let c = candidate(j);
            if ((i == 0u || beats(last, c)) && beats(c, best)) { best = c; }
        }
        if (i == 0u) { bad = best.key == BAD_KEY; }
        put(id.x * p.k + i, best, bad);
        last = best;
    }
}
