// What becomes of a product with three weights in one: ys[m, n - begins[s]] = v + biass[n - begins[s]], where n is a row of weight s.
// Bit s of CACHES: ys is a cache, and m lies start[0] rows further down in it; rows beyond its end are dropped.
@group(0) @binding(2) var<storage, read> bias0: array<f32>;      // [rows of weight 0]
@group(0) @binding(3) var<storage, read> bias1: array<f32>;      // [rows of weight 1]
@group(0) @binding(4) var<storage, read> bias2: array<f32>;      // [rows of weight 2]
@group(0) @binding(5) var<storage, read_write> y0: array<out>;   // [M or context, rows of weight 0]
@group(0) @binding(6) var<storage, read_write> y1: array<out>;   // [M or context, rows of weight 1]
@group(0) @binding(7) var<storage, read_write> y2: array<out>;   // [M or context, rows of weight 2]
@group(0) @binding(8) var<storage, read> start: array<u32>;      // [1]

fn biased(s: u32, i: u32, v: f32) -> f32 {
    if (!BIAS) { return v; }
    if (s == 0u) { return v + bias0[i]; }
    if (s == 1u) { return v + bias1[i]; }
    return v + bias2[i];
}

fn store(m: u32, n: u32, v: f32) {
    let s = select(0u, 1u, n >= p.begins.y) + select(0u, 1u, n >= p.begins.z);
    let row = n - p.begins[s];
    let count = p.begins[s + 1u] - p.begins[s];
    let r = out(biased(s, row, v));
    var i = m * count + row;
    if (((CACHES >> s) & 1u) == 1u) {
        // Compared without the sum, which could wrap.
        if (start[0] >= p.context || m >= p.context - start[0]) { return; }
        i += start[0] * count;
    }
    if (s == 0u) { y0[i] = r; } else if (s == 1u) { y1[i] = r; } else { y2[i] = r; }
}
