// A product of 64 rows by 64 columns in a workgroup of 64 invocations: sixteen k at a time lie decoded in
// workgroup memory (8 KiB), so that each weight is decoded once for 64 rows. Invocation (tx, ty) keeps 8 rows
// by 8 columns: two quads (four neighbours) each way, 32 apart, so that eight invocations read 128 neighbouring
// bytes. The op defines store(row, column, value).
var<workgroup> tile: array<vec4f, 512>; // [rows or columns: 2, k: 16, quad: 16]

// Eight rows by eight columns: a0..a7 hold the first quad of columns, b0..b7 the second.
struct Sums {
    a0: vec4f, a1: vec4f, a2: vec4f, a3: vec4f, a4: vec4f, a5: vec4f, a6: vec4f, a7: vec4f,
    b0: vec4f, b1: vec4f, b2: vec4f, b3: vec4f, b4: vec4f, b5: vec4f, b6: vec4f, b7: vec4f,
}

// Puts eight k of a quad of rows (side 0) or columns (side 1) into workgroup memory, k slowest.
fn tile_put(side: u32, quad: u32, half: u32, r0: Eight, r1: Eight, r2: Eight, r3: Eight) {
    let lo = transpose(mat4x4f(r0.lo, r1.lo, r2.lo, r3.lo));
    let hi = transpose(mat4x4f(r0.hi, r1.hi, r2.hi, r3.hi));
    let at = side * 256u + half * 128u + quad;
    tile[at] = lo[0];
    tile[at + 16u] = lo[1];
    tile[at + 32u] = lo[2];
    tile[at + 48u] = lo[3];
    tile[at + 64u] = hi[0];
    tile[at + 80u] = hi[1];
    tile[at + 96u] = hi[2];
    tile[at + 112u] = hi[3];
}

// Adds the products of one k.
fn tile_add(s: ptr<function, Sums>, k: u32, tx: u32, ty: u32) {
    let r = tile[k * 16u + ty];
    let q = tile[k * 16u + 8u + ty];
    let u = tile[256u + k * 16u + tx];
    let v = tile[256u + k * 16u + 8u + tx];
    (*s).a0 += r.x * u; (*s).b0 += r.x * v;
    (*s).a1 += r.y * u; (*s).b1 += r.y * v;
    (*s).a2 += r.z * u; (*s).b2 += r.z * v;
    (*s).a3 += r.w * u; (*s).b3 += r.w * v;
    (*s).a4 += q.x * u; (*s).b4 += q.x * v;
    (*s).a5 += q.y * u; (*s).b5 += q.y * v;
    (*s).a6 += q.z * u; (*s).b6 += q.z * v;
    (*s).a7 += q.w * u; (*s).b7 += q.w * v;
}

// Adds the products of the sixteen k in workgroup memory.
fn tile_multiply(s: ptr<function, Sums>, tx: u32, ty: u32) {
    for (var k = 0u; k < 16u; k += 2u) {
        tile_add(s, k, tx, ty);
        tile_add(s, k + 1u, tx, ty);
    }
}

// Stores what lies inside. One epilogue in loops, over sums that move up, as in matmul.wgsl.
fn tile_store(s: ptr<function, Sums>, m: u32, n: u32, tx: u32, ty: u32) {
    for (var i = ty * 8u; i < ty * 8u + 8u; i++) {
        let row = m + ty * 4u + (i & 3u) + (i & 4u) * 8u;
        for (var j = tx * 8u; j < tx * 8u + 8u; j++) {
            let column = n + tx * 4u + (j & 3u) + (j & 4u) * 8u;
            if (row < p.m && column < p.n) {
                store(row, column, (*s).a0.x);
            }
            (*s).a0 = vec4f((*s).a0.yzw, (*s).b0.x);
            (*s).b0 = (*s).b0.yzwx;
        }
        (*s).a0 = (*s).a1; (*s).a1 = (*s).a2; (*s).a2 = (*s).a3; (*s).a3 = (*s).a4;
        (*s).a4 = (*s).a5; (*s).a5 = (*s).a6; (*s).a6 = (*s).a7;
        (*s).b0 = (*s).b1; (*s).b1 = (*s).b2; (*s).b2 = (*s).b3; (*s).b3 = (*s).b4;
        (*s).b4 = (*s).b5; (*s).b5 = (*s).b6; (*s).b6 = (*s).b7;
    }
}
