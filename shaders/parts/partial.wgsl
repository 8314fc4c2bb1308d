// A sum over a part of k, which is divided among workgroups: add_partial.wgsl adds them up.
@group(0) @binding(2) var<storage, read_write> sums: array<f32>; // [parts, m - m0, n_total]

fn store(m: u32, n: u32, v: f32) {
    sums[(split * (p.m - p.m0) + m - p.m0) * p.n_total + n] = v;
}
