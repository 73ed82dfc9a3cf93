//! What reads and writes of registers do: access class, reset value and masks, as data. VT-d §11.3 (register attributes).
