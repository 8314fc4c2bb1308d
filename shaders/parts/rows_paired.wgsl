// Of a weight in two halves, values and their gates, PAIR rows of the first half are neighbouring columns, then the PAIR rows of the
// second that gate them, and so on: a tile has both.
fn row_of(n: u32) -> u32 {
    return n / (2u * PAIR) * PAIR + n % PAIR + n / PAIR % 2u * (p.n / 2u);
}
