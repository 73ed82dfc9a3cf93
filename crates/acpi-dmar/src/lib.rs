//! The ACPI DMAR table: reader, builder, lint and scope resolution.
