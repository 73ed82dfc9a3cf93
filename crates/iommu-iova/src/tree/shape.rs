//! The shape of the tree: nodes in one vector, kept in balance, each with what is largest below it.

use super::need::largest_block;
use super::{GapTree, MAX_HEIGHT};

/// No node.
pub(super) const NIL: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) start: u64,
    pub(super) len: u64,
    /// Largest `len` in this subtree.
    pub(super) max_len: u64,
    pub(super) left: u32,
    pub(super) right: u32,
    pub(super) height: u8,
    /// [`largest_block`] of this gap.
    pub(super) order: u8,
    /// Largest `order` in this subtree.
    pub(super) max_order: u8,
}

impl GapTree {
    pub(super) fn node(&self, at: u32) -> Option<&Node> {
        self.nodes.get(usize::try_from(at).ok()?)
    }

    fn node_mut(&mut self, at: u32) -> Option<&mut Node> {
        self.nodes.get_mut(usize::try_from(at).ok()?)
    }

    fn summary(&self, at: u32) -> (u8, u64, u8) {
        self.node(at)
            .map_or((0, 0, 0), |node| (node.height, node.max_len, node.max_order))
    }

    /// Computes what a node knows of its subtree.
    fn refresh(&mut self, at: u32) {
        let Some(&Node { left, right, .. }) = self.node(at) else {
            return;
        };
        let (left, right) = (self.summary(left), self.summary(right));
        if let Some(node) = self.node_mut(at) {
            node.height = left.0.max(right.0) + 1;
            node.max_len = node.len.max(left.1).max(right.1);
            node.max_order = node.order.max(left.2).max(right.2);
        }
    }

    /// Moves the ends of the gap that begins at `start`; its place among the others stays.
    pub(super) fn resize(&mut self, start: u64, new_start: u64, new_len: u64) {
        let mut path = [NIL; MAX_HEIGHT];
        let mut depth = 0;
        let mut next = self.root;
        while let Some(node) = self.node_mut(next) {
            if let Some(place) = path.get_mut(depth) {
                *place = next;
                depth += 1;
            }
            if node.start == start {
                node.start = new_start;
                node.len = new_len;
                node.order = largest_block(new_start, new_len);
                break;
            }
            next = if start < node.start { node.left } else { node.right };
        }
        for &at in path.iter().take(depth).rev() {
            self.refresh(at);
        }
    }

    pub(super) fn insert(&mut self, start: u64, len: u64) {
        let order = largest_block(start, len);
        let node = Node {
            start,
            len,
            max_len: len,
            left: NIL,
            right: NIL,
            height: 1,
            order,
            max_order: order,
        };
        let at = if let Some(place) = self.node(self.unused).map(|node| node.left) {
            let at = core::mem::replace(&mut self.unused, place);
            if let Some(slot) = self.node_mut(at) {
                *slot = node;
            }
            at
        } else {
            // Room was made when the run was taken. At the very start it is made here.
            let at = u32::try_from(self.nodes.len()).unwrap_or(NIL);
            self.nodes.push(node);
            at
        };
        self.gaps += 1;
        self.root = self.attach(self.root, at, start);
    }

    fn attach(&mut self, root: u32, at: u32, start: u64) -> u32 {
        let Some(node) = self.node(root) else { return at };
        let (left, right) = (node.left, node.right);
        if start < node.start {
            let child = self.attach(left, at, start);
            self.set_left(root, child);
        } else {
            let child = self.attach(right, at, start);
            self.set_right(root, child);
        }
        self.balance(root)
    }

    /// Removes the gap that begins at `start` from a subtree; tells the subtree's new root.
    pub(super) fn remove(&mut self, root: u32, start: u64) -> u32 {
        let Some(&Node {
            left,
            right,
            start: here,
            ..
        }) = self.node(root)
        else {
            return NIL;
        };
        if start < here {
            let child = self.remove(left, start);
            self.set_left(root, child);
        } else if start > here {
            let child = self.remove(right, start);
            self.set_right(root, child);
        } else {
            self.release(root);
            if left == NIL {
                return right;
            }
            if right == NIL {
                return left;
            }
            let (rest, next) = self.detach_first(right);
            self.set_left(next, left);
            self.set_right(next, rest);
            return self.balance(next);
        }
        self.balance(root)
    }

    /// Takes the lowest node out of a subtree: the subtree's new root, and the node.
    fn detach_first(&mut self, root: u32) -> (u32, u32) {
        let Some(&Node { left, right, .. }) = self.node(root) else {
            return (NIL, NIL);
        };
        if left == NIL {
            return (right, root);
        }
        let (rest, first) = self.detach_first(left);
        self.set_left(root, rest);
        (self.balance(root), first)
    }

    fn release(&mut self, at: u32) {
        let unused = self.unused;
        self.set_left(at, unused);
        self.unused = at;
        self.gaps -= 1;
    }

    fn set_left(&mut self, at: u32, child: u32) {
        if let Some(node) = self.node_mut(at) {
            node.left = child;
        }
    }

    fn set_right(&mut self, at: u32, child: u32) {
        if let Some(node) = self.node_mut(at) {
            node.right = child;
        }
    }

    /// Restores the balance of a node whose subtrees are balanced and differ by at most two.
    fn balance(&mut self, at: u32) -> u32 {
        let Some(&Node { left, right, .. }) = self.node(at) else {
            return at;
        };
        let (left_height, right_height) = (self.summary(left).0, self.summary(right).0);
        if left_height > right_height + 1 {
            let Some(&Node {
                left: outer,
                right: inner,
                ..
            }) = self.node(left)
            else {
                return at;
            };
            if self.summary(inner).0 > self.summary(outer).0 {
                let child = self.rotate_left(left);
                self.set_left(at, child);
            }
            return self.rotate_right(at);
        }
        if right_height > left_height + 1 {
            let Some(&Node {
                left: inner,
                right: outer,
                ..
            }) = self.node(right)
            else {
                return at;
            };
            if self.summary(inner).0 > self.summary(outer).0 {
                let child = self.rotate_right(right);
                self.set_right(at, child);
            }
            return self.rotate_left(at);
        }
        self.refresh(at);
        at
    }

    fn rotate_left(&mut self, at: u32) -> u32 {
        let Some(up) = self.node(at).map(|node| node.right) else {
            return at;
        };
        let Some(inner) = self.node(up).map(|node| node.left) else {
            return at;
        };
        self.set_right(at, inner);
        self.refresh(at);
        self.set_left(up, at);
        self.refresh(up);
        up
    }

    fn rotate_right(&mut self, at: u32) -> u32 {
        let Some(up) = self.node(at).map(|node| node.left) else {
            return at;
        };
        let Some(inner) = self.node(up).map(|node| node.right) else {
            return at;
        };
        self.set_left(at, inner);
        self.refresh(at);
        self.set_right(up, at);
        self.refresh(up);
        up
    }
}
