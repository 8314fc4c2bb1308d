// Attention by online softmax as attention.wgsl has it, for subgroups of eight lanes, one to a workgroup, on drivers
// where a load is a loop over the lanes: no number is loaded twice. A workgroup takes sixteen neighbouring queries of
// one head and 64 keys in a turn. A lane takes eight keys, an 8 x 16 tile of scores; then every eighth four of channels,
// FOURS of them, of the weighted sum of values. Queries and weights go around by broadcast.
enable subgroups;

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

const KEYS = 64u; // keys in one turn

var<workgroup> tile: array<vec4f, 256>; // weights: [KEYS / 4, 16 queries]

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(subgroup_invocation_id) lane: u32) {
    let split = group.z % p.splits;
    let b = group.z / p.splits;
    let d4 = p.d / 4u;
    let i0 = group.x * 16u;
    let il = min(i0 + 15u, p.sq - 1u); // queries beyond the end repeat the last and are not stored
    let row = b * p.sq * p.heads + group.y;
    let qa = (row + min(i0 + lane, il) * p.heads) * d4;
    let qb = (row + min(i0 + 8u + lane, il) * p.heads) * d4;
    // Keys before the first and beyond the last that some query sees are not read: their memory may hold anything.
    let lo = seen_from(i0) + split * p.span;
    let end = min(seen_by(il), lo + p.span);
    let step = p.kv_heads * d4;
    let keys = (b * p.sk * p.kv_heads + group.y / (p.heads / p.kv_heads)) * d4;
    // Fours of channels; one beyond the end is the last, taken twice and stored once.
    let c0 = min(lane, d4 - 1u);
    let c1 = min(lane + 8u, d4 - 1u);
    let c2 = min(lane + 16u, d4 - 1u);
    let c3 = min(lane + 24u, d4 - 1u);
    let c4 = min(lane + 32u, d4 - 1u);
    // Of each query: the largest score, this lane's part of the weights' total, and its channels.
    var m0 = LOWEST; var n0 = 0.0; var f0 = vec4f(); var g0 = vec4f(); var h0 = vec4f(); var u0 = vec4f(); var v0 = vec4f();
    var m1 = LOWEST; var n1 = 0.0; var f1 = vec4f(); var g1 = vec4f(); var h1 = vec4f(); var u1 = vec4f(); var v1 = vec4f();
    var m2 = LOWEST; var n2 = 0.0; var f2 = vec4f(); var g2 = vec4f(); var h2 = vec4f(); var u2 = vec4f(); var v2 = vec4f();
    var m3 = LOWEST; var n3 = 0.0; var f3 = vec4f(); var g3 = vec4f(); var h3 = vec4f(); var u3 = vec4f(); var v3 = vec4f();
    var m4 = LOWEST; var n4 = 0.0; var f4 = vec4f(); var g4 = vec4f(); var h4 = vec4f(); var u4 = vec4f(); var v4 = vec4f();
    var m5 = LOWEST; var n5 = 0.0; var f5 = vec4f(); var g5 = vec4f(); var h5 = vec4f(); var u5 = vec4f(); var v5 = vec4f();
    var m6 = LOWEST; var n6 = 0.0; var f6 = vec4f(); var g6 = vec4f(); var h6 = vec4f(); var u6 = vec4f(); var v6 = vec4f();
    var m7 = LOWEST; var n7 = 0.0; var f7 = vec4f(); var g7 = vec4f(); var h7 = vec4f(); var u7 = vec4f(); var v7 = vec4f();
    var m8 = LOWEST; var n8 = 0.0; var f8 = vec4f(); var g8 = vec4f(); var h8 = vec4f(); var u8 = vec4f(); var v8 = vec4f();
    var m9 = LOWEST; var n9 = 0.0; var f9 = vec4f(); var g9 = vec4f(); var h9 = vec4f(); var u9 = vec4f(); var v9 = vec4f();
    var m10 = LOWEST; var n10 = 0.0; var f10 = vec4f(); var g10 = vec4f(); var h10 = vec4f(); var u10 = vec4f(); var v10 = vec4f();
    var m11 = LOWEST; var n11 = 0.0; var f11 = vec4f(); var g11 = vec4f(); var h11 = vec4f(); var u11 = vec4f(); var v11 = vec4f();
    var m12 = LOWEST; var n12 = 0.0; var f12 = vec4f(); var g12 = vec4f(); var h12 = vec4f(); var u12 = vec4f(); var v12 = vec4f();
    var m13 = LOWEST; var n13 = 0.0; var f13 = vec4f(); var g13 = vec4f(); var h13 = vec4f(); var u13 = vec4f(); var v13 = vec4f();
    var m14 = LOWEST; var n14 = 0.0; var f14 = vec4f(); var g14 = vec4f(); var h14 = vec4f(); var u14 = vec4f(); var v14 = vec4f();
    var m15 = LOWEST; var n15 = 0.0; var f15 = vec4f(); var g15 = vec4f(); var h15 = vec4f(); var u15 = vec4f(); var v15 = vec4f();
    for (var turn = lo; turn < end; turn += KEYS) {
        let j = turn + 8u * lane;
        let k0 = keys + min(j + 0u, end - 1u) * step;
        let k1 = keys + min(j + 1u, end - 1u) * step;
        let k2 = keys + min(j + 2u, end - 1u) * step;
        let k3 = keys + min(j + 3u, end - 1u) * step;
        let k4 = keys + min(j + 4u, end - 1u) * step;
        let k5 = keys + min(j + 5u, end - 1u) * step;
        let k6 = keys + min(j + 6u, end - 1u) * step;
        let k7 = keys + min(j + 7u, end - 1u) * step;
        var s0 = vec4f(); var t0 = vec4f(); var s1 = vec4f(); var t1 = vec4f();
        var s2 = vec4f(); var t2 = vec4f(); var s3 = vec4f(); var t3 = vec4f();
        var s4 = vec4f(); var t4 = vec4f(); var s5 = vec4f(); var t5 = vec4f();
        var s6 = vec4f(); var t6 = vec4f(); var s7 = vec4f(); var t7 = vec4f();
        var s8 = vec4f(); var t8 = vec4f(); var s9 = vec4f(); var t9 = vec4f();
        var s10 = vec4f(); var t10 = vec4f(); var s11 = vec4f(); var t11 = vec4f();
        var s12 = vec4f(); var t12 = vec4f(); var s13 = vec4f(); var t13 = vec4f();
        var s14 = vec4f(); var t14 = vec4f(); var s15 = vec4f(); var t15 = vec4f();
        for (var e = 0u; e < d4; e++) {
            let ka = mat4x4f(key4(k0 + e), key4(k1 + e), key4(k2 + e), key4(k3 + e));
            let kb = mat4x4f(key4(k4 + e), key4(k5 + e), key4(k6 + e), key4(k7 + e));
            let xa = vec4f(q[qa + e]);
            let xb = vec4f(q[qb + e]);
            var x: vec4f;
            x = subgroupBroadcast(xa, 0u); s0 += x * ka; t0 += x * kb;
            x = subgroupBroadcast(xa, 1u); s1 += x * ka; t1 += x * kb;
            x = subgroupBroadcast(xa, 2u); s2 += x * ka; t2 += x * kb;
            x = subgroupBroadcast(xa, 3u); s3 += x * ka; t3 += x * kb;
            x = subgroupBroadcast(xa, 4u); s4 += x * ka; t4 += x * kb;
            x = subgroupBroadcast(xa, 5u); s5 += x * ka; t5 += x * kb;
            x = subgroupBroadcast(xa, 6u); s6 += x * ka; t6 += x * kb;
            x = subgroupBroadcast(xa, 7u); s7 += x * ka; t7 += x * kb;
            x = subgroupBroadcast(xb, 0u); s8 += x * ka; t8 += x * kb;
            x = subgroupBroadcast(xb, 1u); s9 += x * ka; t9 += x * kb;
            x = subgroupBroadcast(xb, 2u); s10 += x * ka; t10 += x * kb;
            x = subgroupBroadcast(xb, 3u); s11 += x * ka; t11 += x * kb;
            x = subgroupBroadcast(xb, 4u); s12 += x * ka; t12 += x * kb;
            x = subgroupBroadcast(xb, 5u); s13 += x * ka; t13 += x * kb;
            x = subgroupBroadcast(xb, 6u); s14 += x * ka; t14 += x * kb;
            x = subgroupBroadcast(xb, 7u); s15 += x * ka; t15 += x * kb;
        }
        let at = At(lane, i0, il, j, end);
        var soft: Soft;
        soft = weigh(s0, t0, m0, 0u, at);
        m0 = soft.most; n0 = n0 * soft.shrink + soft.total; f0 *= soft.shrink; g0 *= soft.shrink; h0 *= soft.shrink; u0 *= soft.shrink; v0 *= soft.shrink;
        soft = weigh(s1, t1, m1, 1u, at);
        m1 = soft.most; n1 = n1 * soft.shrink + soft.total; f1 *= soft.shrink; g1 *= soft.shrink; h1 *= soft.shrink; u1 *= soft.shrink; v1 *= soft.shrink;
        soft = weigh(s2, t2, m2, 2u, at);
        m2 = soft.most; n2 = n2 * soft.shrink + soft.total; f2 *= soft.shrink; g2 *= soft.shrink; h2 *= soft.shrink; u2 *= soft.shrink; v2 *= soft.shrink;
        soft = weigh(s3, t3, m3, 3u, at);
        m3 = soft.most; n3 = n3 * soft.shrink + soft.total; f3 *= soft.shrink; g3 *= soft.shrink; h3 *= soft.shrink; u3 *= soft.shrink; v3 *= soft.shrink;
        soft = weigh(s4, t4, m4, 4u, at);
        m4 = soft.most; n4 = n4 * soft.shrink + soft.total; f4 *= soft.shrink; g4 *= soft.shrink; h4 *= soft.shrink; u4 *= soft.shrink; v4 *= soft.shrink;
        soft = weigh(s5, t5, m5, 5u, at);
        m5 = soft.most; n5 = n5 * soft.shrink + soft.total; f5 *= soft.shrink; g5 *= soft.shrink; h5 *= soft.shrink; u5 *= soft.shrink; v5 *= soft.shrink;
        soft = weigh(s6, t6, m6, 6u, at);
        m6 = soft.most; n6 = n6 * soft.shrink + soft.total; f6 *= soft.shrink; g6 *= soft.shrink; h6 *= soft.shrink; u6 *= soft.shrink; v6 *= soft.shrink;
        soft = weigh(s7, t7, m7, 7u, at);
        m7 = soft.most; n7 = n7 * soft.shrink + soft.total; f7 *= soft.shrink; g7 *= soft.shrink; h7 *= soft.shrink; u7 *= soft.shrink; v7 *= soft.shrink;
        soft = weigh(s8, t8, m8, 8u, at);
        m8 = soft.most; n8 = n8 * soft.shrink + soft.total; f8 *= soft.shrink; g8 *= soft.shrink; h8 *= soft.shrink; u8 *= soft.shrink; v8 *= soft.shrink;
        soft = weigh(s9, t9, m9, 9u, at);
        m9 = soft.most; n9 = n9 * soft.shrink + soft.total; f9 *= soft.shrink; g9 *= soft.shrink; h9 *= soft.shrink; u9 *= soft.shrink; v9 *= soft.shrink;
        soft = weigh(s10, t10, m10, 10u, at);
        m10 = soft.most; n10 = n10 * soft.shrink + soft.total; f10 *= soft.shrink; g10 *= soft.shrink; h10 *= soft.shrink; u10 *= soft.shrink; v10 *= soft.shrink;
        soft = weigh(s11, t11, m11, 11u, at);
        m11 = soft.most; n11 = n11 * soft.shrink + soft.total; f11 *= soft.shrink; g11 *= soft.shrink; h11 *= soft.shrink; u11 *= soft.shrink; v11 *= soft.shrink;
        soft = weigh(s12, t12, m12, 12u, at);
        m12 = soft.most; n12 = n12 * soft.shrink + soft.total; f12 *= soft.shrink; g12 *= soft.shrink; h12 *= soft.shrink; u12 *= soft.shrink; v12 *= soft.shrink;
        soft = weigh(s13, t13, m13, 13u, at);
        m13 = soft.most; n13 = n13 * soft.shrink + soft.total; f13 *= soft.shrink; g13 *= soft.shrink; h13 *= soft.shrink; u13 *= soft.shrink; v13 *= soft.shrink;
        soft = weigh(s14, t14, m14, 14u, at);
        m14 = soft.most; n14 = n14 * soft.shrink + soft.total; f14 *= soft.shrink; g14 *= soft.shrink; h14 *= soft.shrink; u14 *= soft.shrink; v14 *= soft.shrink;
        soft = weigh(s15, t15, m15, 15u, at);
        m15 = soft.most; n15 = n15 * soft.shrink + soft.total; f15 *= soft.shrink; g15 *= soft.shrink; h15 *= soft.shrink; u15 *= soft.shrink; v15 *= soft.shrink;
        workgroupBarrier();
        let count4 = (min(KEYS, end - turn) + 3u) / 4u;
        for (var j4 = 0u; j4 < count4; j4++) {
            let r0 = keys + (turn + 4u * j4) * step;
            let r1 = keys + min(turn + 4u * j4 + 1u, end - 1u) * step;
            let r2 = keys + min(turn + 4u * j4 + 2u, end - 1u) * step;
            let r3 = keys + min(turn + 4u * j4 + 3u, end - 1u) * step;
            let x0 = mat4x4f(value4(r0 + c0), value4(r1 + c0), value4(r2 + c0), value4(r3 + c0));
            var x1: mat4x4f;
            if (FOURS > 1u) {
                x1 = mat4x4f(value4(r0 + c1), value4(r1 + c1), value4(r2 + c1), value4(r3 + c1));
            }
            var x2: mat4x4f;
            if (FOURS > 2u) {
                x2 = mat4x4f(value4(r0 + c2), value4(r1 + c2), value4(r2 + c2), value4(r3 + c2));
            }
            var x3: mat4x4f;
            if (FOURS > 3u) {
                x3 = mat4x4f(value4(r0 + c3), value4(r1 + c3), value4(r2 + c3), value4(r3 + c3));
            }
            var x4: mat4x4f;
            if (FOURS > 4u) {
                x4 = mat4x4f(value4(r0 + c4), value4(r1 + c4), value4(r2 + c4), value4(r3 + c4));
            }
            let wa = tile[16u * j4 + lane];
            let wb = tile[16u * j4 + 8u + lane];
            var w: vec4f;
            w = subgroupBroadcast(wa, 0u); f0 += x0 * w;
            if (FOURS > 1u) { g0 += x1 * w; }
            if (FOURS > 2u) { h0 += x2 * w; }
            if (FOURS > 3u) { u0 += x3 * w; v0 += x4 * w; }
            w = subgroupBroadcast(wa, 1u); f1 += x0 * w;
            if (FOURS > 1u) { g1 += x1 * w; }
            if (FOURS > 2u) { h1 += x2 * w; }
            if (FOURS > 3u) { u1 += x3 * w; v1 += x4 * w; }
            w = subgroupBroadcast(wa, 2u); f2 += x0 * w;
            if (FOURS > 1u) { g2 += x1 * w; }
            if (FOURS > 2u) { h2 += x2 * w; }
            if (FOURS > 3u) { u2 += x3 * w; v2 += x4 * w; }
            w = subgroupBroadcast(wa, 3u); f3 += x0 * w;
            if (FOURS > 1u) { g3 += x1 * w; }
            if (FOURS > 2u) { h3 += x2 * w; }
            if (FOURS > 3u) { u3 += x3 * w; v3 += x4 * w; }
            w = subgroupBroadcast(wa, 4u); f4 += x0 * w;
            if (FOURS > 1u) { g4 += x1 * w; }
            if (FOURS > 2u) { h4 += x2 * w; }
            if (FOURS > 3u) { u4 += x3 * w; v4 += x4 * w; }
            w = subgroupBroadcast(wa, 5u); f5 += x0 * w;
            if (FOURS > 1u) { g5 += x1 * w; }
            if (FOURS > 2u) { h5 += x2 * w; }
            if (FOURS > 3u) { u5 += x3 * w; v5 += x4 * w; }
            w = subgroupBroadcast(wa, 6u); f6 += x0 * w;
            if (FOURS > 1u) { g6 += x1 * w; }
            if (FOURS > 2u) { h6 += x2 * w; }
            if (FOURS > 3u) { u6 += x3 * w; v6 += x4 * w; }
            w = subgroupBroadcast(wa, 7u); f7 += x0 * w;
            if (FOURS > 1u) { g7 += x1 * w; }
            if (FOURS > 2u) { h7 += x2 * w; }
            if (FOURS > 3u) { u7 += x3 * w; v7 += x4 * w; }
            w = subgroupBroadcast(wb, 0u); f8 += x0 * w;
            if (FOURS > 1u) { g8 += x1 * w; }
            if (FOURS > 2u) { h8 += x2 * w; }
            if (FOURS > 3u) { u8 += x3 * w; v8 += x4 * w; }
            w = subgroupBroadcast(wb, 1u); f9 += x0 * w;
            if (FOURS > 1u) { g9 += x1 * w; }
            if (FOURS > 2u) { h9 += x2 * w; }
            if (FOURS > 3u) { u9 += x3 * w; v9 += x4 * w; }
            w = subgroupBroadcast(wb, 2u); f10 += x0 * w;
            if (FOURS > 1u) { g10 += x1 * w; }
            if (FOURS > 2u) { h10 += x2 * w; }
            if (FOURS > 3u) { u10 += x3 * w; v10 += x4 * w; }
            w = subgroupBroadcast(wb, 3u); f11 += x0 * w;
            if (FOURS > 1u) { g11 += x1 * w; }
            if (FOURS > 2u) { h11 += x2 * w; }
            if (FOURS > 3u) { u11 += x3 * w; v11 += x4 * w; }
            w = subgroupBroadcast(wb, 4u); f12 += x0 * w;
            if (FOURS > 1u) { g12 += x1 * w; }
            if (FOURS > 2u) { h12 += x2 * w; }
            if (FOURS > 3u) { u12 += x3 * w; v12 += x4 * w; }
            w = subgroupBroadcast(wb, 5u); f13 += x0 * w;
            if (FOURS > 1u) { g13 += x1 * w; }
            if (FOURS > 2u) { h13 += x2 * w; }
            if (FOURS > 3u) { u13 += x3 * w; v13 += x4 * w; }
            w = subgroupBroadcast(wb, 6u); f14 += x0 * w;
            if (FOURS > 1u) { g14 += x1 * w; }
            if (FOURS > 2u) { h14 += x2 * w; }
            if (FOURS > 3u) { u14 += x3 * w; v14 += x4 * w; }
            w = subgroupBroadcast(wb, 7u); f15 += x0 * w;
            if (FOURS > 1u) { g15 += x1 * w; }
            if (FOURS > 2u) { h15 += x2 * w; }
            if (FOURS > 3u) { u15 += x3 * w; v15 += x4 * w; }
        }
        workgroupBarrier();
    }
    n0 = subgroupAdd(n0);
    n1 = subgroupAdd(n1);
    n2 = subgroupAdd(n2);
    n3 = subgroupAdd(n3);
    n4 = subgroupAdd(n4);
    n5 = subgroupAdd(n5);
    n6 = subgroupAdd(n6);
    n7 = subgroupAdd(n7);
    n8 = subgroupAdd(n8);
    n9 = subgroupAdd(n9);
    n10 = subgroupAdd(n10);
    n11 = subgroupAdd(n11);
    n12 = subgroupAdd(n12);
    n13 = subgroupAdd(n13);
    n14 = subgroupAdd(n14);
    n15 = subgroupAdd(n15);
    // One store in a loop whose end no compiler knows, over queries that move up.
    for (var i = i0; i <= il; i++) {
        let at = (b * p.sq + i) * p.heads + group.y;
        let stat = vec2f(m0, n0);
        if (lane < d4) { store(at, split, lane, f0, stat); }
        if (FOURS > 1u && lane + 8u < d4) { store(at, split, lane + 8u, g0, stat); }
        if (FOURS > 2u && lane + 16u < d4) { store(at, split, lane + 16u, h0, stat); }
        if (FOURS > 3u && lane + 24u < d4) { store(at, split, lane + 24u, u0, stat); }
        if (FOURS > 4u && lane + 32u < d4) { store(at, split, lane + 32u, v0, stat); }
        m0 = m1; n0 = n1; f0 = f1; g0 = g1; h0 = h1; u0 = u1; v0 = v1;
        m1 = m2; n1 = n2; f1 = f2; g1 = g2; h1 = h2; u1 = u2; v1 = v2;
        m2 = m3; n2 = n3; f2 = f3; g2 = g3; h2 = h3; u2 = u3; v2 = v3;
        m3 = m4; n3 = n4; f3 = f4; g3 = g4; h3 = h4; u3 = u4; v3 = v4;
        m4 = m5; n4 = n5; f4 = f5; g4 = g5; h4 = h5; u4 = u5; v4 = v5;
        m5 = m6; n5 = n6; f5 = f6; g5 = g6; h5 = h6; u5 = u6; v5 = v6;
        m6 = m7; n6 = n7; f6 = f7; g6 = g7; h6 = h7; u6 = u7; v6 = v7;
        m7 = m8; n7 = n8; f7 = f8; g7 = g8; h7 = h8; u7 = u8; v7 = v8;
        m8 = m9; n8 = n9; f8 = f9; g8 = g9; h8 = h9; u8 = u9; v8 = v9;
        m9 = m10; n9 = n10; f9 = f10; g9 = g10; h9 = h10; u9 = u10; v9 = v10;
        m10 = m11; n10 = n11; f10 = f11; g10 = g11; h10 = h11; u10 = u11; v10 = v11;
        m11 = m12; n11 = n12; f11 = f12; g11 = g12; h11 = h12; u11 = u12; v11 = v12;
        m12 = m13; n12 = n13; f12 = f13; g12 = g13; h12 = h13; u12 = u13; v12 = v13;
        m13 = m14; n13 = n14; f13 = f14; g13 = g14; h13 = h14; u13 = u14; v13 = v14;
        m14 = m15; n14 = n15; f14 = f15; g14 = g15; h14 = h15; u14 = u15; v14 = v15;
    }
}

// Where a lane is in a turn: its first key among others.
struct At { lane: u32, i0: u32, il: u32, j: u32, end: u32 }
// The largest score of a query so far, what that makes of sums until now, and the sum of this lane's weights.
struct Soft { most: f32, shrink: f32, total: f32 }

// Turns the scores of query r and this lane's eight keys into weights, in the tile.
fn weigh(s: vec4f, t: vec4f, most: f32, r: u32, at: At) -> Soft {
    let i = min(at.i0 + r, at.il);
    let seen = min(seen_by(i), at.end);
    let a = visible(score(s), at.j, seen_from(i), seen);
    let b = visible(score(t), at.j + 4u, seen_from(i), seen);
    let top = max(a, b);
    let next = max(most, subgroupMax(max(max(top.x, top.y), max(top.z, top.w))));
    let wa = exp(a - next);
    let wb = exp(b - next);
    tile[32u * at.lane + r] = wa;
    tile[32u * at.lane + 16u + r] = wb;
    return Soft(next, exp(most - next), dot(wa + wb, vec4f(1.0)));
}
