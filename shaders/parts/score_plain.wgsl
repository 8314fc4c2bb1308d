// What softmax takes for the products s of a query with four keys.
fn score(s: vec4f) -> vec4f {
    return s * p.scale;
}
