// What is normed: a, or TWO: a and b side by side along the channels.
@group(0) @binding(1) var<storage, read> a: array<act4>; // [B, pixels, ca/4]
@group(0) @binding(2) var<storage, read> b: array<act4>; // [B, pixels, (c − ca)/4]

fn load(row: u32, c4: u32) -> vec4f {
    let ca4 = p.ca / 4u;
    if (TWO && c4 >= ca4) { return vec4f(b[row * (p.c / 4u - ca4) + c4 - ca4]); }
    return vec4f(a[row * ca4 + c4]);
}
