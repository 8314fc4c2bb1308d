// Attention for few queries (decoding) on adapters with real lanes: a workgroup takes one query of HEADS neighbouring heads that
// share their keys and values, and a part of the keys. Teams of LANES invocations take four keys each in a turn, eight channels
// an invocation, so that neighbours read neighbouring bytes and what is read serves all HEADS; each team has an online
// softmax of its own, and they are joined at the end (flash decoding, Dao et al. 2023).
struct Params {
    sq: u32,       // queries of one batch item
    sk: u32,       // keys of one batch item (the cache's capacity)
    heads: u32,    // heads of the queries
    kv_heads: u32, // heads of keys and values; each serves heads / kv_heads neighbouring query heads
    d: u32,        // channels of a head
    rows: u32,     // batch · sq · heads, in the order of q's memory
    row0: u32,     // first row of this launch
    n: u32,        // items of work
    splits: u32,   // parts that the keys are divided into
    span: u32,     // keys in a part
    scale: f32,
    window: u32,   // last keys that a query sees, itself included
    cap: f32,      // limit of the scores
    pad0: u32,
    pad1: u32,
    pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<act4>;       // [B, sq, heads · d / 4]
@group(0) @binding(4) var<storage, read> start: array<u32>;     // [1]

const TEAMS = WG_X / LANES; // LANES: the power of two not below d / 8
var<workgroup> team_stats: array<vec2f, TEAMS>; // maximum and total of one head
var<workgroup> team_lo: array<vec4f, WG_X>;     // its sums
var<workgroup> team_hi: array<vec4f, WG_X>;

struct Eight { lo: vec4f, hi: vec4f }
struct Four { a: Eight, b: Eight, c: Eight, d: Eight }
// Online softmax of one head: largest score, sum of the weights, sum of the weighted values.
struct Head { most: f32, total: f32, sum: Eight }

@compute @workgroup_size(WG_X)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let split = group.z;
    let d4 = p.d / 4u;
    let served = p.heads / p.kv_heads; // query heads of one head of keys
    let parts = (served + HEADS - 1u) / HEADS;
    let token = group.y;
    let kv = group.x / parts;
    let first = group.x % parts * HEADS;
    let row = token * p.heads + kv * served + first;
    let beyond = served - 1u - first; // heads beyond the last repeat it and are not stored
    let b = token / p.sq;
    let i = token % p.sq;
    let lo = seen_from(i) + split * p.span;
    let end = min(seen_by(i), lo + p.span);
    let step = p.kv_heads * d4;
    let lane = local % LANES;
    let team = local / LANES;
    // Channels behind the head's own are some of them, times a query of zero.
    let ca = min(2u * lane, d4 - 1u);
    let cb = min(2u * lane + 1u, d4 - 1u);
    let keys = (b * p.sk * p.kv_heads + kv) * d4;
    let q0 = query8(row, lane);
    let q1 = query8(row + min(1u, beyond), lane);
    let q2 = query8(row + min(2u, beyond), lane);
    let q3 = query8(row + min(3u, beyond), lane);
    var h0 = Head(LOWEST, 0.0, Eight());
    var h1 = h0;
    var h2 = h0;
    var h3 = h0;
    for (var turn = lo; turn < end; turn += 4u * TEAMS) {
        let j = turn + 4u * team;
        // Keys that the query does not see are not read: their memory may hold anything.
        let at = keys + min(vec4u(j) + vec4u(0u, 1u, 2u, 3u), vec4u(end - 1u)) * step;
        let k = Four(
            Eight(key4(at.x + ca), key4(at.x + cb)), Eight(key4(at.y + ca), key4(at.y + cb)),
            Eight(key4(at.z + ca), key4(at.z + cb)), Eight(key4(at.w + ca), key4(at.w + cb)),
        );
        let v = Four(
            Eight(value4(at.x + ca), value4(at.x + cb)), Eight(value4(at.y + ca), value4(at.y + cb)),
            Eight(value4(at.z + ca), value4(at.z + cb)), Eight(value4(at.w + ca), value4(at.w + cb)),
        );
        let seen = vec4u(j) + vec4u(0u, 1u, 2u, 3u) < vec4u(end);
        attend(&h0, reduce_lanes4(dots(q0, k), local), v, seen);
        if (HEADS > 1u) { attend(&h1, reduce_lanes4(dots(q1, k), local), v, seen); }
        if (HEADS > 2u) { attend(&h2, reduce_lanes4(dots(q2, k), local), v, seen); }
        if (HEADS > 3u) { attend(&h3, reduce_lanes4(dots(q3, k), local), v, seen); }
    }
    finish(h0, row, split, local, true);
    if (HEADS > 1u) { finish(h1, row + 1u, split, local, beyond >= 1u); }
    if (HEADS > 2u) { finish(h2, row + 2u, split, local, beyond >= 2u); }
    if (HEADS > 3u) { finish(h3, row + 3u, split, local, beyond >= 3u); }
}

// Eight channels of a query, zeros behind its last.
fn query8(row: u32, lane: u32) -> Eight {
    let d4 = p.d / 4u;
    let c = 2u * lane;
    let lo = vec4f(q[row * d4 + min(c, d4 - 1u)]);
    let hi = vec4f(q[row * d4 + min(c + 1u, d4 - 1u)]);
    return Eight(select(vec4f(), lo, c < d4), select(vec4f(), hi, c + 1u < d4));
}

fn dot8(x: Eight, y: Eight) -> f32 { return dot(x.lo, y.lo) + dot(x.hi, y.hi); }
fn dots(x: Eight, k: Four) -> vec4f { return vec4f(dot8(x, k.a), dot8(x, k.b), dot8(x, k.c), dot8(x, k.d)); }

// Takes four keys in, whose products with the query are these.
fn attend(h: ptr<function, Head>, products: vec4f, v: Four, seen: vec4<bool>) {
    let s = select(vec4f(LOWEST), score(products), seen);
    let next = max((*h).most, max(max(s.x, s.y), max(s.z, s.w)));
    let shrink = exp((*h).most - next);
    let w = exp(s - next);
    (*h).most = next;
    (*h).total = (*h).total * shrink + ((w.x + w.y) + (w.z + w.w));
    (*h).sum.lo = (*h).sum.lo * shrink + mat4x4f(v.a.lo, v.b.lo, v.c.lo, v.d.lo) * w;
    (*h).sum.hi = (*h).sum.hi * shrink + mat4x4f(v.a.hi, v.b.hi, v.c.hi, v.d.hi) * w;
}

// Joins the teams. Every invocation of the workgroup must call it.
fn finish(h: Head, row: u32, split: u32, local: u32, inside: bool) {
    workgroupBarrier(); // the head before may still be read
    if (local % LANES == 0u) {
        team_stats[local / LANES] = vec2f(h.most, h.total);
    }
    team_lo[local] = h.sum.lo;
    team_hi[local] = h.sum.hi;
    workgroupBarrier();
    let c = 2u * local;
    if (local >= LANES || c >= p.d / 4u || !inside) { return; }
    var most = LOWEST;
    for (var t = 0u; t < TEAMS; t++) {
        most = max(most, team_stats[t].x);
    }
    var total = 0.0;
    var sum = Eight();
    for (var t = 0u; t < TEAMS; t++) {
        let w = exp(team_stats[t].x - most);
        total += w * team_stats[t].y;
        sum.lo += w * team_lo[t * LANES + local];
        sum.hi += w * team_hi[t * LANES + local];
    }
    store(row, split, c, sum.lo, vec2f(most, total));
    if (c + 1u < p.d / 4u) {
        store(row, split, c + 1u, sum.hi, vec2f(most, total));
    }
}
