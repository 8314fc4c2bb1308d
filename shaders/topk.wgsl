// The same as reference/topk.wgsl with one workgroup of LANES, at least k, for each segment of at most 16 · LANES numbers. The
// k-th best of the lanes' own best numbers is a limit: k numbers or more reach it, and they are in k lanes. They are
// kept, and the place of each is the number of those that beat it.
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

const ROOM = 1024u; // 16 numbers in each of 64 lanes
var<workgroup> found: array<Candidate, LANES>;
var<workgroup> kept: array<Candidate, ROOM>;
var<workgroup> count: atomic<u32>;
var<workgroup> limit: Candidate;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let segment = group.x;
    let start = segment * p.segment + lane;
    let end = min((segment + 1u) * p.segment, p.n);
    let mine = best_of(start, end);
    found[lane] = mine;
    if (lane == 0u) {
        atomicStore(&count, 0u);
        limit = Candidate(0u, NO_ID);
    }
    workgroupBarrier();
    var rank = 0u;
    var bad = false;
    for (var i = 0u; i < LANES; i++) {
        let other = found[i];
        rank += select(0u, 1u, beats(other, mine));
        bad = bad || other.key == BAD_KEY;
    }
    // No two numbers have one rank: their ids differ. Fewer than k lanes with numbers leave no limit.
    if (rank == p.k - 1u && mine.id != NO_ID && !bad) { limit = mine; }
    workgroupBarrier();
    if (!bad) {
        for (var j = start; j < end; j += LANES) {
            let c = candidate(j);
            if (c.id != NO_ID && !beats(limit, c)) {
                kept[min(atomicAdd(&count, 1u), ROOM - 1u)] = c;
            }
        }
    }
    workgroupBarrier();
    let n = min(atomicLoad(&count), ROOM);
    // Places without a number are empty; all are, if a number is not finite.
    for (var i = n + lane; i < p.k; i += LANES) {
        put(segment * p.k + i, Candidate(0u, NO_ID), bad);
    }
    for (var i = lane; i < n; i += LANES) {
        let c = kept[i];
        var place = 0u;
        for (var j = 0u; j < n; j++) {
            place += select(0u, 1u, beats(kept[j], c));
        }
        if (place < p.k) { put(segment * p.k + place, c, false); }
    }
}
