// The time embedding: channel n of the row of `table` that this item of the batch takes.
@group(0) @binding(5) var<storage, read> table: array<tab>; // [steps, n_total]
@group(0) @binding(6) var<storage, read> rows: array<u32>;  // [B]

fn shift(batch: u32, n: u32) -> f32 {
    return f32(table[min(rows[batch], p.steps - 1u) * p.n_total + n]);
}
