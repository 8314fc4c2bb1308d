// The scales of the norms of each head of two inputs.
@group(0) @binding(7) var<storage, read> gamma: array<vec4f>;  // [D / 4]
@group(0) @binding(8) var<storage, read> gamma2: array<vec4f>; // [D / 4]

fn gamma_of(s: u32, c4: u32) -> vec4f {
    if (s == 1u) { return gamma2[c4]; }
    return gamma[c4];
}
