//! Sparse memory, raw table builders and a naive oracle for tests.
