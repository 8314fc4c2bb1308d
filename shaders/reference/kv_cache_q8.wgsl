// Keys or values of new tokens in eight bits, s = max |x| / 127 and q = round(x / s) for each head of a row: one
// word of the cache for each invocation, its scale too where it is the head's first.
struct Params {
    n: u32,       // words of x: rows · heads · cells
    rows: u32,    // rows of x
    context: u32, // rows of the cache
    heads: u32,
    cells: u32,   // words of four channels in a head
    pad0: u32,
    pad1: u32,
    pad2: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<act>;            // [rows, heads, cells · 4]
@group(0) @binding(2) var<storage, read> start: array<u32>;        // [1]
@group(0) @binding(3) var<storage, read_write> cache: array<u32>;  // [context, heads, cells] signed bytes, low first;
                                                                   // then [context, heads] f32 scales

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let i = id.y * groups.x * 64u + id.x;
    if (i >= p.n) { return; }
    let head = i / p.cells; // over rows and heads
    let row = head / p.heads;
    if (start[0] >= p.context || row >= p.context - start[0]) { return; }
    var top = 0.0;
    for (var c = 0u; c < 4u * p.cells; c++) {
        top = max(top, abs(f32(x[head * p.cells * 4u + c])));
    }
    let scale = top / 127.0;
    var word = 0u;
    for (var c = 0u; c < 4u; c++) {
        if (top > 0.0) {
            let q = i32(clamp(round(f32(x[i * 4u + c]) * (127.0 / top)), -127.0, 127.0));
            word |= (u32(q) & 255u) << (8u * c);
        }
    }
    let place = (start[0] + row) * p.heads + head % p.heads;
    cache[place * p.cells + i % p.cells] = word;
    if (i % p.cells == 0u) {
        cache[p.context * p.heads * p.cells + place] = bitcast<u32>(scale);
    }
}
