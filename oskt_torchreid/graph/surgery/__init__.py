"""Networks of other widths: rebuilding a module with other tensors, and code that chooses channels by number."""
