/// Declares a number that comes from outside (firmware, guest, device) with names for the values known today.
///
/// Unlike a Rust `enum`, every value is representable, so a value that a newer specification defines
/// round-trips unchanged and a `match` has to say what happens to it.
///
/// ```
/// iommu_types::open_enum! {
///     /// Type of an ACPI structure.
///     pub struct Kind(u16) {
///         /// Hardware unit definition.
///         DRHD = 0,
///     }
/// }
/// assert_eq!(Kind::DRHD.name(), Some("DRHD"));
/// assert_eq!(Kind(9).name(), None);
/// assert_eq!(format!("{:?} {:?}", Kind::DRHD, Kind(9)), "DRHD Kind(0x9)");
/// ```
#[macro_export]
macro_rules! open_enum {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident($repr:ty) {
            $( $(#[$vmeta:meta])* $variant:ident = $value:expr ),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis struct $name(pub $repr);

        impl $name {
            $( $(#[$vmeta])* pub const $variant: Self = Self($value); )*

            /// The name of the value, where it has one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                $( if self.0 == $value { return Some(stringify!($variant)); } )*
                None
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, concat!(stringify!($name), "({:#x})"), self.0),
                }
            }
        }
    };
}
