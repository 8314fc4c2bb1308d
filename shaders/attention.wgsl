// Attention by online softmax (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022) for many queries. A
// workgroup takes eight neighbouring queries of one head and KEYS keys in a turn. Its invocations take eight keys
// each, an 8 x 8 tile of scores in registers; then the weights of one query each; then eight channels each of the
// weighted sum of values.
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

const KEY_LANES = min(WG_X, 32u); // invocations that take keys
const KEYS = 8u * KEY_LANES;      // keys in one turn
const PER_QUERY = WG_X / 8u;      // invocations that share the weights of a query
const SHARES = WG_X / LANES8;     // invocations that share eight channels, each with every SHARES-th four keys
const_assert LANES8 * SHARES == WG_X;
const_assert PER_QUERY * 8u == WG_X;

// Scores, then weights: [KEYS / 4, 8 queries]. At the end sums of those that share channels: [WG_X, 8 queries].
var<workgroup> tile: array<vec4f, 16u * KEY_LANES>;
var<workgroup> tops: array<f32, WG_X>;
var<workgroup> shrinks: array<f32, 8>;

@compute @workgroup_size(WG_X)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let split = group.z % p.splits;
    let b = group.z / p.splits;
    let d4 = p.d / 4u;
    let i0 = group.x * 8u;
    let i7 = min(i0 + 7u, p.sq - 1u); // queries beyond the end repeat the last and are not stored
    let row = b * p.sq * p.heads + group.y;
    let q0 = (row + min(i0 + 0u, i7) * p.heads) * d4;
    let q1 = (row + min(i0 + 1u, i7) * p.heads) * d4;
    let q2 = (row + min(i0 + 2u, i7) * p.heads) * d4;
    let q3 = (row + min(i0 + 3u, i7) * p.heads) * d4;
    let q4 = (row + min(i0 + 4u, i7) * p.heads) * d4;
    let q5 = (row + min(i0 + 5u, i7) * p.heads) * d4;
    let q6 = (row + min(i0 + 6u, i7) * p.heads) * d4;
    let q7 = (row + min(i0 + 7u, i7) * p.heads) * d4;
    // Keys before the first and beyond the last that some query sees are not read: their memory may hold anything.
    let lo = seen_from(i0) + split * p.span;
    let end = min(seen_by(i7), lo + p.span);
    let step = p.kv_heads * d4;
    let keys = (b * p.sk * p.kv_heads + group.y / (p.heads / p.kv_heads)) * d4;
    // The query whose weights this invocation computes, and which of the fours of keys.
    let query = local % 8u;
    let part = local / 8u;
    let seen = min(seen_by(i0 + query), end);
    let from_key = seen_from(i0 + query);
    var most = LOWEST;
    var total = 0.0;
    // The eight channels of this invocation; where d / 4 is odd the last four are taken twice and stored once.
    let c = local % LANES8 * 2u;
    let ca = min(c, d4 - 1u);
    let cb = min(c + 1u, d4 - 1u);
    var a0 = vec4f(); var b0 = vec4f();
    var a1 = vec4f(); var b1 = vec4f();
    var a2 = vec4f(); var b2 = vec4f();
    var a3 = vec4f(); var b3 = vec4f();
    var a4 = vec4f(); var b4 = vec4f();
    var a5 = vec4f(); var b5 = vec4f();
    var a6 = vec4f(); var b6 = vec4f();
    var a7 = vec4f(); var b7 = vec4f();
    for (var turn = lo; turn < end; turn += KEYS) {
        let count4 = (min(KEYS, end - turn) + 3u) / 4u;
        let j = turn + 8u * local;
        if (local < KEY_LANES && j < end) {
            let k0 = keys + min(j + 0u, end - 1u) * step;
            let k1 = keys + min(j + 1u, end - 1u) * step;
            let k2 = keys + min(j + 2u, end - 1u) * step;
            let k3 = keys + min(j + 3u, end - 1u) * step;
            let k4 = keys + min(j + 4u, end - 1u) * step;
            let k5 = keys + min(j + 5u, end - 1u) * step;
            let k6 = keys + min(j + 6u, end - 1u) * step;
            let k7 = keys + min(j + 7u, end - 1u) * step;
            var s0 = vec4f(); var t0 = vec4f();
            var s1 = vec4f(); var t1 = vec4f();
            var s2 = vec4f(); var t2 = vec4f();
            var s3 = vec4f(); var t3 = vec4f();
            var s4 = vec4f(); var t4 = vec4f();
            var s5 = vec4f(); var t5 = vec4f();
            var s6 = vec4f(); var t6 = vec4f();
            var s7 = vec4f(); var t7 = vec4f();
            for (var e = 0u; e < d4; e++) {
                let ka = mat4x4f(key4(k0 + e), key4(k1 + e), key4(k2 + e), key4(k3 + e));
                let kb = mat4x4f(key4(k4 + e), key4(k5 + e), key4(k6 + e), key4(k7 + e));
                var x = vec4f(q[q0 + e]);
                s0 += x * ka; t0 += x * kb;
                x = vec4f(q[q1 + e]);
                s1 += x * ka; t1 += x * kb;
                x = vec4f(q[q2 + e]);
                s2 += x * ka; t2 += x * kb;
                x = vec4f(q[q3 + e]);
                s3 += x * ka; t3 += x * kb;
                x = vec4f(q[q4 + e]);
                s4 += x * ka; t4 += x * kb;
                x = vec4f(q[q5 + e]);
                s5 += x * ka; t5 += x * kb;
                x = vec4f(q[q6 + e]);
                s6 += x * ka; t6 += x * kb;
                x = vec4f(q[q7 + e]);
                s7 += x * ka; t7 += x * kb;
            }
            let o = 16u * local;
            tile[o + 0u] = score(s0); tile[o + 8u] = score(t0);
            tile[o + 1u] = score(s1); tile[o + 9u] = score(t1);
            tile[o + 2u] = score(s2); tile[o + 10u] = score(t2);
            tile[o + 3u] = score(s3); tile[o + 11u] = score(t3);
            tile[o + 4u] = score(s4); tile[o + 12u] = score(t4);
            tile[o + 5u] = score(s5); tile[o + 13u] = score(t5);
            tile[o + 6u] = score(s6); tile[o + 14u] = score(t6);
            tile[o + 7u] = score(s7); tile[o + 15u] = score(t7);
        }
        workgroupBarrier();
        var next = most;
        for (var j4 = part; j4 < count4; j4 += PER_QUERY) {
            let s = visible(tile[8u * j4 + query], turn + 4u * j4, from_key, seen);
            next = max(next, max(max(s.x, s.y), max(s.z, s.w)));
        }
        if (PER_QUERY > 1u) {
            tops[local] = next;
            workgroupBarrier();
            for (var other = query; other < WG_X; other += 8u) {
                next = max(next, tops[other]);
            }
        }
        let shrink = exp(most - next);
        most = next;
        total *= shrink;
        for (var j4 = part; j4 < count4; j4 += PER_QUERY) {
            let w = exp(visible(tile[8u * j4 + query], turn + 4u * j4, from_key, seen) - next);
            tile[8u * j4 + query] = w;
            total += dot(w, vec4f(1.0));
        }
        if (part == 0u) {
            shrinks[query] = shrink;
        }
        workgroupBarrier();
        a0 *= shrinks[0]; b0 *= shrinks[0];
        a1 *= shrinks[1]; b1 *= shrinks[1];
        a2 *= shrinks[2]; b2 *= shrinks[2];
        a3 *= shrinks[3]; b3 *= shrinks[3];
        a4 *= shrinks[4]; b4 *= shrinks[4];
        a5 *= shrinks[5]; b5 *= shrinks[5];
        a6 *= shrinks[6]; b6 *= shrinks[6];
        a7 *= shrinks[7]; b7 *= shrinks[7];
        for (var j4 = local / LANES8; j4 < count4; j4 += SHARES) {
            let t = turn + 4u * j4;
            let v0 = keys + t * step;
            let v1 = keys + min(t + 1u, end - 1u) * step;
            let v2 = keys + min(t + 2u, end - 1u) * step;
            let v3 = keys + min(t + 3u, end - 1u) * step;
            let va = mat4x4f(value4(v0 + ca), value4(v1 + ca), value4(v2 + ca), value4(v3 + ca));
            let vb = mat4x4f(value4(v0 + cb), value4(v1 + cb), value4(v2 + cb), value4(v3 + cb));
            var w = tile[8u * j4];
            a0 += va * w; b0 += vb * w;
            w = tile[8u * j4 + 1u];
            a1 += va * w; b1 += vb * w;
            w = tile[8u * j4 + 2u];
            a2 += va * w; b2 += vb * w;
            w = tile[8u * j4 + 3u];
            a3 += va * w; b3 += vb * w;
            w = tile[8u * j4 + 4u];
            a4 += va * w; b4 += vb * w;
            w = tile[8u * j4 + 5u];
            a5 += va * w; b5 += vb * w;
            w = tile[8u * j4 + 6u];
            a6 += va * w; b6 += vb * w;
            w = tile[8u * j4 + 7u];
            a7 += va * w; b7 += vb * w;
        }
        workgroupBarrier();
    }
    // The maxima and totals of the queries, and the sums of those that share channels, four channels at a time.
    tops[local] = total;
    if (part == 0u) {
        shrinks[query] = most;
    }
    share(local, a0, a1, a2, a3, a4, a5, a6, a7);
    finish(local, c, b, i0, group.y, split);
    workgroupBarrier();
    share(local, b0, b1, b2, b3, b4, b5, b6, b7);
    finish(local, c + 1u, b, i0, group.y, split);
}

fn share(
    local: u32, s0: vec4f, s1: vec4f, s2: vec4f, s3: vec4f, s4: vec4f, s5: vec4f, s6: vec4f, s7: vec4f,
) {
    let o = 8u * local;
    tile[o] = s0; tile[o + 1u] = s1; tile[o + 2u] = s2; tile[o + 3u] = s3;
    tile[o + 4u] = s4; tile[o + 5u] = s5; tile[o + 6u] = s6; tile[o + 7u] = s7;
    workgroupBarrier();
}

// Adds up what was shared and stores four channels of eight queries.
fn finish(local: u32, c: u32, b: u32, i0: u32, head: u32, split: u32) {
    if (local >= LANES8 || c >= p.d / 4u) { return; }
    for (var r = 0u; r < min(8u, p.sq - i0); r++) {
        var total = 0.0;
        for (var lane = r; lane < WG_X; lane += 8u) {
            total += tops[lane];
        }
        var sum = vec4f();
        for (var lane = local; lane < WG_X; lane += LANES8) {
            sum += tile[8u * lane + r];
        }
        store((b * p.sq + i0 + r) * p.heads + head, split, c, sum, vec2f(shrinks[r], total));
    }
}
