// A product of TILE rows by TILE columns in a workgroup of four subgroups that multiply matrices of EDGE by EDGE, f16 into
// f32: thirty-two k at a time lie decoded in workgroup memory, each weight once for TILE rows, and each subgroup keeps a
// quarter, SPAN rows by SPAN columns, in its registers: two or (WIDE) four matrices each way. The op defines
// store(row, column, value).
enable subgroups;
enable wgpu_cooperative_matrix;
const TILE = 2u * SPAN;
// 32 k and eight unused: eight rows of sixteen bytes then lie in different banks.
const STRIDE = 40u;
var<workgroup> tile_rows: array<f16, TILE * STRIDE>;
var<workgroup> tile_columns: array<f16, TILE * STRIDE>;
var<workgroup> tile_out: array<f32, 4u * EDGE * EDGE>; // one matrix of each subgroup

// [row: 4, column: 4] matrices, or 2 by 2 in the upper left.
struct Sums {
    s00: Sum, s01: Sum, s02: Sum, s03: Sum,
    s10: Sum, s11: Sum, s12: Sum, s13: Sum,
    s20: Sum, s21: Sum, s22: Sum, s23: Sum,
    s30: Sum, s31: Sum, s32: Sum, s33: Sum,
}

// Eight k, from 8 · k8 on, of a row (of its tile).
fn put_row(row: u32, k8: u32, v: Eight) {
    let i = row * STRIDE + k8 * 8u;
    tile_rows[i] = f16(v.lo.x);
    tile_rows[i + 1u] = f16(v.lo.y);
    tile_rows[i + 2u] = f16(v.lo.z);
    tile_rows[i + 3u] = f16(v.lo.w);
    tile_rows[i + 4u] = f16(v.hi.x);
    tile_rows[i + 5u] = f16(v.hi.y);
    tile_rows[i + 6u] = f16(v.hi.z);
    tile_rows[i + 7u] = f16(v.hi.w);
}

fn put_column(column: u32, k8: u32, v: Eight) {
    let i = column * STRIDE + k8 * 8u;
    tile_columns[i] = f16(v.lo.x);
    tile_columns[i + 1u] = f16(v.lo.y);
    tile_columns[i + 2u] = f16(v.lo.z);
    tile_columns[i + 3u] = f16(v.lo.w);
    tile_columns[i + 4u] = f16(v.hi.x);
    tile_columns[i + 5u] = f16(v.hi.y);
    tile_columns[i + 6u] = f16(v.hi.z);
    tile_columns[i + 7u] = f16(v.hi.w);
}

// Adds the products of the thirty-two k in workgroup memory, for the rows and columns of one subgroup.
fn coop_multiply(s: ptr<function, Sums>, row: u32, column: u32) {
    for (var k = 0u; k < 32u; k += EDGE) {
        let i = row * STRIDE + k;
        let j = column * STRIDE + k;
        let a0 = coopLoadT<Left>(&tile_rows[i], STRIDE);
        let a1 = coopLoadT<Left>(&tile_rows[i + EDGE * STRIDE], STRIDE);
        let b0 = coopLoad<Right>(&tile_columns[j], STRIDE);
        let b1 = coopLoad<Right>(&tile_columns[j + EDGE * STRIDE], STRIDE);
        (*s).s00 = coopMultiplyAdd(a0, b0, (*s).s00);
        (*s).s01 = coopMultiplyAdd(a0, b1, (*s).s01);
        (*s).s10 = coopMultiplyAdd(a1, b0, (*s).s10);
        (*s).s11 = coopMultiplyAdd(a1, b1, (*s).s11);
        if (WIDE) {
            let a2 = coopLoadT<Left>(&tile_rows[i + 2u * EDGE * STRIDE], STRIDE);
            let a3 = coopLoadT<Left>(&tile_rows[i + 3u * EDGE * STRIDE], STRIDE);
            let b2 = coopLoad<Right>(&tile_columns[j + 2u * EDGE * STRIDE], STRIDE);
            let b3 = coopLoad<Right>(&tile_columns[j + 3u * EDGE * STRIDE], STRIDE);
            (*s).s02 = coopMultiplyAdd(a0, b2, (*s).s02);
            (*s).s03 = coopMultiplyAdd(a0, b3, (*s).s03);
            (*s).s12 = coopMultiplyAdd(a1, b2, (*s).s12);
            (*s).s13 = coopMultiplyAdd(a1, b3, (*s).s13);
            (*s).s20 = coopMultiplyAdd(a2, b0, (*s).s20);
            (*s).s21 = coopMultiplyAdd(a2, b1, (*s).s21);
            (*s).s22 = coopMultiplyAdd(a2, b2, (*s).s22);
            (*s).s23 = coopMultiplyAdd(a2, b3, (*s).s23);
            (*s).s30 = coopMultiplyAdd(a3, b0, (*s).s30);
            (*s).s31 = coopMultiplyAdd(a3, b1, (*s).s31);
            (*s).s32 = coopMultiplyAdd(a3, b2, (*s).s32);
            (*s).s33 = coopMultiplyAdd(a3, b3, (*s).s33);
        }
    }
}

// Matrix `at` = 4 · (its row) + its column to workgroup memory.
fn coop_put(s: ptr<function, Sums>, at: u32, to: u32) {
    switch at {
        case 0u: { coopStoreT((*s).s00, &tile_out[to], EDGE); }
        case 1u: { coopStoreT((*s).s01, &tile_out[to], EDGE); }
        case 4u: { coopStoreT((*s).s10, &tile_out[to], EDGE); }
        case 5u: { coopStoreT((*s).s11, &tile_out[to], EDGE); }
        case 2u: { coopStoreT((*s).s02, &tile_out[to], EDGE); }
        case 3u: { coopStoreT((*s).s03, &tile_out[to], EDGE); }
        case 6u: { coopStoreT((*s).s12, &tile_out[to], EDGE); }
        case 7u: { coopStoreT((*s).s13, &tile_out[to], EDGE); }
        case 8u: { coopStoreT((*s).s20, &tile_out[to], EDGE); }
        case 9u: { coopStoreT((*s).s21, &tile_out[to], EDGE); }
        case 10u: { coopStoreT((*s).s22, &tile_out[to], EDGE); }
        case 11u: { coopStoreT((*s).s23, &tile_out[to], EDGE); }
        case 12u: { coopStoreT((*s).s30, &tile_out[to], EDGE); }
        case 13u: { coopStoreT((*s).s31, &tile_out[to], EDGE); }
        case 14u: { coopStoreT((*s).s32, &tile_out[to], EDGE); }
        default: { coopStoreT((*s).s33, &tile_out[to], EDGE); }
    }
}

// Stores what lies inside, a matrix of each subgroup at a time: `row` and `column` are the subgroup's first.
fn coop_store(s: ptr<function, Sums>, row: u32, column: u32, subgroup: u32, lane: u32) {
    let base = subgroup * EDGE * EDGE;
    let across = SPAN / EDGE;
    for (var at = 0u; at < across * across; at++) {
        let i = at / across;
        let j = at % across;
        coop_put(s, 4u * i + j, base);
        workgroupBarrier();
        for (var e = lane; e < EDGE * EDGE; e += WG_X / 4u) {
            let m = row + i * EDGE + e / EDGE;
            let n = column + j * EDGE + e % EDGE;
            if (m < p.m && n < p.n) {
                store(m, n, tile_out[base + e]);
            }
        }
        workgroupBarrier();
    }
}
