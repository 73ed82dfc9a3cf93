//! Map, unmap and walk translation tables of both stages.
