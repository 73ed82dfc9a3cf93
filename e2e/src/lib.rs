//! Parts that never see each other, judged together.
//!
//! `vtd-driver` and `vtd-model` share only `vtd-spec`; here the driver runs on the model, and the model is held
//! against QEMU's own VT-d. Groups and DMAR tables are held against Linux in a guest, and so is the VFIO layer. Nothing
//! here is part of the product.

pub mod differential;
pub mod guest;
pub mod qtest;
pub mod vfio;
