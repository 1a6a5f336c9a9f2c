"""Networks of other widths: a module rebuilt with other tensors, and code that selects channels by number."""
