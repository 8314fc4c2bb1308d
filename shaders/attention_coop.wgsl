// The same as attention.wgsl for adapters that multiply matrices by subgroups, f16 into f32. A workgroup of four subgroups
// takes 4 · EDGE neighbouring queries of one head and KEYS keys in a turn, EDGE queries a subgroup: their channels stay in its
// registers as matrices, and so do the weighted sums of values. Scores pass through workgroup memory, because softmax needs
// them by rows. Sums are scaled anew only where a score exceeds the largest before by more than SLACK (lazy rescaling, as in
// FlashAttention 4): a weight is e^SLACK at most, far below f16's largest number, and sums are f32.
enable subgroups;
enable wgpu_cooperative_matrix;
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

const KEYS = 32u;
const QUERIES = 4u * EDGE;
const SHARES = WG_X / QUERIES;  // invocations that share the scores of a query
const D4 = MATRICES * EDGE / 4u; // fours of channels, with zeros behind the head's own
// Channels and eight unused: eight rows of sixteen bytes then lie in different banks. Likewise four scores and eight weights.
const STRIDE = MATRICES * EDGE + 8u;
const SCORES = KEYS + 4u;
const WEIGHTS = KEYS + 8u;
const_assert SHARES * QUERIES == WG_X;
const_assert QUERIES <= 2u * KEYS;
const SLACK = 6.0;

var<workgroup> tile: array<f16, 2u * KEYS * STRIDE>;     // keys, then values; queries at the beginning
var<workgroup> scores: array<f32, QUERIES * SCORES>;     // later one matrix of each subgroup's sums at a time
var<workgroup> weights: array<f16, QUERIES * WEIGHTS>;
var<workgroup> grown: array<u32, 4>;                     // whether some score of the subgroup exceeds the slack

// Channels of a subgroup's queries, and sums of their values, EDGE channels in each.
struct Queries {
    q0: Left, q1: Left, q2: Left, q3: Left, q4: Left, q5: Left, q6: Left, q7: Left, q8: Left, q9: Left,
    q10: Left, q11: Left, q12: Left, q13: Left, q14: Left, q15: Left, q16: Left, q17: Left, q18: Left, q19: Left,
}
struct Sums {
    s0: Sum, s1: Sum, s2: Sum, s3: Sum, s4: Sum, s5: Sum, s6: Sum, s7: Sum, s8: Sum, s9: Sum,
    s10: Sum, s11: Sum, s12: Sum, s13: Sum, s14: Sum, s15: Sum, s16: Sum, s17: Sum, s18: Sum, s19: Sum,
}

@compute @workgroup_size(WG_X)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let split = group.z % p.splits;
    let b = group.z / p.splits;
    let d4 = p.d / 4u;
    let i0 = group.x * QUERIES;
    let last = min(i0 + QUERIES - 1u, p.sq - 1u); // queries beyond the end repeat the last and are not stored
    // Keys before the first and beyond the last that some query sees are not read: their memory may hold anything.
    let lo = seen_from(i0) + split * p.span;
    let end = min(seen_by(last), lo + p.span);
    let step = p.kv_heads * d4;
    let keys = (b * p.sk * p.kv_heads + group.y / (p.heads / p.kv_heads)) * d4;
    for (var item = local; item < QUERIES * D4; item += WG_X) {
        let row = (b * p.sq + min(i0 + item / D4, last)) * p.heads + group.y;
        let c = item % D4;
        put(item / D4, c, select(vec4f(), vec4f(q[row * d4 + min(c, d4 - 1u)]), c < d4));
    }
    workgroupBarrier();
    var channels = Queries();
    load_queries(&channels, subgroup * EDGE * STRIDE);
    // The query whose weights this invocation computes, with SHARES - 1 others.
    let row = subgroup * EDGE + lane % EDGE;
    let i = min(i0 + row, last);
    let seen = min(seen_by(i), end);
    let from_key = seen_from(i);
    let mine = row * SCORES;
    let turned = subgroup * EDGE * SCORES; // where the subgroup's sums are turned into rows
    var most = LOWEST;
    var total = 0.0;
    var sums = Sums();
    for (var turn = lo; turn < end; turn += KEYS) {
        workgroupBarrier();
        for (var item = local; item < KEYS * D4; item += WG_X) {
            let c = item % D4;
            let at = keys + min(turn + item / D4, end - 1u) * step + min(c, d4 - 1u);
            put(item / D4, c, select(vec4f(), key4(at), c < d4));
            put(KEYS + item / D4, c, select(vec4f(), value4(at), c < d4));
        }
        workgroupBarrier();
        for (var key = 0u; key < KEYS; key += EDGE) {
            coopStoreT(products(&channels, key * STRIDE), &scores[turned + key], SCORES);
        }
        workgroupBarrier();
        var next = LOWEST;
        for (var key = lane / EDGE * 4u; key < KEYS; key += 4u * SHARES) {
            let s = visible(score(scores4(mine + key)), turn + key, from_key, seen);
            next = max(next, max(max(s.x, s.y), max(s.z, s.w)));
        }
        for (var mask = EDGE; mask < EDGE * SHARES; mask *= 2u) {
            next = max(next, subgroupShuffleXor(next, mask));
        }
        next = max(next, most);
        let grows = subgroupAny(next > most + SLACK);
        next = select(most, next, grows || turn == lo);
        if (lane == 0u) {
            grown[subgroup] = select(0u, 1u, grows && turn > lo);
        }
        let shrink = exp(most - next);
        most = next;
        total *= shrink;
        for (var key = lane / EDGE * 4u; key < KEYS; key += 4u * SHARES) {
            let s = visible(score(scores4(mine + key)), turn + key, from_key, seen);
            let w = vec4<f16>(exp(s - most));
            let at = row * WEIGHTS + key;
            weights[at] = w.x;
            weights[at + 1u] = w.y;
            weights[at + 2u] = w.z;
            weights[at + 3u] = w.w;
            total += dot(vec4f(w), vec4f(1.0));
        }
        let any = workgroupUniformLoad(&grown); // its barriers also publish the weights
        if ((any[0] | any[1] | any[2] | any[3]) != 0u) {
            scale_sums(&sums, turned, lane, shrink);
        }
        for (var key = 0u; key < KEYS; key += EDGE) {
            let w = coopLoadT<Left>(&weights[subgroup * EDGE * WEIGHTS + key], WEIGHTS);
            add_values(&sums, w, (KEYS + key) * STRIDE);
        }
    }
    for (var mask = EDGE; mask < EDGE * SHARES; mask *= 2u) {
        total += subgroupShuffleXor(total, mask);
    }
    let out = Out(turned, lane, (b * p.sq + i0 + row) * p.heads + group.y, i0 + row < p.sq, split, vec2f(most, total));
    store_sums(&sums, out);
}

// Four channels, from 4 · c on, of a row of the tile.
fn put(row: u32, c: u32, v: vec4f) {
    let i = row * STRIDE + 4u * c;
    let h = vec4<f16>(v);
    tile[i] = h.x;
    tile[i + 1u] = h.y;
    tile[i + 2u] = h.z;
    tile[i + 3u] = h.w;
}

fn scores4(at: u32) -> vec4f {
    return vec4f(scores[at], scores[at + 1u], scores[at + 2u], scores[at + 3u]);
}

// One matrix of sums with every row times its query's factor.
fn scaled(sum: Sum, turned: u32, lane: u32, factor: f32) -> Sum {
    coopStoreT(sum, &scores[turned], SCORES);
    workgroupBarrier();
    for (var c = lane / EDGE; c < EDGE; c += SHARES) {
        scores[turned + lane % EDGE * SCORES + c] *= factor;
    }
    workgroupBarrier();
    let result = coopLoadT<Sum>(&scores[turned], SCORES);
    workgroupBarrier();
    return result;
}

// Where an invocation stores: its subgroup's scores, its row of y if it is one, and what belongs to the row.
struct Out { turned: u32, lane: u32, row: u32, inside: bool, split: u32, stat: vec2f }

// One matrix of sums, EDGE channels.
fn stored(sum: Sum, first: u32, out: Out) {
    coopStoreT(sum, &scores[out.turned], SCORES);
    workgroupBarrier();
    for (var c = out.lane / EDGE * 4u; c < EDGE; c += 4u * SHARES) {
        if (out.inside && first + c < p.d) {
            store(out.row, out.split, (first + c) / 4u, scores4(out.turned + out.lane % EDGE * SCORES + c), out.stat);
        }
    }
    workgroupBarrier();
}

fn load_queries(q: ptr<function, Queries>, at: u32) {
    (*q).q0 = coopLoadT<Left>(&tile[at], STRIDE);
    if (MATRICES > 1u) { (*q).q1 = coopLoadT<Left>(&tile[at + EDGE], STRIDE); }
    if (MATRICES > 2u) { (*q).q2 = coopLoadT<Left>(&tile[at + 2u * EDGE], STRIDE); }
    if (MATRICES > 3u) { (*q).q3 = coopLoadT<Left>(&tile[at + 3u * EDGE], STRIDE); }
    if (MATRICES > 4u) { (*q).q4 = coopLoadT<Left>(&tile[at + 4u * EDGE], STRIDE); }
    if (MATRICES > 5u) { (*q).q5 = coopLoadT<Left>(&tile[at + 5u * EDGE], STRIDE); }
    if (MATRICES > 6u) { (*q).q6 = coopLoadT<Left>(&tile[at + 6u * EDGE], STRIDE); }
    if (MATRICES > 7u) { (*q).q7 = coopLoadT<Left>(&tile[at + 7u * EDGE], STRIDE); }
    if (MATRICES > 8u) { (*q).q8 = coopLoadT<Left>(&tile[at + 8u * EDGE], STRIDE); }
    if (MATRICES > 9u) { (*q).q9 = coopLoadT<Left>(&tile[at + 9u * EDGE], STRIDE); }
    if (MATRICES > 10u) { (*q).q10 = coopLoadT<Left>(&tile[at + 10u * EDGE], STRIDE); }
    if (MATRICES > 11u) { (*q).q11 = coopLoadT<Left>(&tile[at + 11u * EDGE], STRIDE); }
    if (MATRICES > 12u) { (*q).q12 = coopLoadT<Left>(&tile[at + 12u * EDGE], STRIDE); }
    if (MATRICES > 13u) { (*q).q13 = coopLoadT<Left>(&tile[at + 13u * EDGE], STRIDE); }
    if (MATRICES > 14u) { (*q).q14 = coopLoadT<Left>(&tile[at + 14u * EDGE], STRIDE); }
    if (MATRICES > 15u) { (*q).q15 = coopLoadT<Left>(&tile[at + 15u * EDGE], STRIDE); }
    if (MATRICES > 16u) { (*q).q16 = coopLoadT<Left>(&tile[at + 16u * EDGE], STRIDE); }
    if (MATRICES > 17u) { (*q).q17 = coopLoadT<Left>(&tile[at + 17u * EDGE], STRIDE); }
    if (MATRICES > 18u) { (*q).q18 = coopLoadT<Left>(&tile[at + 18u * EDGE], STRIDE); }
    if (MATRICES > 19u) { (*q).q19 = coopLoadT<Left>(&tile[at + 19u * EDGE], STRIDE); }
}

// The products of the queries with EDGE keys.
fn products(q: ptr<function, Queries>, at: u32) -> Sum {
    var s = Sum();
    s = coopMultiplyAdd((*q).q0, coopLoad<Right>(&tile[at], STRIDE), s);
    if (MATRICES > 1u) { s = coopMultiplyAdd((*q).q1, coopLoad<Right>(&tile[at + EDGE], STRIDE), s); }
    if (MATRICES > 2u) { s = coopMultiplyAdd((*q).q2, coopLoad<Right>(&tile[at + 2u * EDGE], STRIDE), s); }
    if (MATRICES > 3u) { s = coopMultiplyAdd((*q).q3, coopLoad<Right>(&tile[at + 3u * EDGE], STRIDE), s); }
    if (MATRICES > 4u) { s = coopMultiplyAdd((*q).q4, coopLoad<Right>(&tile[at + 4u * EDGE], STRIDE), s); }
    if (MATRICES > 5u) { s = coopMultiplyAdd((*q).q5, coopLoad<Right>(&tile[at + 5u * EDGE], STRIDE), s); }
    if (MATRICES > 6u) { s = coopMultiplyAdd((*q).q6, coopLoad<Right>(&tile[at + 6u * EDGE], STRIDE), s); }
    if (MATRICES > 7u) { s = coopMultiplyAdd((*q).q7, coopLoad<Right>(&tile[at + 7u * EDGE], STRIDE), s); }
    if (MATRICES > 8u) { s = coopMultiplyAdd((*q).q8, coopLoad<Right>(&tile[at + 8u * EDGE], STRIDE), s); }
    if (MATRICES > 9u) { s = coopMultiplyAdd((*q).q9, coopLoad<Right>(&tile[at + 9u * EDGE], STRIDE), s); }
    if (MATRICES > 10u) { s = coopMultiplyAdd((*q).q10, coopLoad<Right>(&tile[at + 10u * EDGE], STRIDE), s); }
    if (MATRICES > 11u) { s = coopMultiplyAdd((*q).q11, coopLoad<Right>(&tile[at + 11u * EDGE], STRIDE), s); }
    if (MATRICES > 12u) { s = coopMultiplyAdd((*q).q12, coopLoad<Right>(&tile[at + 12u * EDGE], STRIDE), s); }
    if (MATRICES > 13u) { s = coopMultiplyAdd((*q).q13, coopLoad<Right>(&tile[at + 13u * EDGE], STRIDE), s); }
    if (MATRICES > 14u) { s = coopMultiplyAdd((*q).q14, coopLoad<Right>(&tile[at + 14u * EDGE], STRIDE), s); }
    if (MATRICES > 15u) { s = coopMultiplyAdd((*q).q15, coopLoad<Right>(&tile[at + 15u * EDGE], STRIDE), s); }
    if (MATRICES > 16u) { s = coopMultiplyAdd((*q).q16, coopLoad<Right>(&tile[at + 16u * EDGE], STRIDE), s); }
    if (MATRICES > 17u) { s = coopMultiplyAdd((*q).q17, coopLoad<Right>(&tile[at + 17u * EDGE], STRIDE), s); }
    if (MATRICES > 18u) { s = coopMultiplyAdd((*q).q18, coopLoad<Right>(&tile[at + 18u * EDGE], STRIDE), s); }
    if (MATRICES > 19u) { s = coopMultiplyAdd((*q).q19, coopLoad<Right>(&tile[at + 19u * EDGE], STRIDE), s); }
    return s;
}

// Adds the values of EDGE keys times their weights.
fn add_values(s: ptr<function, Sums>, w: Left, at: u32) {
    (*s).s0 = coopMultiplyAdd(w, coopLoadT<Right>(&tile[at], STRIDE), (*s).s0);
    if (MATRICES > 1u) { (*s).s1 = coopMultiplyAdd(w, coopLoadT<Right>(&tile[at + EDGE], STRIDE), (*s).s1); }
    if (MATRICES > 2u) { (*s).s2 = coopMultiplyAdd(w, coopLoadT<Right>(&tile[at + 2u * EDGE], STRIDE), (*s).s2); }
    if (MATRICES > 3u) { (*s).s3 = coopMultiplyAdd(w, coopLoadT<Right>(&tile[at + 3u * EDGE], STRIDE), (*s).s3); }
    if (MATRICES > 4u) { (*s).s4 = coopMultiplyAdd(w, coopLoadT<Right>(&tile[at + 4u * EDGE], STRIDE), (*s).s4); }
    if (MATRICES > 5u) { (*s).s5 = coopMultiplyAdd(w, coopLoadT<Right>(&tile[at + 5u * EDGE], STRIDE), (*s).s5); }
    if (MATRICES > 6u) { (*s).s6 = coopMultiplyAdd(w, coopLoadT<Right>(&tile[at + 6u * EDGE], STRIDE), (*s).s6); }
    if (MATRICES > 7u) { (*s).s7 = coopMultiplyAdd(w, coopLoadT<Right>(&tile[at + 7u * EDGE], STRIDE), (*s).s7); }
    if (MATRICES > 8u) { (*s).s8 = coopMultiplyAdd(w, coopLoadT<Right>(&tile[at + 8u * EDGE], STRIDE), (*s).s8); }
    if (MATRICES > 9u) { (*s).s9 = coopMultiplyAdd(w, coopLoadT<Right>(&tile[at + 9u * EDGE], STRIDE), (*s).s9); }
    if (MATRICES > 10u) { (*s).s10 = coopMultiplyAdd(w, coopLoadT<Right>(&tile[at + 10u * EDGE], STRIDE), (*s).s10); }
    if (MATRICES > 11u) { (*s).s11 = coopMultiplyAdd(w, coopLoadT<Right>(&tile[at + 11u * EDGE], STRIDE), (*s).s11); }
    if (MATRICES > 12u) { (*s).s12 = coopMultiplyAdd(w, coopLoadT<Right>(&tile[at + 12u * EDGE], STRIDE), (*s).s12); }
    if (MATRICES > 13u) { (*s).s13 = coopMultiplyAdd(w, coopLoadT<Right>(&tile[at + 13u * EDGE], STRIDE), (*s).s13); }
    if (MATRICES > 14u) { (*s).s14 = coopMultiplyAdd(w, coopLoadT<Right>(&tile[at + 14u * EDGE], STRIDE), (*s).s14); }
    if (MATRICES > 15u) { (*s).s15 = coopMultiplyAdd(w, coopLoadT<Right>(&tile[at + 15u * EDGE], STRIDE), (*s).s15); }
    if (MATRICES > 16u) { (*s).s16 = coopMultiplyAdd(w, coopLoadT<Right>(&tile[at + 16u * EDGE], STRIDE), (*s).s16); }
    if (MATRICES > 17u) { (*s).s17 = coopMultiplyAdd(w, coopLoadT<Right>(&tile[at + 17u * EDGE], STRIDE), (*s).s17); }
    if (MATRICES > 18u) { (*s).s18 = coopMultiplyAdd(w, coopLoadT<Right>(&tile[at + 18u * EDGE], STRIDE), (*s).s18); }
    if (MATRICES > 19u) { (*s).s19 = coopMultiplyAdd(w, coopLoadT<Right>(&tile[at + 19u * EDGE], STRIDE), (*s).s19); }
}

fn scale_sums(s: ptr<function, Sums>, turned: u32, lane: u32, factor: f32) {
    (*s).s0 = scaled((*s).s0, turned, lane, factor);
    if (MATRICES > 1u) { (*s).s1 = scaled((*s).s1, turned, lane, factor); }
    if (MATRICES > 2u) { (*s).s2 = scaled((*s).s2, turned, lane, factor); }
    if (MATRICES > 3u) { (*s).s3 = scaled((*s).s3, turned, lane, factor); }
    if (MATRICES > 4u) { (*s).s4 = scaled((*s).s4, turned, lane, factor); }
    if (MATRICES > 5u) { (*s).s5 = scaled((*s).s5, turned, lane, factor); }
    if (MATRICES > 6u) { (*s).s6 = scaled((*s).s6, turned, lane, factor); }
    if (MATRICES > 7u) { (*s).s7 = scaled((*s).s7, turned, lane, factor); }
    if (MATRICES > 8u) { (*s).s8 = scaled((*s).s8, turned, lane, factor); }
    if (MATRICES > 9u) { (*s).s9 = scaled((*s).s9, turned, lane, factor); }
    if (MATRICES > 10u) { (*s).s10 = scaled((*s).s10, turned, lane, factor); }
    if (MATRICES > 11u) { (*s).s11 = scaled((*s).s11, turned, lane, factor); }
    if (MATRICES > 12u) { (*s).s12 = scaled((*s).s12, turned, lane, factor); }
    if (MATRICES > 13u) { (*s).s13 = scaled((*s).s13, turned, lane, factor); }
    if (MATRICES > 14u) { (*s).s14 = scaled((*s).s14, turned, lane, factor); }
    if (MATRICES > 15u) { (*s).s15 = scaled((*s).s15, turned, lane, factor); }
    if (MATRICES > 16u) { (*s).s16 = scaled((*s).s16, turned, lane, factor); }
    if (MATRICES > 17u) { (*s).s17 = scaled((*s).s17, turned, lane, factor); }
    if (MATRICES > 18u) { (*s).s18 = scaled((*s).s18, turned, lane, factor); }
    if (MATRICES > 19u) { (*s).s19 = scaled((*s).s19, turned, lane, factor); }
}

fn store_sums(s: ptr<function, Sums>, out: Out) {
    stored((*s).s0, 0u, out);
    if (MATRICES > 1u) { stored((*s).s1, EDGE, out); }
    if (MATRICES > 2u) { stored((*s).s2, 2u * EDGE, out); }
    if (MATRICES > 3u) { stored((*s).s3, 3u * EDGE, out); }
    if (MATRICES > 4u) { stored((*s).s4, 4u * EDGE, out); }
    if (MATRICES > 5u) { stored((*s).s5, 5u * EDGE, out); }
    if (MATRICES > 6u) { stored((*s).s6, 6u * EDGE, out); }
    if (MATRICES > 7u) { stored((*s).s7, 7u * EDGE, out); }
    if (MATRICES > 8u) { stored((*s).s8, 8u * EDGE, out); }
    if (MATRICES > 9u) { stored((*s).s9, 9u * EDGE, out); }
    if (MATRICES > 10u) { stored((*s).s10, 10u * EDGE, out); }
    if (MATRICES > 11u) { stored((*s).s11, 11u * EDGE, out); }
    if (MATRICES > 12u) { stored((*s).s12, 12u * EDGE, out); }
    if (MATRICES > 13u) { stored((*s).s13, 13u * EDGE, out); }
    if (MATRICES > 14u) { stored((*s).s14, 14u * EDGE, out); }
    if (MATRICES > 15u) { stored((*s).s15, 15u * EDGE, out); }
    if (MATRICES > 16u) { stored((*s).s16, 16u * EDGE, out); }
    if (MATRICES > 17u) { stored((*s).s17, 17u * EDGE, out); }
    if (MATRICES > 18u) { stored((*s).s18, 18u * EDGE, out); }
    if (MATRICES > 19u) { stored((*s).s19, 19u * EDGE, out); }
}
