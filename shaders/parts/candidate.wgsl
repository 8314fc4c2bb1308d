// What top-k compares: a number as an integer of the same order, and its id.
struct Candidate { key: u32, id: u32 }

const BAD_KEY = 0xffffffffu; // above every finite number
const BAD_ID = 0xffffffffu;
const NO_ID = 0xfffffffeu;   // an empty place: below every number, its key is 0

fn candidate(i: u32) -> Candidate {
    let bits = x[i];
    var id = i;
    if (p.pairs == 1u) { id = x[p.n + i]; }
    if (id == NO_ID) { return Candidate(0u, NO_ID); }
    if ((bits & 0x7f800000u) == 0x7f800000u) { return Candidate(BAD_KEY, BAD_ID); }
    if (bits == 0x80000000u) { return Candidate(0x80000000u, id); } // −0 is 0
    return Candidate(select(bits | 0x80000000u, ~bits, bits >= 0x80000000u), id);
}

// Whether a comes before b.
fn beats(a: Candidate, b: Candidate) -> bool {
    return a.key > b.key || (a.key == b.key && a.id < b.id);
}

fn put(place: u32, c: Candidate, bad: bool) {
    let bits = select(~c.key, c.key ^ 0x80000000u, c.key >= 0x80000000u);
    let id = select(c.id, BAD_ID, bad);
    if (p.ids_only == 1u) {
        y[place] = id;
        return;
    }
    y[place] = select(bits, 0x7fc00000u, bad);
    y[p.segments * p.k + place] = id;
}
