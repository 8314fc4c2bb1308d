//! Fusion: a producer absorbs its only consumer where the op knows how ([`super::Op::absorb`]), one that is cheap goes
//! into each of several ([`super::Op::fold`]), and two that kernels for a real GPU compute at once become one ([`super::Op::pair`]).

use std::collections::HashSet;
use std::rc::Rc;

use super::{Node, Op};

/// Marks nodes that nothing in `roots` needs, then fuses what is left; `fold` says whether the kernels are there to compute
/// the same more than once. Returns which nodes are live.
pub(crate) fn fuse(nodes: &mut [Node], roots: &HashSet<usize>, fold: bool) -> Vec<bool> {
    let mut uses = count_uses(nodes, roots);
    for consumer in 0..nodes.len() {
        // Repeated because a fused op may absorb again (matmul + residual, then an activation).
        while uses[consumer] > 0 && join_one(nodes, consumer, &mut uses, roots, absorb) {}
    }
    for producer in (0..nodes.len()).filter(|_| fold) {
        if uses[producer] > 0 && !roots.contains(&producer) {
            fold_one(nodes, producer, &mut uses, roots);
        }
    }
    for consumer in (0..nodes.len()).filter(|_| fold) {
        if uses[consumer] > 0 {
            join_one(nodes, consumer, &mut uses, roots, pair);
        }
    }
    uses.iter().map(|u| *u > 0).collect()
}

/// Folds a producer into all of its consumers, or into none.
fn fold_one(
    nodes: &mut [Node],
    producer: usize,
    uses: &mut [usize],
    roots: &HashSet<usize>,
) -> Option<()> {
    let readers = readers(nodes, producer, uses);
    match readers[..] {
        [view] if nodes[view].is_view() && !roots.contains(&view) => {
            fold_behind(nodes, producer, view, uses)
        }
        _ => fold_into(nodes, producer, &readers, uses),
    }
}

/// Live nodes that read another.
fn readers(nodes: &[Node], of: usize, uses: &[usize]) -> Vec<usize> {
    let reads = |(id, node): &(usize, &Node)| uses[*id] > 0 && node.inputs.contains(&of);
    nodes.iter().enumerate().filter(reads).map(|(id, _)| id).collect()
}

/// The ops that compute a producer, too, which each reader reads as `read`, its first input and no other.
fn folded(
    nodes: &[Node],
    producer: usize,
    read: usize,
    readers: &[usize],
) -> Option<Vec<Rc<dyn Op>>> {
    let op = nodes[producer].op.as_ref()?;
    let rows = nodes[read].shape.rows();
    let fused = |id: &usize| {
        let node = &nodes[*id];
        let alone = node.inputs.iter().filter(|input| **input == read).count() == 1;
        let first = node.inputs.first() == Some(&read);
        op.fold(node.op.as_deref()?, rows).filter(|_| alone && first)
    };
    readers.iter().map(fused).collect()
}

fn fold_into(
    nodes: &mut [Node],
    producer: usize,
    readers: &[usize],
    uses: &mut [usize],
) -> Option<()> {
    let fused = folded(nodes, producer, producer, readers)?;
    let own = nodes[producer].inputs.clone();
    uses[producer] = 0;
    own.iter().for_each(|input| uses[*input] -= 1);
    for (id, op) in readers.iter().zip(fused) {
        nodes[*id].op = Some(op);
        nodes[*id].inputs.splice(..1, own.iter().copied());
        own.iter().for_each(|input| uses[*input] += 1);
    }
    Some(())
}

/// The same for those that read the producer in another shape: they read its input in that shape then.
fn fold_behind(nodes: &mut [Node], producer: usize, view: usize, uses: &mut [usize]) -> Option<()> {
    let readers = readers(nodes, view, uses);
    let fused = folded(nodes, producer, view, &readers)?;
    let [input] = nodes[producer].inputs[..] else { return None };
    uses[producer] = 0;
    nodes[view].inputs = vec![input];
    for (id, op) in readers.into_iter().zip(fused) {
        nodes[id].op = Some(op);
    }
    Some(())
}

fn count_uses(nodes: &[Node], roots: &HashSet<usize>) -> Vec<usize> {
    let mut uses = vec![0; nodes.len()];
    for id in (0..nodes.len()).rev() {
        if roots.contains(&id) {
            uses[id] += 1;
        }
        if uses[id] > 0 {
            for input in &nodes[id].inputs {
                uses[*input] += 1;
            }
        }
    }
    uses
}

fn absorb(node: &Node, next: &Node, slot: usize) -> Option<Rc<dyn Op>> {
    let op = next.op.as_deref()?;
    // What is written in place has the shape of what it is written into.
    let same = node.shape.len() == next.shape.len() || op.in_place().is_some();
    node.op.as_ref().filter(|_| same)?.absorb(op, slot)
}

fn pair(node: &Node, next: &Node, slot: usize) -> Option<Rc<dyn Op>> {
    let alike = slot == 0 || node.inputs.first() == next.inputs.first();
    node.op.as_ref().filter(|_| alike)?.pair(next.op.as_deref()?, slot, node.shape.rows())
}

/// Makes one op of a consumer and one of its producers, whose only one it is, where `join` of both (and of the consumer's slot)
/// has one.
fn join_one(
    nodes: &mut [Node],
    consumer: usize,
    uses: &mut [usize],
    roots: &HashSet<usize>,
    join: impl Fn(&Node, &Node, usize) -> Option<Rc<dyn Op>>,
) -> bool {
    // Later inputs first: in `x + f(x)` the branch computed last is the one to absorb into.
    for slot in (0..nodes[consumer].inputs.len()).rev() {
        let producer = nodes[consumer].inputs[slot];
        let node = &nodes[producer];
        let alone = uses[producer] == 1 && !roots.contains(&producer);
        if !alone {
            continue;
        }
        let Some(fused) = join(node, &nodes[consumer], slot) else { continue };
        let mut inputs = node.inputs.clone();
        let rest = nodes[consumer].inputs.iter().enumerate().filter(|(i, _)| *i != slot);
        inputs.extend(rest.map(|(_, id)| *id));
        uses[producer] = 0;
        nodes[consumer].op = Some(fused);
        nodes[consumer].inputs = inputs;
        return true;
    }
    false
}
